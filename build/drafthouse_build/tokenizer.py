"""Target and drafters exchange token ids, so their tokenizers must give every id the same meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drafthouse_build.checkpoint import Checkpoint
from drafthouse_build.errors import BuildError

TOKENIZER_NAME = "tokenizer.json"
# What turns text and messages into ids: the tokenizer, its special tokens, and the chat template (in one of the three places it may lie).
TOKENIZER_FILES = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
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

    Compared are vocabulary, merges and added tokens. How text is split does not matter: only the target's tokenizer sees text. A token
    that was added to one of them alone, under an id that the other does not use, is no difference: the drafter never proposes it.
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
    free = _added_alone(expected, found) | _added_alone(found, expected)
    names = [name for name in dict.fromkeys([*expected, *found]) if name not in free]
    return [
        f"{name} target={_shown(expected, name)} drafter={_shown(found, name)}" for name in names if expected.get(name) != found.get(name)
    ]


def highest_token_id(tokenizer: Path) -> int:
    """The largest id of the vocabulary itself; added tokens may lie beyond it."""
    return max(_vocabulary(_parse(tokenizer, tokenizer.read_bytes())).values(), default=-1)


def tokenizer_files(checkpoint: Checkpoint, vocab_size: int) -> dict[str, bytes]:
    """What to put beside a model of `vocab_size` ids, by name: `tokenizer.json`; special tokens and chat template where there are any."""
    files = {name: checkpoint.folder / name for name in TOKENIZER_FILES}
    contents = {name: file.read_bytes() for name, file in files.items() if file.is_file()}
    contents[TOKENIZER_NAME] = _without_strangers(tokenizer_file(checkpoint), vocab_size)
    return contents


def _without_strangers(tokenizer: Path, vocab_size: int) -> bytes:
    """The file as it is, but without added tokens that the model has no embedding for.

    Text-only models come with such tokens (Gemma 3's `<image_soft_token>`): what spells one is then text like any other.
    """
    raw = tokenizer.read_bytes()
    content = _parse(tokenizer, raw)
    added = content.get("added_tokens") or []
    kept = [token for token in added if int(token["id"]) < vocab_size]
    if len(kept) == len(added):
        return raw
    return json.dumps({**content, "added_tokens": kept}, ensure_ascii=False, indent=2).encode()


def shared_token_ids(target: Path, drafter: Path) -> set[int]:
    """The ids that mean the same token in both."""
    ours, theirs = (_meanings(_parse(file, file.read_bytes())) for file in (target, drafter))
    return {token_id for token_id, token in ours.items() if theirs.get(token_id) == token}


def _meanings(content: Mapping[str, Any]) -> dict[int, str]:
    """Token by id."""
    meanings = {token_id: token for token, token_id in _vocabulary(content).items()}
    return meanings | {int(token["id"]): str(token["content"]) for token in content.get("added_tokens") or []}


def _added_alone(ours: Mapping[str, object], theirs: Mapping[str, object]) -> set[str]:
    """Added tokens that only `ours` has, under ids that `theirs` gives to nobody."""
    taken = {_id_of(value) for name, value in theirs.items() if name.startswith(("token ", "added token "))}
    return {name for name, value in ours.items() if name.startswith("added token ") and name not in theirs and _id_of(value) not in taken}


def _id_of(value: object) -> object:
    return value["id"] if isinstance(value, Mapping) else value


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
