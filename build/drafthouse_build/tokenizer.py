"""Target and drafters exchange token ids, so their tokenizers must give every id the same meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drafthouse_build.checkpoint import Checkpoint
from drafthouse_build.errors import BuildError

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_NAME, "tokenizer_config.json")
_MAX_NAMED = 5
_ADDED_TOKEN_KEYS = ("id", "special", "normalized", "lstrip", "rstrip", "single_word")


def tokenizer_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's `tokenizer.json`; raises `BuildError` when there is none."""
    file = checkpoint.folder / TOKENIZER_NAME
    if not file.is_file():
        raise BuildError("INVALID_ARG", "tokenizer", file, "an existing tokenizer.json")
    return file


def check_same_tokenizer(target: Path, drafter: Path, name: str) -> None:
    """Raises `BuildError` naming up to five entries in which `drafter`'s tokenizer.json differs from `target`'s.

    Compared are vocabulary, merges and added tokens. How text is split does not matter: only the target's tokenizer sees text.
    """
    differences = tokenizer_differences(target, drafter)
    if differences:
        named = "; ".join(differences[:_MAX_NAMED])
        value = f"{len(differences)} differing entries: {named}"
        raise BuildError("INVALID_ARG", f"tokenizer of drafter {name}", value, "the target's vocabulary, merges and added tokens")


def tokenizer_differences(target: Path, drafter: Path) -> list[str]:
    """Every difference that matters, one sentence each, in a fixed order; empty when ids mean the same."""
    ours, theirs = target.read_bytes(), drafter.read_bytes()
    if ours == theirs:
        return []
    expected, found = _entries(_parse(target, ours)), _entries(_parse(drafter, theirs))
    names = list(dict.fromkeys([*expected, *found]))
    return [
        f"{name} target={_shown(expected, name)} drafter={_shown(found, name)}" for name in names if expected.get(name) != found.get(name)
    ]


def highest_token_id(tokenizer: Path) -> int:
    """The largest id that the tokenizer can produce."""
    content = _parse(tokenizer, tokenizer.read_bytes())
    ids = [*_vocabulary(content).values(), *(int(token["id"]) for token in content.get("added_tokens") or [])]
    return max(ids, default=-1)


def _parse(file: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise BuildError("INVALID_ARG", "tokenizer", file, f"readable JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise BuildError("INVALID_ARG", "tokenizer", file, "a tokenizer.json of the tokenizers library")
    return value


def _entries(content: Mapping[str, Any]) -> dict[str, object]:
    """Everything that gives ids their meaning, flattened to one name per entry."""
    entries: dict[str, object] = {"model type": content["model"].get("type")}
    entries.update({f"token {token!r}": index for token, index in _vocabulary(content).items()})
    for rank, merge in enumerate(content["model"].get("merges") or []):
        pair = merge if isinstance(merge, str) else " ".join(merge)
        entries[f"merge {pair!r}"] = rank
    for token in content.get("added_tokens") or []:
        entries[f"added token {token['content']!r}"] = {key: token.get(key) for key in _ADDED_TOKEN_KEYS}
    return entries


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    """Token → id. Unigram models hold a list of [token, score] instead; the score decides how text is split, not what an id means."""
    vocabulary = content["model"].get("vocab") or {}
    if isinstance(vocabulary, list):
        return {entry[0]: index for index, entry in enumerate(vocabulary)}
    return dict(vocabulary)


def _shown(entries: Mapping[str, object], name: str) -> str:
    if name not in entries:
        return "none"
    value = entries[name]
    return json.dumps(value) if isinstance(value, dict) else str(value)
