"""Which tokens must not come next, given the text so far.

``bad_words`` are banned as text, not as token sequences: a token is banned when its bytes complete an occurrence of a word, inside the
token or across its border with what comes before (the prompt's end included), however the word may be split into tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.sampling.vocabulary import tail_bytes

IntArray = NDArray[np.int64]
_NOTHING: IntArray = np.empty(0, np.int64)
_WORDS_KEPT = 256


@dataclass(frozen=True, slots=True)
class _WordIndex:
    """Tokens that complete one word: by themselves, or after a tail that ends with ``word[:split]``."""

    word: bytes
    inside: IntArray
    after_split: tuple[IntArray, ...]  # [len(word) - 1], for splits 1, 2, …


class BanTable:
    """Bans for one vocabulary (``token_bytes`` by token id); what it worked out for a word is kept for the next request."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._by_bytes = sorted((text, token_id) for token_id, text in enumerate(token_bytes) if text)
        self._sorted_bytes = [text for text, _ in self._by_bytes]
        self._index = lru_cache(maxsize=_WORDS_KEPT)(self._build_index)

    def banned(self, params: SamplingParams, path: Sequence[int], position: int) -> IntArray:
        """Token ids, ascending, that must not be chosen at ``position`` after the tokens ``path`` (its end is enough).

        Were every token banned, the bad words would give way and only the end tokens stay banned.
        """
        ends = end_ban(params, position)
        if not params.bad_words:
            return ends
        tail = tail_bytes(self._token_bytes, path, max(map(len, params.bad_words)) - 1)
        parts = [ends]
        for word in params.bad_words:
            index = self._index(word)
            parts.append(index.inside)
            parts += [tokens for split, tokens in enumerate(index.after_split, 1) if tail.endswith(word[:split])]
        union = np.unique(np.concatenate(parts))
        return ends if len(union) == len(self._token_bytes) else union

    def _build_index(self, word: bytes) -> _WordIndex:
        inside = [token_id for token_id, text in enumerate(self._token_bytes) if word in text]
        splits = tuple(self._starting_with(word[split:]) for split in range(1, len(word)))
        return _WordIndex(word, np.array(inside, np.int64), splits)

    def _starting_with(self, prefix: bytes) -> IntArray:
        found = []
        place = bisect_left(self._sorted_bytes, prefix)
        while place < len(self._sorted_bytes) and self._sorted_bytes[place].startswith(prefix):
            found.append(self._by_bytes[place][1])
            place += 1
        return np.array(found, np.int64)


def end_ban(params: SamplingParams, position: int) -> IntArray:
    """The end tokens, ascending, while ``min_tokens`` is not reached."""
    if not params.end_ids or position >= params.min_end_position:
        return _NOTHING
    return np.array(sorted(params.end_ids), np.int64)
