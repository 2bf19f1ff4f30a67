"""The target's tokenizer as the gateway needs it: ids of a rendered chat, texts of tokens."""

import asyncio
from pathlib import Path

import tokenizers

from drafthouse.core.errors import invalid
from drafthouse.sampling.vocabulary import read_token_bytes

_FILE = "tokenizer.json"
_LONG_CHARS = 4096  # from here on tokenizing takes longer than handing it to a thread


class Vocabulary:
    """A Hugging Face `tokenizer.json`. Errors: ClientError when it cannot be read or is of an unsupported kind."""

    def __init__(self, folder: Path) -> None:
        file = folder / _FILE
        if not file.is_file():
            raise invalid("tokenizer", str(folder), f"a folder with {_FILE}")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._bytes = read_token_bytes(file, size)

    async def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Ids of a rendered chat template, which wrote its special tokens itself: none are added."""
        if len(text) < _LONG_CHARS:
            return self._encode(text)
        return await asyncio.to_thread(self._encode, text)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text; b"" for special tokens and unknown ids."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def token_text(self, token_id: int) -> str:
        """The same as text; a part of a character becomes U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
