"""The fake's runtime half: see `fake_tensorrt`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort

COMPUTE_BYTES = 4096  # of every engine's activations
MAGIC = b"fake plan\n"
_ALIGNMENT = 256


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    BOOL = 4
    BF16 = 7
    INT64 = 8


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.INT64: DataType.INT64,
}
_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.BOOL: np.bool_, DataType.INT64: np.int64}
Dims = tuple[int, ...]
Profiles = list[dict[str, list[list[int]]]]


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None: ...

    def log(self, severity: ILogger.Severity, msg: str) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        data = bytes(serialized_engine)
        header, _, graph = data.removeprefix(MAGIC).partition(b"\n")
        described = json.loads(header) if data.startswith(MAGIC) else {}
        if described.get("graph_bytes") != len(graph):
            self._logger.log(ILogger.Severity.ERROR, "the engine data is corrupt")
            return None
        if described["version_compatible"] and not self.engine_host_code_allowed:
            self._logger.log(ILogger.Severity.ERROR, "the engine holds host code, which is not allowed")
            return None
        return ICudaEngine(onnx.load_from_string(graph), described["profiles"], self._logger)


class ICudaEngine:
    def __init__(self, model: onnx.ModelProto, profiles: Profiles, logger: ILogger) -> None:
        self._tensors = {value.name: (TensorIOMode.INPUT, value.type.tensor_type) for value in model.graph.input}
        self._tensors |= {value.name: (TensorIOMode.OUTPUT, value.type.tensor_type) for value in model.graph.output}
        self._writers = {node.output[0]: node for node in model.graph.node}
        self._profiles = profiles
        self._logger = logger
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def device_memory_size_v2(self) -> int:
        return COMPUTE_BYTES

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensors[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self._tensors[name][1].elem_type]

    def get_tensor_shape(self, name: str) -> Dims:
        return tuple(dim.dim_value or -1 for dim in self._tensors[name][1].shape.dim)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [tuple(dims) for dims in self._profiles[profile_index][name]]

    def get_aliased_input_tensor(self, name: str) -> str:
        writer = self._writers.get(name)
        return writer.input[0] if writer is not None and writer.op_type == "TensorScatter" else ""

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        return IExecutionContext(self, strategy)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self._engine = engine
        self._memory = strategy is ExecutionContextAllocationStrategy.STATIC
        self._profile: int | None = None
        self._shapes: dict[str, Dims] = {}
        self._addresses: dict[str, int] = {}
        self._last_run: tuple[dict[str, Dims], dict[str, int]] | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = memory % _ALIGNMENT == 0 and size >= self._engine.device_memory_size_v2

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        self._shapes.clear()
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if self._profile is None or self._engine.get_tensor_mode(name) is not TensorIOMode.INPUT:
            return self._refuse(f"{name} takes no shape")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(low) or not all(least <= value <= most for least, value, most in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name}: {tuple(shape)} is not inside {low} to {high}")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % _ALIGNMENT:
            return self._refuse(f"{name}: the address is no multiple of {_ALIGNMENT}")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        problem = self._problem(stream_handle)
        if problem:
            return self._refuse(problem)
        now = dict(self._shapes), dict(self._addresses)
        if _capture.recorded is None:
            self._last_run = now
            self._run(*now)
            return True
        if self._last_run != now:
            return self._refuse("nothing may be captured before it has run once")

        def replay() -> None:
            assert (self._shapes, self._addresses) == now, "the context was changed after its graph was captured"
            self._run(*now)

        _capture.recorded.append(replay)
        return True

    def _problem(self, stream_handle: int) -> str:
        inputs = [name for name, (mode, _) in self._engine._tensors.items() if mode is TensorIOMode.INPUT]
        if not stream_handle or not self._memory or set(self._shapes) != set(inputs):
            return "stream, memory or shapes are lacking"
        if set(self._addresses) != set(self._engine._tensors):
            return "addresses are lacking"
        for name in self._addresses:
            aliased = self._engine.get_aliased_input_tensor(name)
            if aliased and self._addresses[aliased] != self._addresses[name]:
                return f"{name} is not at the address of {aliased}"
        return ""

    def _run(self, shapes: Mapping[str, Dims], addresses: Mapping[str, int]) -> None:
        engine = self._engine
        binding = engine._session.io_binding()
        for name, shape in shapes.items():
            binding.bind_input(name, "cpu", 0, _NUMPY[engine.get_tensor_dtype(name)], shape, addresses[name])
        for name, (mode, _) in engine._tensors.items():
            if mode is TensorIOMode.OUTPUT:
                aliased = engine.get_aliased_input_tensor(name)
                shape = shapes[aliased] if aliased else (shapes["input_ids"][0], engine.get_tensor_shape(name)[1])
                binding.bind_output(name, "cpu", 0, _NUMPY[engine.get_tensor_dtype(name)], shape, addresses[name])
        engine._session.run_with_iobinding(binding)

    def _refuse(self, reason: str) -> bool:
        self._engine._logger.log(ILogger.Severity.ERROR, reason)
        return False


_capture = SimpleNamespace(recorded=None)


@contextmanager
def recording(refused: bool = False) -> Iterator[list[Callable[[], None]]]:
    """What contexts start meanwhile is recorded and does not run."""
    from drafthouse.engine.contract import EngineError

    if refused:
        raise EngineError("the GPU recorded no graph")
    _capture.recorded = []
    try:
        yield _capture.recorded
    finally:
        _capture.recorded = None
