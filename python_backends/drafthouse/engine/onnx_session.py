"""ONNX Runtime on the CPU, its cache bound in place: a call writes its new rows into the pool and copies nothing else."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotFound,
    NotImplemented,
    RuntimeException,
)

from drafthouse.core.errors import invalid
from drafthouse.engine.contract import EngineError
from drafthouse.engine.manifest import CONTEXT_LEN_KEY, EngineManifest
from drafthouse.sampling.choose import Chooser

MODEL_NAME = "model.onnx"
_BINDINGS_KEPT = 128
_INDEX_INPUTS = ("input_ids", "position_ids", "write_indices", "unpack_indices", "pack_indices")
# ONNX Runtime's exceptions share no base class of their own; a call with bound inputs raises a plain RuntimeError.
_RUNTIME_ERRORS = (
    RuntimeError,
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotFound,
    NotImplemented,
    RuntimeException,
)


@dataclass(slots=True)
class OnnxStep:
    """A ``BoundStep`` whose buffers are views of the session's arrays, which the binding points to."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    write_indices: NDArray[np.int64]
    attn_mask: NDArray[np.bool_]
    unpack_indices: NDArray[np.int64]
    pack_indices: NDArray[np.int64]
    logits: NDArray[np.float32]
    session: ort.InferenceSession
    binding: ort.IOBinding

    def run(self) -> None:
        try:
            self.session.run_with_iobinding(self.binding)
        except _RUNTIME_ERRORS as error:
            raise EngineError(f"ONNX Runtime failed: {error}") from error


