"""The inputs of a network call: written on the host in the caller's shape, sent to the device in the network's.

A call that is to run as a captured graph is padded to a shape that a graph exists for: more rows, more places, more tokens. Padding
writes into scratch rows behind the context, or behind a row's own tokens, where nothing of use lies; it sees one row, so that no
attention is empty (which would be NaN), and that row is finite as all of the cache is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from drafthouse.engine.tensorrt.device import Device
from drafthouse.engine.tensorrt.profiles import ALIGNMENT_BYTES, INDEX_INPUTS, MASK_INPUT, CallShape, EngineShape

_INDEX_BYTES = 8
_INDICES_PER_ADDRESS = ALIGNMENT_BYTES // _INDEX_BYTES


@dataclass(frozen=True, slots=True)
class CallLayout:
    """A call as it was asked for, and as it runs: its rows are the network's from ``offset`` on."""

    asked: CallShape
    runs: CallShape
    offset: int
    window: int  # cache rows that the caller's mask speaks of


class HostInputs:
    """What the caller fills: arrays of the shape that was asked for. All layouts share the memory behind them."""

    def __init__(self, shape: EngineShape, device: Device) -> None:
        most = shape.slots * shape.max_step_tokens
        self._most = most
        self._memory = {name: np.zeros(most, np.int64) for name in INDEX_INPUTS}
        self._mask = np.zeros(most * shape.rows, np.bool_)
        aligned = sum(-(-size // _INDICES_PER_ADDRESS) * _INDICES_PER_ADDRESS for size in [most] * len(INDEX_INPUTS))
        self._indices = device.host((aligned,), torch.int64)
        self._device_indices = device.empty((aligned,), torch.int64)
        self._sent_mask = device.host((most * shape.rows,), torch.bool)
        self._device_mask = device.empty((most * shape.rows,), torch.bool)
        self._shape = shape

    def arrays(self, layout: CallLayout) -> dict[str, NDArray[np.int64]]:
        """The index inputs, for the caller to fill."""
        shapes = self._shape.inputs(layout.asked)
        return {name: self._memory[name][: _size(shapes[name])].reshape(shapes[name]) for name in INDEX_INPUTS}

    def mask(self, layout: CallLayout) -> NDArray[np.bool_]:
        """The mask over the window, for the caller to fill."""
        shape = (layout.asked.rows, 1, layout.asked.places, layout.window)
        return self._mask[: _size(shape)].reshape(shape)

    def addresses(self, layout: CallLayout) -> dict[str, int]:
        """Where the network finds its inputs, all but the caches."""
        starts = self._starts(layout)
        indices = {name: self._device_indices[start:].data_ptr() for name, start in starts.items()}
        return indices | {MASK_INPUT: self._device_mask.data_ptr()}

    def send(self, layout: CallLayout) -> None:
        """Pads what the caller wrote and starts the copies to the device."""
        total = self._pad_indices(layout)
        self._device_indices[:total].copy_(self._indices[:total], non_blocking=True)
        runs, asked, rows = layout.runs, layout.asked, slice(layout.offset, layout.offset + layout.asked.rows)
        whole = (runs.rows, runs.places, self._shape.rows)
        sent = self._sent_mask[: runs.rows * runs.places * layout.window].view(runs.rows, runs.places, layout.window)
        padded = sent.numpy()
        padded[:] = False
        padded[:, :, 0] = True
        padded[rows, : asked.places] = self.mask(layout)[:, 0]
        mask = self._device_mask[: _size(whole)].view(whole)
        if layout.window < self._shape.rows:
            mask.zero_()
        mask[:, :, : layout.window].copy_(sent, non_blocking=True)

    def _pad_indices(self, layout: CallLayout) -> int:
        """Writes the index inputs in the shape that runs into the memory that is sent; returns how much of it is used."""
        asked, runs, arrays = layout.asked, layout.runs, self.arrays(layout)
        rows, places = slice(layout.offset, layout.offset + asked.rows), slice(asked.places)
        starts, memory = self._starts(layout), self._indices.numpy()
        shapes, end = self._shape.inputs(runs), 0
        views = {}
        for name in INDEX_INPUTS:
            end = starts[name] + _size(shapes[name])
            views[name] = memory[starts[name] : end].reshape(shapes[name])
            views[name][...] = 0
        views["input_ids"][: asked.packed] = arrays["input_ids"]
        views["position_ids"][rows, places] = arrays["position_ids"]
        views["unpack_indices"][rows, places] = arrays["unpack_indices"]
        views["write_indices"][:] = self._shape.rows - runs.places
        views["write_indices"][rows] = arrays["write_indices"]
        row, place = np.divmod(arrays["pack_indices"], asked.places)
        views["pack_indices"][: asked.packed] = (row + layout.offset) * runs.places + place
        return end

    def _starts(self, layout: CallLayout) -> dict[str, int]:
        """Where each index input begins in the memory that is sent: one copy, and every address aligned."""
        starts, begin = {}, 0
        shapes = self._shape.inputs(layout.runs)
        for name in INDEX_INPUTS:
            starts[name] = begin
            begin += -(-_size(shapes[name]) // _INDICES_PER_ADDRESS) * _INDICES_PER_ADDRESS
        return starts


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
