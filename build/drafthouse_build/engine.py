"""One checkpoint folder → one engine folder: `model.onnx`, `engine.json`, the tokenizer's files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx

from drafthouse_build.checkpoint import Checkpoint, Weights, sha256_of_files
from drafthouse_build.config import LlamaConfig, parse_llama_config
from drafthouse_build.errors import BuildError
from drafthouse_build.expand import expand, plan_expansion
from drafthouse_build.llama import check_weights, export_llama, num_parameters
from drafthouse_build.manifest import MANIFEST_NAME, EngineManifest, stored_build_key
from drafthouse_build.quantize import quantize_weights

Precision = Literal["fp32", "int8"]
MODEL_NAME = "model.onnx"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_NAME, "tokenizer_config.json")
# protobuf stops at 2 GB.
MAX_INLINE_BYTES = 1_500_000_000
_EXTERNAL_THRESHOLD_BYTES = 1024


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
class Model:
    """What a model family hands to the export: its shape and its weights, possibly grown."""

    config: LlamaConfig
    weights: Weights


def load_llama(checkpoint: Checkpoint, options: EngineOptions) -> Model:
    """Reads a Llama checkpoint and grows it when the options say so."""
    config = parse_llama_config(checkpoint.raw_config)
    check_weights(config, checkpoint.weights)
    if options.context_len > config.max_positions:
        raise BuildError("INVALID_ARG", "context_len", options.context_len, f"up to max_position_embeddings={config.max_positions}")
    if options.expand_to is None:
        return Model(config, checkpoint.weights)
    return Model(*expand(config, checkpoint.weights, plan_expansion(config, options.expand_to)))


# A new family adds its loader here, and its graph beside llama.py.
FAMILIES: Mapping[str, Callable[[Checkpoint, EngineOptions], Model]] = {"LlamaForCausalLM": load_llama}


def check_architecture(checkpoint: Checkpoint) -> None:
    """Raises `BuildError` naming an architecture for which there is no graph."""
    if checkpoint.architecture not in FAMILIES:
        raise BuildError("UNSUPPORTED", "architectures", checkpoint.architecture, FAMILIES)


def build_engine(checkpoint: Checkpoint, output: Path, options: EngineOptions, domain: str) -> bool:
    """Builds the engine of `checkpoint` into the folder `output`; returns False when the one there is current.

    `domain` is the drafter's field of expertise or "target". `engine.json` is written last: without it there is no engine.
    """
    check_architecture(checkpoint)
    tokenizer = checkpoint.folder / TOKENIZER_NAME
    if not tokenizer.is_file():
        raise BuildError("INVALID_ARG", "tokenizer", tokenizer, "an existing tokenizer.json")
    key = build_key(checkpoint, options, domain)
    if stored_build_key(output) == key and (output / MODEL_NAME).is_file():
        return False
    model = FAMILIES[checkpoint.architecture](checkpoint, options)
    graph = export_llama(model.config, model.weights, options.context_len)
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    save_model(quantize_weights(graph) if options.precision == "int8" else graph, output / MODEL_NAME)
    copy_tokenizer(checkpoint, output)
    _manifest(checkpoint, model, options, domain, key).write(output)
    return True


def build_key(checkpoint: Checkpoint, options: EngineOptions, domain: str) -> str:
    """Digest of everything that decides the engine: weights, configuration, tokenizer, options, and this package's code."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    parts = {
        "weights": checkpoint.weights_sha256,
        "config": dict(checkpoint.raw_config),
        "eos": checkpoint.eos_token_ids,
        "tokenizer": sha256_of_files([checkpoint.folder / TOKENIZER_NAME]),
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


def _manifest(checkpoint: Checkpoint, model: Model, options: EngineOptions, domain: str, key: str) -> EngineManifest:
    config = model.config
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
        tokenizer_sha256=sha256_of_files([checkpoint.folder / TOKENIZER_NAME]),
        domain=domain,
        num_params=num_parameters(config),
        build_key=key,
    )
