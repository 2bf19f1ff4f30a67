"""The bytes that each token id stands for, read from a Hugging Face ``tokenizer.json``."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drafthouse.core.errors import invalid, unsupported

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"  # SentencePiece's visible space


def read_token_bytes(tokenizer_file: Path, vocab_size: int) -> tuple[bytes, ...]:
    """Bytes of the token ids 0 … vocab_size - 1; special tokens and ids without an entry have none.

    Reads byte-level BPE (GPT-2, Llama 3) and SentencePiece-style BPE with byte fallback (Llama 2). Raises ClientError for anything else.
    """
    try:
        tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        pieces = dict(tokenizer["model"]["vocab"])
        added = tokenizer.get("added_tokens", [])
        kinds = set(_types_in([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise invalid("tokenizer", str(tokenizer_file), "a readable tokenizer.json with a BPE vocabulary") from error
    if "ByteLevel" in kinds:
        alphabet = byte_level_alphabet()
        table = {token_id: bytes(alphabet[char] for char in piece if char in alphabet) for piece, token_id in pieces.items()}
    elif kinds & {"ByteFallback", "Metaspace"}:
        table = {token_id: _sentencepiece_bytes(piece) for piece, token_id in pieces.items()}
    else:
        raise unsupported("tokenizer", ", ".join(sorted(kinds)) or "none", "ByteLevel, or Metaspace with ByteFallback")
    table |= {token["id"]: b"" if token["special"] else token["content"].encode() for token in added}
    return tuple(table.get(token_id, b"") for token_id in range(vocab_size))


def tail_bytes(token_bytes: Sequence[bytes], token_ids: Sequence[int], num_bytes: int) -> bytes:
    """The last ``num_bytes`` bytes (fewer where there are no more) of the text that ``token_ids`` spell."""
    parts: list[bytes] = []
    missing = num_bytes
    for token_id in reversed(token_ids):
        if missing <= 0:
            break
        parts.append(token_bytes[token_id])
        missing -= len(parts[-1])
    return b"".join(reversed(parts))[-num_bytes:] if num_bytes else b""


def _types_in(node: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Every ``type`` inside a nested JSON value."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _types_in(child)


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's reversible mapping: printable Latin-1 stands for itself, the other bytes for code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _sentencepiece_bytes(piece: str) -> bytes:
    fallback = _BYTE_FALLBACK.fullmatch(piece)
    if fallback:
        return bytes([int(fallback.group(1), 16)])
    return piece.replace(_WORD_START, " ").encode()
