"""Text to token ids and token ids to bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tokenizers

from drafthouse.core.errors import invalid
from drafthouse.sampling.vocabulary import read_token_bytes


class Tokenizer(Protocol):
    """What the front door and the detokenizer need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text, unless a request names another `end_id`."""
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


class FileTokenizer:
    """A Hugging Face `tokenizer.json`; the bytes of each id are read as the engines read them, for `bad_words`."""

    def __init__(self, tokenizer_file: Path, eos_ids: Sequence[int]) -> None:
        """Raises ClientError when the file cannot be read or is of a kind that is not supported."""
        if not tokenizer_file.is_file():
            raise invalid("tokenizer", str(tokenizer_file), "a readable tokenizer.json with a BPE vocabulary")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._token_bytes = read_token_bytes(tokenizer_file, self.vocab_size)
        self.eos_ids = tuple(eos_ids)
        self.max_token_bytes = max(len(value) for value in self._token_bytes)

    def encode(self, text: str) -> Sequence[int]:
        """See `Tokenizer.encode`. Special tokens written out in the text are recognised, as chat templates need."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._token_bytes[token_id] if 0 <= token_id < self.vocab_size else b""
