"""A ``Session`` over ``model.plan``: caches bound by address and updated in place, captured graphs, sampling where the logits are."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from drafthouse.engine.contract import EngineError
from drafthouse.engine.manifest import EngineManifest
from drafthouse.engine.tensorrt.chooser import TorchChooser
from drafthouse.engine.tensorrt.device import Device
from drafthouse.engine.tensorrt.graphs import GraphCache, GraphFigures, GraphKey, graph_key
from drafthouse.engine.tensorrt.plan import Machine, check_file, check_plan, read_plan_manifest
from drafthouse.engine.tensorrt.pool import CachePool
from drafthouse.engine.tensorrt.profiles import LOGITS, CallShape
from drafthouse.engine.tensorrt.runtime import Context, LibraryLog, check_engine, load_plan, profile_of
from drafthouse.engine.tensorrt.staging import CallLayout, HostInputs

_LOG = logging.getLogger(__name__)
MAX_GRAPHS = 48
_TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LAYOUTS_KEPT = 256


@dataclass(slots=True)
class TensorRtStep:
    """A ``BoundStep`` whose inputs are arrays of the host, and whose logits stay on the device."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    write_indices: NDArray[np.int64]
    attn_mask: NDArray[np.bool_]
    unpack_indices: NDArray[np.int64]
    pack_indices: NDArray[np.int64]
    logits: torch.Tensor  # [N, V], float32
    start: Callable[[], None]

    def run(self) -> None:
        self.start()


class TensorRtSession:
    """A loaded plan with its cache."""

    def __init__(
        self, folder: Path, manifest: EngineManifest, slots: int, device: Device, tensorrt_version: str, max_graphs: int = MAX_GRAPHS
    ) -> None:
        """Checks the plan against its manifest, the engine's and the machine, then loads it and takes all the memory it will ever need.

        Raises ClientError for a plan that cannot run here, naming the fix, and ServerError where memory or the library is lacking.
        """
        plan = read_plan_manifest(folder)
        machine = Machine(tensorrt_version, device.compute_capability, device.name)
        self._shape = check_plan(plan, manifest, slots, machine)
        check_file(folder, plan)
        self._log = LibraryLog()
        self._engine = load_plan(folder, plan, self._log)
        check_engine(self._engine, self._shape, plan.precision)
        self._device = device
        self._profiles = self._shape.profiles()
        self._pool = CachePool(self._shape, _TORCH_TYPES[plan.precision], device)
        self._inputs = HostInputs(self._shape, device)
        self._logits = device.empty((slots * manifest.max_step_tokens, manifest.vocab_size), torch.float32)
        self._workspace = device.empty((max(self._engine.device_memory_size_v2, 1),), torch.uint8)
        self._contexts = [self._context(index) for index in range(len(self._profiles))]
        self._graphs = GraphCache(max_graphs)
        self._window = manifest.context_len
        self._addresses = lru_cache(_LAYOUTS_KEPT)(self._all_addresses)

    @property
    def pool_bytes(self) -> int:
        return self._pool.num_bytes

    @property
    def graph_figures(self) -> GraphFigures:
        """How many decoding calls ran as a captured graph, and how many did not."""
        return self._graphs.figures

    def make_chooser(self) -> TorchChooser:
        """Chooses from this session's logits, on its device."""
        return TorchChooser(self._shape.vocab_size, self._device.torch_device)

    def resize(self, num_rows: int) -> None:
        """The network always sees whole slots; only the mask that the caller writes gets shorter."""
        self._window = num_rows

    def bind(self, first_slot: int, num_rows: int, num_tokens: int, num_packed: int) -> TensorRtStep:
        asked = CallShape(num_rows, num_tokens, num_packed)
        key = graph_key(asked, first_slot, self._profiles[0]) if self._is_decoding(asked) else None
        if key is not None and self._graphs.admits(key):
            layout = CallLayout(asked, key.shape, first_slot - key.first_slot, self._window)
            start = partial(self._run_graph, key, layout)
        else:
            layout = CallLayout(asked, asked, 0, self._window)
            start = partial(self._run_eagerly, layout, first_slot, key is not None)
        return TensorRtStep(
            **self._inputs.arrays(layout), attn_mask=self._inputs.mask(layout), logits=self._logits[:num_packed], start=start
        )

    def copy_rows(self, slot: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        self._pool.copy_rows(slot, sources, destinations)

    def clear_slot(self, slot: int, first_row: int = 0) -> None:
        self._pool.clear_slot(slot, first_row)

    def _is_decoding(self, call: CallShape) -> bool:
        return self._profiles[0].holds(call)

    def _run_eagerly(self, layout: CallLayout, first_slot: int, is_decoding: bool) -> None:
        context = self._contexts[profile_of(self._profiles, layout.runs)]
        self._graphs.figures.eager += is_decoding

        def work() -> None:
            self._inputs.send(layout)
            context.bind(layout.runs, self._addresses(layout.runs, first_slot))
            context.enqueue()

        self._device.run(work)

    def _run_graph(self, key: GraphKey, layout: CallLayout) -> None:
        """Replays the key's graph; the first time it runs as it is, which TensorRT needs before a capture, and is captured then."""
        graph = self._graphs.replay(key)
        context = self._graphs.context(key, lambda: self._context(0))
        self._graphs.figures.replayed += graph is not None
        self._graphs.figures.eager += graph is None

        def work() -> None:
            self._inputs.send(layout)
            if graph is not None:
                graph()
                return
            context.bind(key.shape, self._addresses(key.shape, key.first_slot))
            context.enqueue()

        self._device.run(work)
        if graph is None:
            try:
                self._graphs.keep(key, self._device.capture(context.enqueue))
            except EngineError as error:
                _LOG.warning("no graph for %s: %s", key, error)
                self._graphs.refuse(key)

    def _context(self, profile: int) -> Context:
        workspace = self._workspace.data_ptr(), self._workspace.numel()
        return Context(self._engine, self._shape, profile, workspace, self._device.stream_handle, self._log)

    def _all_addresses(self, runs: CallShape, first_slot: int) -> dict[str, int]:
        layout = CallLayout(runs, runs, 0, self._window)
        return {**self._inputs.addresses(layout), LOGITS: self._logits.data_ptr(), **self._pool.addresses(first_slot)}
