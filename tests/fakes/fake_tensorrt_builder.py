"""The fake's builder half: see `fake_tensorrt`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum

import onnx

from fakes.fake_tensorrt_runtime import COMPUTE_BYTES, MAGIC, ILogger, IProgressMonitor, Profiles


class BuilderFlag(IntEnum):
    VERSION_COMPATIBLE = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class IHostMemory(bytes):
    pass


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        assert all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)), (input, min, opt, max)
        self._shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self) -> None:
        self.progress_monitor: IProgressMonitor | None = None
        self._profiles: Profiles = []
        self._flags: set[BuilderFlag] = set()
        self._limits: dict[MemoryPoolType, int] = {}
        self._cache: ITimingCache | None = None

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return cache._content in (b"", b"timings")

    def get_timing_cache(self) -> ITimingCache:
        return ITimingCache(b"timings")


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model: onnx.ModelProto | None = None


class ParserError:
    def __init__(self, reason: str) -> None:
        self._reason = reason

    def desc(self) -> str:
        return self._reason


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        loaded = onnx.load(model)
        unknown = sorted({node.op_type for node in loaded.graph.node if node.domain})
        if unknown:
            self._errors.append(ParserError(f"no importer registered for op: {unknown[0]}"))
        self._network._model = loaded
        return not unknown


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        model, problem = network._model, ""
        if model is None or network._flags != 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED or not config._profiles:
            problem = "no network, or one that is not strongly typed, or no profile"
        elif any({value.name for value in model.graph.input} != profile.keys() for profile in config._profiles):
            problem = "a profile lacks an input"
        elif config._limits.get(MemoryPoolType.WORKSPACE, COMPUTE_BYTES) < COMPUTE_BYTES:
            problem = "could not find any implementation: insufficient workspace"
        if problem or model is None:
            self._logger.log(ILogger.Severity.ERROR, problem)
            return None
        if not self._report(config.progress_monitor):
            return None
        graph = model.SerializeToString()
        header = {
            "profiles": config._profiles,
            "graph_bytes": len(graph),
            "version_compatible": BuilderFlag.VERSION_COMPATIBLE in config._flags,
        }
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + graph)

    def _report(self, monitor: IProgressMonitor | None) -> bool:
        if monitor is None:
            return True
        monitor.phase_start("Building Engine", None, 2)  # type: ignore[arg-type] # as TensorRT does
        monitor.phase_start("Tactic Selection", "Building Engine", 3)
        alive = all(monitor.step_complete("Tactic Selection", step) for step in range(3))
        monitor.phase_finish("Tactic Selection")
        monitor.phase_finish("Building Engine")
        return alive
