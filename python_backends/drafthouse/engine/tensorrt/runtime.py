"""TensorRT's own objects: the log, the deserialised engine, execution contexts. Every refusal of the library becomes an error here."""

import logging
import mmap
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import tensorrt as trt

from drafthouse.core.errors import ErrorCode, ServerError, invalid
from drafthouse.engine.contract import EngineError
from drafthouse.engine.tensorrt.plan import PLAN_NAME, PlanManifest
from drafthouse.engine.tensorrt.profiles import INDEX_INPUTS, LOGITS, MASK_INPUT, CallShape, EngineShape, Profile, Shape

_LOG = logging.getLogger(__name__)
_MESSAGES_KEPT = 4
_REBUILD = "rebuild with `drafthouse build --backend tensorrt`"
_LEVELS = {
    trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
    trt.ILogger.Severity.ERROR: logging.ERROR,
    trt.ILogger.Severity.WARNING: logging.WARNING,
    trt.ILogger.Severity.INFO: logging.DEBUG,
    trt.ILogger.Severity.VERBOSE: logging.DEBUG,
}
CACHE_TYPES = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}


class LibraryLog(trt.ILogger):
    """Passes TensorRT's messages on to ours, and keeps the last errors: its functions return nothing but False or None."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: deque[str] = deque(maxlen=_MESSAGES_KEPT)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, on any thread."""
        level = _LEVELS.get(severity, logging.DEBUG)
        if level >= logging.ERROR:
            self._errors.append(msg)
        _LOG.log(level, "%s", msg)

    def take_errors(self) -> str:
        """The last errors, which are forgotten then."""
        found = "; ".join(self._errors)
        self._errors.clear()
        return found or "no reason given"


def load_plan(folder: Path, plan: PlanManifest, log: LibraryLog) -> trt.ICudaEngine:
    """Deserialises ``model.plan``; raises ClientError when TensorRT refuses it."""
    runtime = trt.Runtime(log)
    # A version-compatible plan carries the runtime that it needs, which is host code; ours are built by the same user who serves them.
    runtime.engine_host_code_allowed = plan.version_compatible
    with (folder / PLAN_NAME).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise invalid(
            PLAN_NAME, log.take_errors(), "a plan that this TensorRT can load: rebuild with `drafthouse build --backend tensorrt`"
        )
    return engine


def check_engine(engine: trt.ICudaEngine, shape: EngineShape, precision: str) -> None:
    """Raises ClientError unless the plan's inputs, outputs, aliases and profiles are those that the session is going to use."""
    found = {engine.get_tensor_name(index): index for index in range(engine.num_io_tensors)}
    inputs = shape.inputs(CallShape(-1, -1, -1))
    outputs = {LOGITS, *(f"present_{name}" for name in shape.cache_names)}
    for name in sorted(found.keys() ^ (inputs.keys() | outputs)):
        raise _wrong(name, "in the plan" if name in found else "not in the plan", "the graph's inputs and outputs")
    for name, dims in inputs.items():
        _check_tensor(engine, name, trt.TensorIOMode.INPUT, dims, _input_type(name, precision))
    _check_tensor(engine, LOGITS, trt.TensorIOMode.OUTPUT, (-1, shape.vocab_size), trt.DataType.FLOAT)
    for name in shape.cache_names:
        _check_tensor(engine, f"present_{name}", trt.TensorIOMode.OUTPUT, inputs[f"past_{name}"], CACHE_TYPES[precision])
        aliased = engine.get_aliased_input_tensor(f"present_{name}")
        if aliased != f"past_{name}":
            raise _wrong(f"present_{name}", f"aliased with {aliased or 'nothing'}", f"past_{name}, updated in place")
    _check_profiles(engine, shape)


def _check_profiles(engine: trt.ICudaEngine, shape: EngineShape) -> None:
    profiles = shape.profiles()
    if engine.num_optimization_profiles != len(profiles):
        raise _wrong("profiles", engine.num_optimization_profiles, str(len(profiles)))
    for index, profile in enumerate(profiles):
        least, most = shape.inputs(profile.least), shape.inputs(profile.most)
        for name in least:
            low, _, high = (dims[:] for dims in engine.get_tensor_profile_shape(name, index))
            is_inside = all(
                bottom <= first and last <= top for bottom, first, last, top in zip(low, least[name], most[name], high, strict=True)
            )
            if not is_inside:
                raise _wrong(f"profile {profile.name} of {name}", f"{low} to {high}", f"{least[name]} to {most[name]}")


def _check_tensor(engine: trt.ICudaEngine, name: str, mode: trt.TensorIOMode, dims: Shape, dtype: trt.DataType) -> None:
    found = engine.get_tensor_mode(name), engine.get_tensor_dtype(name), engine.get_tensor_shape(name)[:]
    if found != (mode, dtype, dims):
        raise _wrong(name, f"{found[0].name} {found[1].name} {found[2]}", f"{mode.name} {dtype.name} {dims}")


def _input_type(name: str, precision: str) -> trt.DataType:
    if name in INDEX_INPUTS:
        return trt.DataType.INT64
    return trt.DataType.BOOL if name == MASK_INPUT else CACHE_TYPES[precision]


def _wrong(field: str, found: object, allowed: str) -> Exception:
    return invalid(field, found, f"{allowed}: {_REBUILD}")


class Context:
    """One execution context, with the shape and addresses that it has now. Its activations lie in memory that all contexts share."""

    def __init__(
        self, engine: trt.ICudaEngine, shape: EngineShape, profile: int, workspace: tuple[int, int], stream: int, log: LibraryLog
    ) -> None:
        """``workspace`` is address and size of the activations. Raises ServerError where TensorRT makes no context."""
        self._shape, self._log, self._stream = shape, log, stream
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise ServerError(ErrorCode.UNAVAILABLE, "execution context", log.take_errors(), "enough GPU memory: fewer slots")
        context.set_device_memory(*workspace)
        if not context.set_optimization_profile_async(profile, stream):
            raise ServerError(ErrorCode.INTERNAL, "optimization profile", log.take_errors())
        self._context = context
        self._bound: tuple[CallShape, Mapping[str, int]] | None = None

    def bind(self, call: CallShape, addresses: Mapping[str, int]) -> None:
        """Shapes and addresses of the next runs; raises EngineError where TensorRT refuses one."""
        before = self._bound
        if before == (call, addresses):
            return
        self._bound = None
        if before is None or before[0] != call:
            for name, dims in self._shape.inputs(call).items():
                if not self._context.set_input_shape(name, dims):
                    raise EngineError(f"TensorRT refused the shape {dims} of {name}: {self._log.take_errors()}")
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT refused the address of {name}: {self._log.take_errors()}")
        self._bound = call, addresses

    def enqueue(self) -> None:
        """Starts the network on the stream; raises EngineError when TensorRT cannot."""
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(f"TensorRT failed: {self._log.take_errors()}")


def profile_of(profiles: list[Profile], call: CallShape) -> int:
    """The first profile that holds the call; raises EngineError where none does."""
    for index, profile in enumerate(profiles):
        if profile.holds(call):
            return index
    raise EngineError(f"no optimisation profile holds {call}")