class OnnxSession:
    """A ``Session`` over ``model.onnx``."""

    def __init__(self, folder: Path, manifest: EngineManifest, slots: int, num_threads: int) -> None:
        self._manifest = manifest
        self._session = _open(folder / MODEL_NAME, num_threads)
        _check_inputs(self._session, manifest)
        self._is_fixed = isinstance(next(value for value in self._session.get_inputs() if value.name == "past_k_0").shape[2], int)
        self._slots = slots
        per_slot = manifest.num_kv_heads * manifest.context_len * manifest.head_dim
        self._memory = np.zeros((2 * manifest.num_layers, slots * per_slot), np.float32)
        self._pool = self._view(manifest.context_len)
        # All bindings share these: calls come one at a time, and buffers of their own would add up to gigabytes.
        tokens = slots * manifest.max_step_tokens
        self._indices = {name: np.zeros(tokens, np.int64) for name in _INDEX_INPUTS}
        self._attn_mask = np.zeros(tokens * manifest.context_len, np.bool_)
        self._logits = np.zeros((tokens, manifest.vocab_size), np.float32)
        self._caches: OrderedDict[tuple[int, int, bool], ort.IOBinding] = OrderedDict()
        self._steps: dict[tuple[int, int, bool], tuple[tuple[int, int], OnnxStep]] = {}  # the last one of each binding, and its T and N

    @property
    def pool_bytes(self) -> int:
        return self._memory.nbytes

    def make_chooser(self) -> Chooser:
        return Chooser(self._manifest.vocab_size)

    def resize(self, num_rows: int) -> None:
        """Moves what every slot holds closer together, or further apart: the runtime wants a call's cache in one piece."""
        before = self._pool.shape[3]
        if self._is_fixed or num_rows == before:
            return
        kept = min(num_rows, before)
        after = self._view(num_rows)
        for source, target in zip(self._pool, after, strict=True):
            target[:, :, :kept] = source[:, :, :kept].copy()
        self._pool = after
        self._caches.clear()
        self._steps.clear()

    def bind(self, first_slot: int, num_rows: int, num_tokens: int, num_packed: int) -> OnnxStep:
        # Growing rows alternate with what their callers send: one token per row has a binding of its own, and is seldom bound anew.
        slots, sizes = (first_slot, num_rows, num_packed <= max(num_rows, 2)), (num_tokens, num_packed)
        if slots not in self._caches:
            self._caches[slots] = self._bind_caches(first_slot, num_rows)
            if len(self._caches) > _BINDINGS_KEPT:
                self._steps.pop(self._caches.popitem(last=False)[0])
        self._caches.move_to_end(slots)
        bound = self._steps.get(slots)
        if bound is None or bound[0] != sizes:
            bound = self._steps[slots] = sizes, self._bind_tokens(self._caches[slots], num_rows, *sizes)
        return bound[1]

    def copy_rows(self, slot: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        self._pool[:, slot, :, destinations] = self._pool[:, slot, :, sources]

    def clear_slot(self, slot: int, first_row: int = 0) -> None:
        self._pool[:, slot, :, first_row:] = 0

    def _view(self, num_rows: int) -> NDArray[np.float32]:
        """``[2 · layers, slots, H_kv, num_rows, D_h]``, the cache as the network is given it."""
        shape = (self._slots, self._manifest.num_kv_heads, num_rows, self._manifest.head_dim)
        return self._memory[:, : math.prod(shape)].reshape(len(self._memory), *shape)

    def _bind_caches(self, first_slot: int, num_rows: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        shape = (num_rows, *self._pool.shape[2:])
        for layer in range(self._manifest.num_layers):
            for side_index, side in enumerate("kv"):
                address = self._pool[2 * layer + side_index, first_slot:].ctypes.data
                binding.bind_input(f"past_{side}_{layer}", "cpu", 0, np.float32, shape, address)
                binding.bind_output(f"present_{side}_{layer}", "cpu", 0, np.float32, shape, address)
        return binding

    def _bind_tokens(self, binding: ort.IOBinding, num_rows: int, num_tokens: int, num_packed: int) -> OnnxStep:
        """Binds all but the caches, whose binding would cost ten times as much, anew."""
        rectangle, window = (num_rows, num_tokens), self._pool.shape[3]
        shapes = ((num_packed,), rectangle, (num_rows,), rectangle, (num_packed,))
        inputs = {name: self._indices[name][: math.prod(shape)].reshape(shape) for name, shape in zip(_INDEX_INPUTS, shapes, strict=True)}
        mask = self._attn_mask[: num_rows * num_tokens * window].reshape(num_rows, 1, num_tokens, window)
        logits = self._logits[:num_packed]
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_input("attn_mask", "cpu", 0, np.bool_, mask.shape, mask.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return OnnxStep(**inputs, attn_mask=mask, logits=logits, session=self._session, binding=binding)


def _open(file: Path, num_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # Spinning threads steal the cores that drafters and target share.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    # A pattern is kept per combination of shapes: with packed tokens there are thousands, and none was measured to save time.
    options.enable_mem_pattern = False
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except _RUNTIME_ERRORS as error:
        raise invalid(MODEL_NAME, str(file), f"a model that this ONNX Runtime ({ort.__version__}) can load: {error}") from error


def _check_inputs(session: ort.InferenceSession, manifest: EngineManifest) -> None:
    """The file and its manifest must speak of the same network: a mix-up would write past the pool."""
    cache = [manifest.num_kv_heads, manifest.context_len, manifest.head_dim]
    expected = {f"past_{side}_{layer}": cache for layer in range(manifest.num_layers) for side in "kv"}
    inputs = {value.name: list(value.shape[1:]) for value in session.get_inputs()}
    context_len = session.get_modelmeta().custom_metadata_map.get(CONTEXT_LEN_KEY)
    for name in (*_INDEX_INPUTS, "attn_mask"):
        if inputs.pop(name, None) is None:
            raise invalid(MODEL_NAME, f"a graph without the input {name}", "a graph of this version: rebuild the engine")
    for shape in inputs.values():
        shape[1] = int(context_len) if context_len and isinstance(shape[1], str) else shape[1]
    if inputs != expected:
        raise invalid(MODEL_NAME, _first_difference(inputs, expected), "the caches that engine.json describes: rebuild the engine")
    vocab_size = next((value.shape[-1] for value in session.get_outputs() if value.name == "logits"), None)
    if vocab_size != manifest.vocab_size:
        raise invalid(MODEL_NAME, f"logits of width {vocab_size}", f"vocab_size={manifest.vocab_size}: rebuild the engine")


def _first_difference(found: dict[str, list[int]], expected: dict[str, list[int]]) -> str:
    names: Iterable[str] = sorted(found.keys() | expected.keys())
    return next(f"{name}: {found.get(name)} for {expected.get(name)}" for name in names if found.get(name) != expected.get(name))
