"""One checkpoint folder → one engine folder: `model.onnx`, `engine.json`, the tokenizer's files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from drafthouse.engine.manifest import MANIFEST_NAME, EngineManifest
from drafthouse_build.checkpoint import Checkpoint, Weights, sha256_of_files
from drafthouse_build.config import LlamaConfig, parse_llama_config
from drafthouse_build.errors import BuildError
from drafthouse_build.expand import expand_to, plan_expansion
from drafthouse_build.llama import check_shapes, export_llama, num_parameters
from drafthouse_build.manifest import stored_build_key, write_manifest
from drafthouse_build.quantize import quantize_weights
from drafthouse_build.tokenizer import TOKENIZER_FILES, highest_token_id, tokenizer_file

Precision = Literal["fp32", "int8"]
MODEL_NAME = "model.onnx"
# protobuf stops at 2 GB.
MAX_INLINE_BYTES = 1_500_000_000
_EXTERNAL_THRESHOLD_BYTES = 1024
_DECIDING_MODULES = ("checkpoint", "config", "engine", "expand", "graph", "llama", "quantize", "rope")


@dataclass(frozen=True)
class EngineOptions:
    """How to build an engine. `expand_to` is a number of parameters to grow to, None for the checkpoint as it is."""

    precision: Precision = "fp32"
    context_len: int = 512
    max_step_tokens: int = 64
    expand_to: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise BuildError("UNSUPPORTED", "precision", self.precision, get_args(Precision))
        if self.context_len < 4:
            raise BuildError("INVALID_ARG", "context_len", self.context_len, "at least 4")
        if not 2 <= self.max_step_tokens < self.context_len:
            raise BuildError("INVALID_ARG", "max_step_tokens", self.max_step_tokens, f"2 to {self.context_len - 1} (below context_len)")


@dataclass(frozen=True)
class ModelFamily:
    """How checkpoints of one architecture are read, checked and drawn. A new family adds one of these, and its graph beside llama.py."""

    parse_config: Callable[[Mapping[str, Any]], LlamaConfig]
    check_shapes: Callable[[LlamaConfig, Mapping[str, tuple[int, ...]]], None]
    expand: Callable[[LlamaConfig, Weights, int], tuple[LlamaConfig, Weights]]
    export: Callable[[LlamaConfig, Weights, int], onnx.ModelProto]


FAMILIES: Mapping[str, ModelFamily] = {
    "LlamaForCausalLM": ModelFamily(parse_llama_config, check_shapes, expand_to, export_llama),
}


def check_model(checkpoint: Checkpoint, options: EngineOptions) -> LlamaConfig:
    """The checkpoint's configuration; raises `BuildError` when no engine can be built from it."""
    if checkpoint.architecture not in FAMILIES:
        raise BuildError("UNSUPPORTED", "architectures", checkpoint.architecture, FAMILIES)
    family = FAMILIES[checkpoint.architecture]
    config = family.parse_config(checkpoint.raw_config)
    family.check_shapes(config, checkpoint.weights.shapes)
    if options.expand_to is not None:
        plan_expansion(config, options.expand_to)
    if options.context_len > config.max_positions:
        raise BuildError("INVALID_ARG", "context_len", options.context_len, f"up to max_position_embeddings={config.max_positions}")
    highest = max(highest_token_id(tokenizer_file(checkpoint)), *checkpoint.eos_token_ids, -1)
    if highest >= config.vocab_size:
        raise BuildError("INVALID_ARG", "tokenizer", f"id {highest}", f"ids below vocab_size={config.vocab_size}")
    return config


def build_engine(checkpoint: Checkpoint, output: Path, options: EngineOptions, domain: str) -> bool:
    """Builds the engine of `checkpoint` into the folder `output`; returns False when the one there is current.

    `domain` is the drafter's field of expertise or "target". `engine.json` is written last: without it there is no engine.
    """
    config = check_model(checkpoint, options)
    key = build_key(checkpoint, options, domain)
    if stored_build_key(output) == key and (output / MODEL_NAME).is_file():
        return False
    family = FAMILIES[checkpoint.architecture]
    weights: Weights = checkpoint.weights
    if options.expand_to is not None:
        config, weights = family.expand(config, weights, options.expand_to)
    graph = family.export(config, weights, options.context_len)
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    save_model(quantize_weights(graph) if options.precision == "int8" else graph, output / MODEL_NAME)
    copy_tokenizer(checkpoint, output)
    write_manifest(_manifest(checkpoint, config, options, domain, key), output)
    return True


def build_key(checkpoint: Checkpoint, options: EngineOptions, domain: str) -> str:
    """Digest of everything that decides the engine: weights, configuration, tokenizer, options, and the code that draws the graph."""
    sources = [Path(__file__).with_name(f"{module}.py") for module in _DECIDING_MODULES]
    parts = {
        "weights": checkpoint.weights_sha256,
        "config": dict(checkpoint.raw_config),
        "eos": checkpoint.eos_token_ids,
        "tokenizer": sha256_of_files([tokenizer_file(checkpoint)]),
        "options": asdict(options),
        "domain": domain,
        "code": sha256_of_files(sources),
        "onnx": onnx.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def copy_tokenizer(checkpoint: Checkpoint, output: Path) -> None:
    """Copies `tokenizer.json` and, where there is one, `tokenizer_config.json`."""
    output.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, output / name)


def save_model(model: onnx.ModelProto, file: Path) -> None:
    """Writes `model` to `file`; weights go to `<file>.data` beside it when they are too large for one protobuf."""
    data_name = f"{file.name}.data"
    for stale in (file, file.parent / data_name):
        stale.unlink(missing_ok=True)
    num_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save_model(
        model,
        str(file),
        save_as_external_data=num_bytes > MAX_INLINE_BYTES,
        all_tensors_to_one_file=True,
        location=data_name,
        size_threshold=_EXTERNAL_THRESHOLD_BYTES,
    )
    if (file.parent / data_name).is_file():
        # onnx makes it private to this user; the server may run as another.
        (file.parent / data_name).chmod(file.stat().st_mode)


def _manifest(checkpoint: Checkpoint, config: LlamaConfig, options: EngineOptions, domain: str, key: str) -> EngineManifest:
    return EngineManifest(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_len=options.context_len,
        max_step_tokens=options.max_step_tokens,
        eos_token_ids=checkpoint.eos_token_ids,
        precision=options.precision,
        weights_sha256=checkpoint.weights_sha256,
        tokenizer_sha256=sha256_of_files([tokenizer_file(checkpoint)]),
        domain=domain,
        num_params=num_parameters(config),
        build_key=key,
    )
