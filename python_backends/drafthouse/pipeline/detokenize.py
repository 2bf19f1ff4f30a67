"""Text out of tokens, piece by piece: never half a character, never part of a stop word."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to the text."""

    text: str  # safe to show: complete characters that cannot belong to a stop word any more
    stopped: bool  # the token completed a stop word; the text ends before that word


class Detokenizer:
    """The text of one request, as it grows.

    A stop word counts when a token that may stop completes it, even if it began in earlier tokens. Of several in one
    token the one that ends first counts, so the result does not depend on how the text is cut into tokens.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop_words: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._stop_words = tuple(stop_words)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the longest end of the text so far that may still become a stop word

    def push(self, token_id: int, may_stop: bool = True) -> Piece:
        """Append a token. After a piece with ``stopped`` neither `push` nor `flush` may be called."""
        new = self._decoder.decode(self._token_bytes(token_id))
        if not self._stop_words:
            return Piece(new, False)
        num_old = len(self._held)
        text = self._held + new
        if may_stop:
            start = _first_stop(text, self._stop_words, num_old)
            if start is not None:
                return Piece(text[:start], True)
        num_held = _num_held(text, self._stop_words)
        self._held = text[len(text) - num_held :]
        return Piece(text[: len(text) - num_held], False)

    def flush(self) -> str:
        """The rest of the text at its end; bytes that never became a character turn into U+FFFD."""
        return self._held + self._decoder.decode(b"", final=True)


def _first_stop(text: str, stop_words: Sequence[str], num_old: int) -> int | None:
    """Where the stop word starts that ends first after ``text[:num_old]``; the longest of those that end there."""
    best: tuple[int, int] | None = None
    for word in stop_words:
        start = text.find(word, max(0, num_old - len(word) + 1))
        if start >= 0 and (best is None or (start + len(word), start) < best):
            best = (start + len(word), start)
    return None if best is None else best[1]


def _num_held(text: str, stop_words: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that is a beginning (not the whole) of a stop word."""
    longest = 0
    for word in stop_words:
        for length in range(min(len(word) - 1, len(text)), longest, -1):
            if text.endswith(word[:length]):
                longest = length
                break
    return longest
