"""``engine.json``, the file beside an engine that says what it is; `drafthouse build` writes it."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from drafthouse.core.errors import invalid

MANIFEST_NAME = "engine.json"
CONTEXT_LEN_KEY = "context_len"  # in the metadata of the graph, whose own shapes leave it open


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """Shape and origin of an engine."""

    num_layers: int
    num_kv_heads: int
    num_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_len: int  # rows of a slot's cache (S)
    max_step_tokens: int  # largest number of tokens per row and call
    eos_token_ids: tuple[int, ...]
    precision: str
    weights_sha256: str
    tokenizer_sha256: str
    domain: str  # a drafter's field of expertise, or "target"
    num_params: int
    build_key: str

    @property
    def usable_context(self) -> int:
        """Highest committed length: a whole step must still fit behind it."""
        return self.context_len - self.max_step_tokens


def read_manifest(folder: Path) -> EngineManifest:
    """Reads ``engine.json`` in ``folder``; raises ClientError for an unknown, missing or wrong entry."""
    file = folder / MANIFEST_NAME
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise invalid(MANIFEST_NAME, str(file), "a readable JSON object: rebuild the engine") from error
    if not isinstance(raw, dict):
        raise invalid(MANIFEST_NAME, type(raw).__name__, "a JSON object")
    types = {entry.name: entry.type for entry in fields(EngineManifest)}
    for key in sorted(raw.keys() ^ types.keys()):
        raise invalid(key, "unknown" if key in raw else "missing", f"the entries {', '.join(types)}: rebuild the engine")
    for key, value in raw.items():
        raw[key] = _checked(key, value, types[key])
    manifest = EngineManifest(**raw)
    if not 2 <= manifest.max_step_tokens < manifest.context_len:
        raise invalid("max_step_tokens", manifest.max_step_tokens, f"2 to context_len - 1 = {manifest.context_len - 1}")
    return manifest


def _checked(key: str, value: object, expected: object) -> object:
    if expected is str and isinstance(value, str):
        return value
    if expected is int and _is_count(value) and value != 0:
        return value
    if expected == tuple[int, ...] and isinstance(value, list) and all(map(_is_count, value)):
        return tuple(value)
    raise invalid(key, value, "text" if expected is str else "a positive integer" if expected is int else "a list of token ids")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
