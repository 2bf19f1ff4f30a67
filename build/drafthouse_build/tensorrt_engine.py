"""One checkpoint folder → one TensorRT engine folder: `model.plan`, `plan.json`, `engine.json`, the tokenizer's files.

Everything that can be refused without TensorRT is refused before it is asked: precisions, operators, profiles. Compiling needs the GPU
that the plan is for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import onnx

from drafthouse.engine.manifest import MANIFEST_NAME
from drafthouse.engine.tensorrt.plan import PLAN_MANIFEST_NAME, PLAN_NAME, PRECISIONS, Machine, PlanManifest, digest_of
from drafthouse.engine.tensorrt.profiles import EngineShape, cache_rows
from drafthouse_build.checkpoint import Checkpoint, Weights, sha256_of_files
from drafthouse_build.decoder import export_decoder
from drafthouse_build.engine import EngineOptions, build_key, check_model, complete_engine, engine_manifest
from drafthouse_build.errors import BuildError
from drafthouse_build.expand import expand_to
from drafthouse_build.manifest import stored_build_key
from drafthouse_build.model_file import MAX_INLINE_BYTES, Progress, write_model
from drafthouse_build.shapes import num_parameters
from drafthouse_build.tensorrt_graph import check_profiles, tensorrt_graph
from drafthouse_build.tensorrt_operators import problems
from drafthouse_build.vocabulary import Vocabulary
from drafthouse_build.weight_store import WeightStore

QUANTIZED = ("int4",)  # weights alone, by NVIDIA's Model Optimizer
OPTIMIZER = "modelopt"
_SOURCES = ("tensorrt_engine", "tensorrt_graph", "tensorrt_plan")
_SHARED_SOURCES = ("plan", "profiles")
_GRAPH_NAME = "graph.onnx"
_DRAWN_NAME = "drawn.onnx"


@dataclass(frozen=True)
class PlanOptions:
    """How to compile an engine for a GPU; raises `BuildError` for what cannot be had here."""

    precision: str = "bf16"
    slots: int = 8
    device_id: int = 0
    version_compatible: bool = False
    workspace_bytes: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.precision in QUANTIZED and importlib.util.find_spec(OPTIMIZER) is None:
            allowed = f"{', '.join(PRECISIONS)}; {self.precision} needs NVIDIA's Model Optimizer: pip install 'nvidia-modelopt[onnx]'"
            raise BuildError("UNSUPPORTED", "precision", self.precision, allowed)
        if self.precision not in (*PRECISIONS, *QUANTIZED):
            raise BuildError("UNSUPPORTED", "precision", self.precision, (*PRECISIONS, *QUANTIZED))
        if self.slots < 1:
            raise BuildError("INVALID_ARG", "slots", self.slots, "an integer ≥ 1")

    @property
    def graph_precision(self) -> str:
        """The type of caches and activations: weights alone are quantised, and Model Optimizer's ONNX path rounds from fp16."""
        return "fp16" if self.precision in QUANTIZED else self.precision


def build_plan_engine(
    checkpoint: Checkpoint,
    output: Path,
    options: EngineOptions,
    plan: PlanOptions,
    domain: str,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
) -> bool:
    """Builds the engine of `checkpoint` into the folder `output`; returns False when the one there is current.

    As `engine.build_engine`; `options.precision` is not used. Raises `BuildError` for bad input and where TensorRT, the GPU or memory
    is lacking.
    """
    config = check_model(checkpoint, options)
    machine = this_machine(plan.device_id)
    key = _plan_key(build_key(checkpoint, options, domain, vocabulary), plan, machine)
    if stored_build_key(output) == key and (output / PLAN_NAME).is_file():
        return False
    weights: Weights = checkpoint.weights
    if options.expand_to is not None:
        config, weights = expand_to(config, weights, options.expand_to)
    vocab_size = config.vocab_size if vocabulary is None else vocabulary.size
    shape = EngineShape.of(engine_manifest(checkpoint, config, options, domain, key, vocab_size), plan.slots)
    output.mkdir(parents=True, exist_ok=True)
    for stale in (MANIFEST_NAME, PLAN_MANIFEST_NAME, PLAN_NAME):
        (output / stale).unlink(missing_ok=True)
    draw = partial(export_decoder, config, weights, options.context_len, vocabulary)
    num_bytes = 4 * num_parameters(config)
    try:
        write_model(draw, output / _DRAWN_NAME, num_bytes, "fp32", progress)
        write_graph(output / _DRAWN_NAME, output / _GRAPH_NAME, plan.graph_precision, shape, num_bytes > MAX_INLINE_BYTES)
        if plan.precision in QUANTIZED:
            _quantize(output / _GRAPH_NAME, shape)
        _compile(output / _GRAPH_NAME, output, shape, plan, machine, progress)
    finally:
        for left in (*output.glob(f"{_DRAWN_NAME}*"), *output.glob(f"{_GRAPH_NAME}*")):
            left.unlink()
    complete_engine(checkpoint, config, options, domain, key, vocabulary, output, plan.precision)
    return True


