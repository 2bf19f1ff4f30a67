"""`engine.json`, the file beside `model.onnx` that tells the runtime what it has loaded."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drafthouse_build.errors import BuildError

MANIFEST_NAME = "engine.json"


@dataclass(frozen=True)
class EngineManifest:
    """Shape and origin of an engine.

    `context_len` is S, the rows of a KV cache; `max_step_tokens` the largest T of one call (a prefill chunk or a draft tree), so that a
    sequence may be `context_len - max_step_tokens` long. `build_key` is a digest of everything the file was made from.
    """

    num_layers: int
    num_kv_heads: int
    num_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_len: int
    max_step_tokens: int
    eos_token_ids: tuple[int, ...]
    precision: str
    weights_sha256: str
    tokenizer_sha256: str
    domain: str
    num_params: int
    build_key: str

    def __post_init__(self) -> None:
        if not 2 <= self.max_step_tokens < self.context_len:
            raise BuildError("INVALID_ARG", "max_step_tokens", self.max_step_tokens, f"2 to {self.context_len - 1} (context_len - 1)")

    def write(self, folder: Path) -> None:
        """Writes `engine.json` into `folder` in one step, so that it is there only when it is complete."""
        temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / MANIFEST_NAME)


def stored_build_key(folder: Path) -> str | None:
    """The `build_key` of the engine in `folder`; None when there is none or the file cannot be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    key = manifest.get("build_key")
    return key if isinstance(key, str) else None
