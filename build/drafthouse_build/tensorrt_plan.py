"""ONNX graph → `model.plan`: TensorRT's builder, with every way in which it can fail as an error that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import tensorrt as trt

from drafthouse.engine.tensorrt.profiles import EngineShape
from drafthouse.engine.tensorrt.runtime import LibraryLog
from drafthouse_build.errors import BuildError
from drafthouse_build.model_file import Progress
from drafthouse_build.tensorrt_progress import BuildMonitor

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MIB = 1 << 20


@dataclass(frozen=True)
class CompileOptions:
    """How to compile a graph. `workspace_bytes` is the memory that kernels may use while they are tried, None for all there is."""

    version_compatible: bool = False
    workspace_bytes: int | None = None
    timing_cache: Path | None = None  # read where it exists, and written: the next build of like shapes takes a fraction of the time


def compile_plan(graph: Path, plan: Path, shape: EngineShape, options: CompileOptions, progress: Progress | None = None) -> None:
    """Compiles `graph` for the GPU that is current, for the profiles of `shape`, into `plan`; raises `BuildError`.

    The network is strongly typed: it runs in the types that the graph has.
    """
    log = LibraryLog()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise BuildError("UNSUPPORTED", "graph", reasons or log.take_errors(), "what this TensorRT imports (10.15 or later)")
    config = builder.create_builder_config()
    monitor = BuildMonitor(progress)
    config.progress_monitor = monitor
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    _add_profiles(builder, config, shape)
    _set_timing_cache(config, options.timing_cache)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise _failure(log.take_errors(), options)
    _write(plan, built)
    if options.timing_cache is not None:
        _write(options.timing_cache, config.get_timing_cache().serialize())


def _add_profiles(builder: trt.Builder, config: trt.IBuilderConfig, shape: EngineShape) -> None:
    """One profile per kind of call; the session numbers them in the same order."""
    for profile in shape.profiles():
        limits = builder.create_optimization_profile()
        least, best, most = (shape.inputs(call) for call in (profile.least, profile.best, profile.most))
        for name in least:
            limits.set_shape(name, *(trt.Dims(list(dims[name])) for dims in (least, best, most)))
        config.add_optimization_profile(limits)


def _set_timing_cache(config: trt.IBuilderConfig, file: Path | None) -> None:
    """Uses the timings in `file`; those of another GPU or version are worth nothing and are left."""
    if file is None:
        return
    held = file.read_bytes() if file.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(held), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _failure(reason: str, options: CompileOptions) -> BuildError:
    """What the builder's silence means: most often too little memory."""
    if "memory" in reason.lower() or "workspace" in reason.lower():
        limit = "all there is" if options.workspace_bytes is None else f"{options.workspace_bytes // _MIB} MiB"
        return BuildError("INVALID_ARG", "workspace", f"{limit}: {reason}", "more GPU memory: --workspace-mib, fewer slots, or a free GPU")
    return BuildError("UNSUPPORTED", "graph", reason, "what this TensorRT can compile for this GPU")


def _write(file: Path, content: trt.IHostMemory) -> None:
    """Writes `file` in one step, so that it is there only when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("wb") as stream:
        stream.write(memoryview(cast("Buffer", content)))
    temporary.replace(file)
