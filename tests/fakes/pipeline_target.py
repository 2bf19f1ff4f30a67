"""A target engine that keeps the engine contract to the letter, refuses what breaks it, and fails on command."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from drafthouse.engine.contract import EngineError, EngineLimits, RowResult, RowStatus, StepCall, StepResult, StepRow
from fakes.pipeline_model import VOCAB_SIZE, log_prob, next_token

LIMITS = EngineLimits(max_step_tokens=32, usable_context=200, vocab_size=VOCAB_SIZE, slots=4)


class FakeTarget:
    """Holds committed tokens by uid. ``calls`` are those with rows; ``before_call`` may inject faults by call number."""

    def __init__(self, limits: EngineLimits = LIMITS) -> None:
        self.limits = limits
        self.held: dict[int, list[int]] = {}
        self.calls: list[StepCall] = []
        self.num_failed_calls = 0
        self.down = False
        self.epoch = 1
        self.gate = asyncio.Event()  # calls with rows hang while it is not set
        self.gate.set()
        self.before_call: Callable[[int], None] | None = None
        self.step_s: Callable[[StepCall], float] = lambda call: 0.0  # how long a call takes, on the loop's clock
        self.row_status: Callable[[StepRow], RowStatus | None] = lambda row: None

    def reload(self) -> None:
        """Forget everything, as after a crash."""
        self.held.clear()
        self.epoch += 1

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        await asyncio.sleep(0)
        if call.rows and self.before_call is not None:
            self.before_call(len(self.calls) + self.num_failed_calls)
        if call.rows:
            await self.gate.wait()
            if (step_s := self.step_s(call)) > 0.0:
                await asyncio.sleep(step_s)
        if self.down:
            self.num_failed_calls += 1
            raise EngineError("stub process is not healthy")
        for uid in release_uids:
            self.held.pop(uid, None)
        if call.rows:
            self.calls.append(call)
        assert len({row.request_uid for row in call.rows}) == len(call.rows)
        rows = [self._row(row, call.num_steps) for row in call.rows]
        free = self.limits.slots - len(self.held)
        return StepResult(rows, self.epoch, session_ns=1000, slots_free=free, slots_total=self.limits.slots)

    def _row(self, row: StepRow, num_steps: int) -> RowResult:
        self._check(row)
        held = self.held.get(row.request_uid, [])
        forced = self.row_status(row)
        if forced is not None:
            return _empty(forced, len(held), "injected")
        if row.prefix_len > len(held):
            return _empty(RowStatus.NEEDS_PREFILL, len(held))
        if row.request_uid not in self.held and len(self.held) >= self.limits.slots:
            return _empty(RowStatus.NO_SLOT, 0)
        committed = held[: row.prefix_len] + row.tokens[: row.num_committed].tolist()
        self.held[row.request_uid] = committed
        if num_steps == 0:
            return _empty(RowStatus.OK, len(committed))
        paths = [committed]
        for node in range(row.num_committed, len(row.tokens)):
            assert row.parents is not None
            parent = int(row.parents[node])
            paths.append([*paths[parent - row.num_committed + 1], int(row.tokens[node])])
        sampled = [next_token(path, row.sampling) for path in paths]
        log_probs = [log_prob(path, token) for path, token in zip(paths, sampled, strict=True)]
        return RowResult(
            RowStatus.OK,
            len(committed),
            np.array(sampled, np.int32),
            np.array(log_probs, np.float32),
            np.empty((len(sampled), 0), np.int32),
            np.empty((len(sampled), 0), np.float32),
        )

    def _check(self, row: StepRow) -> None:
        assert row.tokens.dtype == np.int32
        assert 1 <= row.num_committed <= len(row.tokens) <= self.limits.max_step_tokens
        assert row.prefix_len + row.num_committed <= self.limits.usable_context
        assert ((row.tokens >= 0) & (row.tokens < self.limits.vocab_size)).all()
        if row.parents is None:
            assert len(row.tokens) == row.num_committed
            return
        assert row.parents.dtype == np.int32
        assert row.parents[: row.num_committed].tolist() == list(range(-1, row.num_committed - 1))
        tree_parents = row.parents[row.num_committed :]
        assert (tree_parents >= row.num_committed - 1).all()
        assert (row.parents < np.arange(len(row.parents))).all()


def _empty(status: RowStatus, cached_len: int, error: str = "") -> RowResult:
    no_ids, no_floats = np.empty(0, np.int32), np.empty(0, np.float32)
    return RowResult(status, cached_len, no_ids, no_floats, no_ids.reshape(0, 0), no_floats.reshape(0, 0), error=error)