def write_graph(drawn: Path, file: Path, precision: str, shape: EngineShape, is_large: bool) -> None:
    """Writes TensorRT's variant of the graph in `drawn` to `file`; raises `BuildError` for what TensorRT does not take, by name."""
    model = onnx.load_model(str(drawn), load_external_data=False)
    with WeightStore(file.with_name(f"{file.name}.data") if is_large else None) as store:
        variant = tensorrt_graph(model, precision, shape.rows, drawn.parent, store)
    check_graph(variant, shape)
    onnx.save_model(variant, str(file))


def check_graph(model: onnx.ModelProto, shape: EngineShape) -> None:
    """Raises `BuildError` naming the first operator, type or dimension that TensorRT does not document as supported."""
    for field, found in (("graph", problems(model)), ("profiles", check_profiles(model, shape))):
        if found:
            allowed = "what TensorRT 10.15 imports (docs/engines.md)" if field == "graph" else "dimensions inside the profiles"
            raise BuildError("UNSUPPORTED", field, f"{found[0]} ({len(found)} in all)", allowed)


def this_machine(device_id: int) -> Machine:
    """TensorRT and the GPU here; raises `BuildError` where one of them is lacking."""
    try:
        import tensorrt
        import torch
    except (ImportError, OSError) as error:
        allowed = "onnx, or a machine with TensorRT and PyTorch such as NVIDIA's Triton image (pip install 'drafthouse[gpu]')"
        raise BuildError("UNSUPPORTED", "backend", f"tensorrt: {error}", allowed) from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device_id >= count:
        raise BuildError("UNSUPPORTED", "device", device_id, f"0 to {count - 1}" if count else "a GPU: PyTorch sees none")
    torch.cuda.set_device(device_id)  # TensorRT takes the current one
    major, minor = torch.cuda.get_device_capability(device_id)
    return Machine(tensorrt.__version__, f"{major}.{minor}", torch.cuda.get_device_name(device_id))


def _quantize(file: Path, shape: EngineShape) -> None:
    from drafthouse_build.tensorrt_quantize import quantize_weights

    quantize_weights(file)
    check_graph(onnx.load_model(str(file), load_external_data=False), shape)


def _compile(graph: Path, output: Path, shape: EngineShape, plan: PlanOptions, machine: Machine, progress: Progress | None) -> None:
    """Writes `model.plan` and what it is for."""
    from drafthouse_build.tensorrt_plan import CompileOptions, compile_plan

    options = CompileOptions(plan.version_compatible, plan.workspace_bytes, plan.timing_cache)
    file = output / PLAN_NAME
    compile_plan(graph, file, shape, options, progress)
    described = PlanManifest(
        plan_sha256=digest_of(file),
        plan_bytes=file.stat().st_size,
        graph_sha256=digest_of(graph),
        tensorrt_version=machine.tensorrt_version,
        compute_capability=machine.compute_capability,
        version_compatible=plan.version_compatible,
        precision=plan.graph_precision,
        quantization=plan.precision if plan.precision in QUANTIZED else "none",
        slots=shape.slots,
        cache_rows=shape.rows,
        decode_tokens=shape.decode_tokens,
        max_step_tokens=shape.max_step_tokens,
    )
    temporary = output / f".{PLAN_MANIFEST_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(described), indent=2) + "\n", encoding="utf-8")
    temporary.replace(output / PLAN_MANIFEST_NAME)


def _plan_key(engine_key: str, plan: PlanOptions, machine: Machine) -> str:
    """Digest of everything that decides the plan: the engine's own, the options, TensorRT, the GPU, and this code."""
    folder, shared = Path(__file__).parent, Path(cache_rows.__code__.co_filename).parent
    sources = [folder / f"{name}.py" for name in _SOURCES] + [shared / f"{name}.py" for name in _SHARED_SOURCES]
    options = {name: value for name, value in asdict(plan).items() if name not in ("timing_cache", "workspace_bytes", "device_id")}
    parts = [engine_key, options, machine.tensorrt_version, machine.compute_capability, sha256_of_files(sources)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
