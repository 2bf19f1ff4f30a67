"""The key/value cache of a session: one tensor on the device, which the network reads and writes in place."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from drafthouse.engine.tensorrt.device import Device
from drafthouse.engine.tensorrt.profiles import EngineShape


class CachePool:
    """``[2 · layers, slots, H_kv, S, D_h]``, in the order of ``EngineShape.cache_names``."""

    def __init__(self, shape: EngineShape, dtype: torch.dtype, device: Device) -> None:
        """Takes the memory; raises ServerError when there is too little."""
        self._names = list(shape.cache_names)
        self._device = device
        self._pool = device.empty((len(self._names), shape.slots, shape.num_kv_heads, shape.rows, shape.head_dim), dtype)
        device.run(self._pool.zero_)

    @property
    def num_bytes(self) -> int:
        """Size of the cache."""
        return int(self._pool.numel() * self._pool.element_size())

    def addresses(self, first_slot: int) -> Mapping[str, int]:
        """Address of every cache from ``first_slot`` on, by input and output: both are the same memory."""
        found: dict[str, int] = {}
        for index, name in enumerate(self._names):
            address = self._pool[index, first_slot].data_ptr()
            found[f"past_{name}"] = found[f"present_{name}"] = address
        return found

    def copy_rows(self, slot: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        """Copies cache rows of one slot, all layers and sides; every source is read before any destination is written."""
        rows, places = (torch.from_numpy(indices).to(self._pool.device) for indices in (sources, destinations))
        self._device.run(lambda: self._pool[:, slot].index_copy_(2, places, self._pool[:, slot].index_select(2, rows)))

    def clear_slot(self, slot: int, first_row: int = 0) -> None:
        """Zeroes one slot's cache from ``first_row`` on."""
        self._device.run(lambda: self._pool[:, slot, :, first_row:].zero_())
