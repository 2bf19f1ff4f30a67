"""Writes `engine.json`, the file beside an engine that the runtime reads as `drafthouse.engine.manifest.EngineManifest`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from drafthouse.core.errors import DrafthouseError
from drafthouse.engine.manifest import MANIFEST_NAME, EngineManifest, read_manifest
from drafthouse_build.checkpoint import Checkpoint, sha256_of_files
from drafthouse_build.config import ModelConfig
from drafthouse_build.shapes import num_parameters
from drafthouse_build.tokenizer import tokenizer_file


def engine_manifest(
    checkpoint: Checkpoint, config: ModelConfig, limits: tuple[int, int], precision: str, domain: str, key: str, vocab_size: int
) -> EngineManifest:
    """What `engine.json` says of an engine; `limits` are `context_len` and `max_step_tokens`, `key` the digest of what it was built from."""
    return EngineManifest(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        vocab_size=vocab_size,
        context_len=limits[0],
        max_step_tokens=limits[1],
        eos_token_ids=checkpoint.eos_token_ids,
        precision=precision,
        weights_sha256=checkpoint.weights_sha256,
        tokenizer_sha256=sha256_of_files([tokenizer_file(checkpoint)]),
        domain=domain,
        num_params=num_parameters(config),
        build_key=key,
    )


def write_manifest(manifest: EngineManifest, folder: Path) -> None:
    """Writes `engine.json` into `folder` in one step, so that it is there only when it is complete."""
    temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST_NAME)


def stored_build_key(folder: Path) -> str | None:
    """The `build_key` of the engine in `folder`; None when there is none that today's runtime can read."""
    try:
        return read_manifest(folder).build_key
    except DrafthouseError:
        return None
