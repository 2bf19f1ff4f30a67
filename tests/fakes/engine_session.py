"""A network that is arithmetic: it "predicts" from the tokens that a position really sees, and records every call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.contract import EngineError
from drafthouse.engine.costs import Shape
from drafthouse.engine.engine import ModelEngine
from drafthouse.engine.manifest import EngineManifest
from drafthouse.engine.options import EngineOptions
from drafthouse.sampling.choose import Chooser


def fake_manifest(*, context_len: int = 32, max_step_tokens: int = 8, vocab_size: int = 50) -> EngineManifest:
    return EngineManifest(1, 1, 1, 2, 2, vocab_size, context_len, max_step_tokens, (0,), "fp32", "w", "t", "fake", 1, "k")


@dataclass
class FakeStep:
    """Buffers of one call; `run` is the network."""

    session: FakeSession
    first_slot: int
    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    write_indices: NDArray[np.int64]
    attn_mask: NDArray[np.bool_]
    unpack_indices: NDArray[np.int64]
    pack_indices: NDArray[np.int64]
    logits: NDArray[np.float32]

    def run(self) -> None:
        self.session.run(self)


@dataclass
class FakeSession:
    """The cache row of a token holds the token itself; the next token is (sum of seen tokens + position) mod V.

    `fail_at` and `nan_at` are slots whose next call fails, or answers NaN; `fail_after` calls of a slot go well before that.
    """

    manifest: EngineManifest
    slots: int
    fail_at: set[int] = field(default_factory=set)
    fail_after: int = 0
    nan_at: set[int] = field(default_factory=set)
    calls: list[tuple[int, int, int, int]] = field(default_factory=list)  # first slot, rows, places, packed tokens
    copies: list[tuple[int, list[int], list[int]]] = field(default_factory=list)
    cleared: list[tuple[int, int]] = field(default_factory=list)  # slot, from row

    def __post_init__(self) -> None:
        self.cache = np.zeros((self.slots, self.manifest.context_len), np.int64)
        self.num_rows = self.manifest.context_len

    @property
    def pool_bytes(self) -> int:
        return self.cache.nbytes

    def make_chooser(self) -> Chooser:
        return Chooser(self.manifest.vocab_size)

    def resize(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.cache[:, num_rows:] = 0

    def bind(self, first_slot: int, num_rows: int, num_tokens: int, num_packed: int) -> FakeStep:
        packed, rows, rectangle = (num_packed,), (num_rows,), (num_rows, num_tokens)
        # What a call leaves to chance is out of range.
        ids, positions, starts, unpack, pack = (np.full(shape, -99) for shape in (packed, rectangle, rows, rectangle, packed))
        mask = np.zeros((num_rows, 1, num_tokens, self.num_rows), np.bool_)
        logits = np.zeros((num_packed, self.manifest.vocab_size), np.float32)
        return FakeStep(self, first_slot, ids, positions, starts, mask, unpack, pack, logits)

    def copy_rows(self, slot: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        self.copies.append((slot, sources.tolist(), destinations.tolist()))
        self.cache[slot, destinations] = self.cache[slot, sources]

    def clear_slot(self, slot: int, first_row: int = 0) -> None:
        self.cleared.append((slot, first_row))
        self.cache[slot, first_row:] = 0

    def run(self, step: FakeStep) -> None:
        num_rows, num_tokens = step.unpack_indices.shape
        num_packed = len(step.input_ids)
        self.calls.append((step.first_slot, num_rows, num_tokens, num_packed))
        if (step.write_indices + num_tokens > self.num_rows).any():
            raise EngineError("a row reaches past the cache")
        for low, indices, high in ((0, step.unpack_indices, num_packed), (0, step.pack_indices, num_rows * num_tokens)):
            assert ((low <= indices) & (indices < high)).all()
        seen = np.zeros((num_rows, num_tokens), np.int64)
        for row in range(num_rows):
            slot, start = step.first_slot + row, int(step.write_indices[row])
            if slot in self.fail_at:
                self.fail_after -= 1
                if self.fail_after < 0:
                    self.fail_at.remove(slot)
                    raise EngineError("out of memory")
            self.cache[slot, start : start + num_tokens] = step.input_ids[step.unpack_indices[row]]
            seen[row] = step.attn_mask[row, 0] @ self.cache[slot, : self.num_rows]
        answers = (seen + step.position_ids).reshape(-1)[step.pack_indices] % self.manifest.vocab_size
        step.logits[:] = 0
        step.logits[np.arange(num_packed), answers] = 9
        for slot in self.nan_at & set(range(step.first_slot, step.first_slot + num_rows)):
            self.nan_at.remove(slot)
            step.logits[step.pack_indices // num_tokens == slot - step.first_slot] = np.nan


def predicted(tokens: list[int], vocab_size: int = 50) -> int:
    """What the fake network says after `tokens` from position 0."""
    return (sum(tokens) + len(tokens) - 1) % vocab_size


def call_times(by_length: Mapping[int, float], *, place_ms: float, row_ms: float) -> dict[Shape, float]:
    """What an engine of at least 16 tokens a step would have measured: rows of those lengths, empty places, further rows."""
    least = min(by_length)
    rows = {(1, length, length): ms for length, ms in by_length.items()}
    return rows | {(1, 16, least): by_length[least] + (16 - least) * place_ms, (3, least, least): by_length[least] + 2 * row_ms}


def fake_engine(slots: int = 4, *, token_bytes: tuple[bytes, ...] = ()) -> tuple[ModelEngine, FakeSession]:
    """An engine over a `FakeSession`: 32 cache rows, steps of up to 8 tokens, 50 token ids."""
    session = FakeSession(fake_manifest(), slots)
    return ModelEngine(session, session.manifest, EngineOptions(slots=slots, calibration_ms=0), token_bytes), session
