"""One checkpoint folder → one engine folder: `model.onnx`, `engine.json`, the tokenizer's files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import onnx

from drafthouse.engine.manifest import MANIFEST_NAME, EngineManifest
from drafthouse_build.checkpoint import Checkpoint, Weights, sha256_of_files
from drafthouse_build.config import ModelConfig, parse_config
from drafthouse_build.decoder import export_decoder
from drafthouse_build.errors import BuildError
from drafthouse_build.expand import expand_to, plan_expansion
from drafthouse_build.manifest import stored_build_key, write_manifest
from drafthouse_build.model_file import Precision, Progress, write_model
from drafthouse_build.shapes import check_shapes, num_parameters
from drafthouse_build.tokenizer import TOKENIZER_FILES, highest_token_id, tokenizer_file, tokenizer_files
from drafthouse_build.vocabulary import Vocabulary

MODEL_NAME = "model.onnx"
_DECIDING_MODULES = (
    "attention",
    "checkpoint",
    "config",
    "decoder",
    "engine",
    "expand",
    "families",
    "graph",
    "model_file",
    "quantize",
    "rope",
    "rope_config",
    "shapes",
    "tokenizer",
    "vocabulary",
    "weight_store",
)


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


def check_model(checkpoint: Checkpoint, options: EngineOptions) -> ModelConfig:
    """The checkpoint's configuration; raises `BuildError` when no engine can be built from it."""
    config = parse_config(checkpoint.raw_config)
    check_shapes(config, checkpoint.weights.shapes, checkpoint.architecture)
    if options.expand_to is not None:
        plan_expansion(config, options.expand_to)
    config.check_context(options.context_len, options.max_step_tokens)
    highest = max(highest_token_id(tokenizer_file(checkpoint)), *checkpoint.eos_token_ids, -1)
    if highest >= config.vocab_size:
        raise BuildError("INVALID_ARG", "tokenizer", f"id {highest}", f"ids below vocab_size={config.vocab_size}")
    return config


def build_engine(
    checkpoint: Checkpoint,
    output: Path,
    options: EngineOptions,
    domain: str,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
) -> bool:
    """Builds the engine of `checkpoint` into the folder `output`; returns False when the one there is current.

    `domain` is the drafter's field of expertise or "target"; `vocabulary` are the ids that a drafter shares with its target, None for the
    checkpoint's own. `progress` is told again and again how many bytes of how many are written. `engine.json` is written last: without it
    there is no engine.
    """
    config = check_model(checkpoint, options)
    key = build_key(checkpoint, options, domain, vocabulary)
    if stored_build_key(output) == key and (output / MODEL_NAME).is_file():
        return False
    weights: Weights = checkpoint.weights
    if options.expand_to is not None:
        config, weights = expand_to(config, weights, options.expand_to)
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    draw = partial(export_decoder, config, weights, options.context_len, vocabulary)
    write_model(draw, output / MODEL_NAME, 4 * num_parameters(config), options.precision, progress)
    complete_engine(checkpoint, config, options, domain, key, vocabulary, output)
    return True


def build_key(checkpoint: Checkpoint, options: EngineOptions, domain: str, vocabulary: Vocabulary | None = None) -> str:
    """Digest of everything that decides the engine: weights, configuration, tokenizer, options, and the code that draws the graph."""
    sources = [Path(__file__).with_name(f"{module}.py") for module in _DECIDING_MODULES]
    parts = {
        "weights": checkpoint.weights_sha256,
        "config": dict(checkpoint.raw_config),
        "eos": checkpoint.eos_token_ids,
        "tokenizer": sha256_of_files([checkpoint.folder / name for name in TOKENIZER_FILES if (checkpoint.folder / name).is_file()]),
        "vocabulary": None if vocabulary is None else vocabulary.digest(),
        "options": asdict(options),
        "domain": domain,
        "code": sha256_of_files(sources),
        "onnx": onnx.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def complete_engine(
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: EngineOptions,
    domain: str,
    key: str,
    vocabulary: Vocabulary | None,
    output: Path,
    precision: str | None = None,
) -> None:
    """Writes what every engine has beside its graph or plan: the tokenizer's files, and last `engine.json`."""
    vocab_size = config.vocab_size if vocabulary is None else vocabulary.size
    for name, content in tokenizer_files(checkpoint, vocab_size).items():
        (output / name).write_bytes(content)
    manifest = engine_manifest(checkpoint, config, options, domain, key, vocab_size)
    write_manifest(manifest if precision is None else replace(manifest, precision=precision), output)


def engine_manifest(
    checkpoint: Checkpoint, config: ModelConfig, options: EngineOptions, domain: str, key: str, vocab_size: int
) -> EngineManifest:
    """What `engine.json` says of an engine."""
    return EngineManifest(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        vocab_size=vocab_size,
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
