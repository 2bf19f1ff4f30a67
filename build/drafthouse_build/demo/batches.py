"""Packing of documents into rows and of rows into training steps."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from drafthouse_build.demo.config import EOS_ID
from drafthouse_build.demo.tokenizer import TokenIds

IGNORED_LABEL = -100
_STEPS_PER_BLOCK = 32
# A little more text than fits, so that every step of a block is full.
_OVERDRAW = 1.01

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class MixedBatches:
    """An endless, seeded sequence of training steps over documents of several domains.

    Blocks of documents are drawn so that every domain gets its share of the tokens, and are packed into
    rows by best fit (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3): documents
    are cut only when they are longer than a row, and every row starts at a document or at such a cut.
    """

    def __init__(
        self,
        documents: Mapping[str, Sequence[TokenIds]],
        mixture: Mapping[str, float],
        tokens_per_step: int,
        row_tokens: int,
        long_row_tokens: int,
        long_row_every: int,
        seed: int,
    ) -> None:
        total = sum(mixture[domain] for domain in documents)
        self._shares = {domain: mixture[domain] / total for domain in documents}
        self._tokens_per_step = tokens_per_step
        self._row_tokens = row_tokens
        self._long_row_tokens = long_row_tokens
        self._long_row_every = long_row_every
        self._rng = np.random.default_rng(seed)
        self._streams = {
            domain: _endless(texts, np.random.default_rng([seed, index])) for index, (domain, texts) in enumerate(documents.items())
        }

    def __iter__(self) -> Iterator[Batch]:
        """Yield ``(inputs, labels)``, each int64 of shape [rows, row length]."""
        while True:
            long_steps = _STEPS_PER_BLOCK // self._long_row_every
            steps = [
                *self._block(_STEPS_PER_BLOCK - long_steps, self._row_tokens),
                *self._block(long_steps, self._long_row_tokens),
            ]
            for index in self._rng.permutation(len(steps)):
                yield steps[index]

    def _block(self, num_steps: int, row_tokens: int) -> list[Batch]:
        rows_per_step = max(1, self._tokens_per_step // row_tokens)
        wanted = num_steps * rows_per_step
        pieces: list[TokenIds] = []
        for domain, share in self._shares.items():
            room = share * wanted * (row_tokens + 1) * _OVERDRAW
            while room > 0:
                document = next(self._streams[domain])
                pieces.extend(document[i : i + row_tokens + 1] for i in range(0, len(document), row_tokens + 1))
                room -= len(document)
        rows = pack_rows(pieces, row_tokens + 1)
        order = self._rng.permutation(len(rows))[:wanted]
        return [
            rows_to_batch([rows[i] for i in order[s : s + rows_per_step]], row_tokens)
            for s in range(0, len(order) - rows_per_step + 1, rows_per_step)
        ]


def _endless(documents: Sequence[TokenIds], rng: np.random.Generator) -> Iterator[TokenIds]:
    while True:
        for index in rng.permutation(len(documents)):
            yield documents[index]


def pack_rows(pieces: Sequence[TokenIds], capacity: int) -> list[TokenIds]:
    """Join pieces of at most ``capacity`` tokens into rows of at most ``capacity`` by best fit, longest first."""
    rows: list[list[TokenIds]] = []
    room_left: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for piece in sorted(pieces, key=len, reverse=True):
        slot = bisect_left(room_left, (len(piece), -1))
        if slot < len(room_left):
            free, row = room_left.pop(slot)
            rows[row].append(piece)
        else:
            free, row = capacity, len(rows)
            rows.append([piece])
        if free - len(piece) > 1:
            insort(room_left, (free - len(piece), row))
    return [np.concatenate(row) for row in rows]


def rows_to_batch(rows: Sequence[TokenIds], row_tokens: int) -> Batch:
    """Inputs and next-token labels, padded to ``row_tokens`` with the end token and an ignored label."""
    inputs = np.full((len(rows), row_tokens), EOS_ID, dtype=np.int64)
    labels = np.full((len(rows), row_tokens), IGNORED_LABEL, dtype=np.int64)
    for index, row in enumerate(rows):
        inputs[index, : len(row) - 1] = row[:-1]
        labels[index, : len(row) - 1] = row[1:]
    return inputs, labels
