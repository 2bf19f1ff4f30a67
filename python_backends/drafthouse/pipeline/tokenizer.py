"""Text to token ids and token ids to bytes, for byte-level BPE tokenizers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tokenizers


class Tokenizer(Protocol):
    """What the front door and the detokenizer need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text; the first one is the default `end_id`."""
        ...

    @property
    def max_token_bytes(self) -> int:
        """Length of the longest token: bounds how much text can fit a context before tokenizing it."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Token ids, with the special tokens that the model expects at the start (none for the demo models)."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What the token contributes to the text: b"" for special tokens and ids outside the vocabulary."""
        ...


def byte_level_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each of the 256 bytes (GPT-2, `bytes_to_unicode`).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


class ByteLevelTokenizer:
    """A `tokenizer.json` of the byte-level BPE kind (GPT-2, Llama 3, Qwen, the demo models)."""

    def __init__(self, tokenizer_json: str, eos_ids: Sequence[int]) -> None:
        decoder = json.loads(tokenizer_json).get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            raise ValueError(f"tokenizer.json: decoder {decoder.get('type')!r} is not supported, only 'ByteLevel'")
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._token_bytes = _bytes_table(self._tokenizer)
        self.eos_ids = tuple(eos_ids)
        self.vocab_size = len(self._token_bytes)
        self.max_token_bytes = max(len(value) for value in self._token_bytes)

    @classmethod
    def load(cls, folder: Path) -> "ByteLevelTokenizer":
        """From a Hugging Face folder: `tokenizer.json`, and the end-of-text ids from the files beside it."""
        tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
        return cls(tokenizer_json, read_eos_ids(folder))

    def encode(self, text: str) -> Sequence[int]:
        """See `Tokenizer.encode`. Special tokens written out in the text are recognised, as chat templates need."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._token_bytes[token_id] if 0 <= token_id < self.vocab_size else b""


def _bytes_table(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    alphabet = byte_level_alphabet()
    added = tokenizer.get_added_tokens_decoder()
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocab.values()) + 1)
    for text, token_id in vocab.items():
        if token_id in added:
            # An added token is stored as text, not in the byte alphabet; a special one is no text at all.
            table[token_id] = b"" if added[token_id].special else text.encode()
        else:
            table[token_id] = bytes(alphabet[character] for character in text)
    return table


def read_eos_ids(folder: Path) -> tuple[int, ...]:
    """`eos_token_id` of `generation_config.json`, else of `config.json`; () when neither names one."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return tuple(value) if isinstance(value, list) else (value,)
    return ()
