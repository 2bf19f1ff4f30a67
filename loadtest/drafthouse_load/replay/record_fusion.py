"""Measures what fusion does by itself for each drafter it asks: packing calls, reading answers, growing the tree."""

import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from drafthouse.engine.contract import RowResult, RowStatus, StepCall, StepResult
from drafthouse.fusion.contract import DraftCall, DraftPlan, DraftRow
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.triton.codec.engine import pack_step, pack_step_result, unpack_step_result
from drafthouse.triton.codec.envelope import Envelope
from drafthouse.triton.loops import new_loop
from drafthouse.triton.schema import ENGINE, LEASE_SECRET
from drafthouse_load.replay.costs import HopCost

_ROUNDS = 15
_NUM_DRAFT_TOKENS = 5
_NUM_SIBLINGS = 1
_DRAFTERS = (1, 2, 5)
_ROWS = (1, 4, 8)
_VOCAB_SIZE = 4096
_LIMIT = 64
_SECRET = np.zeros(32, np.uint8)  # as long as a run's


class _Canned:
    """A drafter that answers at once, so that only fusion's own work takes time; messages are packed and read as in the server."""

    def __init__(self, number: int) -> None:
        self.name = f"canned {number}"
        self._calls, self._answers = Envelope(ENGINE.call), Envelope(ENGINE.answer)
        random = np.random.default_rng(number)
        self._sealed = {rows: self._answers.seal(pack_step_result(_answer(rows, random))) for rows in _ROWS}

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """See `EngineClient.step`."""
        self._calls.seal(pack_step(call, release_uids) | {LEASE_SECRET.name: _SECRET})
        return unpack_step_result(self._answers.unseal(self._sealed[len(call.rows)]))


def _answer(rows: int, random: np.random.Generator) -> StepResult:
    width = 1 + _NUM_SIBLINGS
    answers = []
    for _ in range(rows):
        ids = random.choice(_VOCAB_SIZE, (_NUM_DRAFT_TOKENS, width), replace=False).astype(np.int32)
        probs = np.sort(random.random((_NUM_DRAFT_TOKENS, width), np.float32))[:, ::-1]
        answers.append(RowResult(RowStatus.OK, 1, ids[:, 0].copy(), np.zeros(_NUM_DRAFT_TOKENS, np.float32), ids, probs))
    return StepResult(answers, 1, 0, 8, 8)


def record_fanout() -> HopCost:
    """Milliseconds of fusion's process per drafter asked, and per request in the question: medians, then least squares.

    ``time = a + b · drafters + c · drafters · requests + d · requests``; b and c are returned. What does not depend on the number of
    drafters is in the message from `cosine` to `fusion` as the server's counters show it.
    """
    samples: dict[tuple[int, int], list[float]] = {(drafters, rows): [] for drafters in _DRAFTERS for rows in _ROWS}
    loop = new_loop()
    try:
        for _ in range(_ROUNDS):
            for (drafters, rows), own in samples.items():
                fusion = CollaborativeFusion([_Canned(number) for number in range(drafters)], [_LIMIT] * drafters, FusionOptions())
                call = _draft_call(drafters, rows)
                began_ns = time.thread_time_ns()  # this thread's own: nobody else's work is charged
                loop.run_until_complete(fusion.draft(call))
                own.append((time.thread_time_ns() - began_ns) / 1e6)
    finally:
        loop.close()
    sizes = np.array(list(samples), np.float64)
    columns = np.stack([np.ones(len(sizes)), sizes[:, 0], sizes[:, 0] * sizes[:, 1], sizes[:, 1]], axis=1)
    fitted = np.linalg.lstsq(columns, np.array([median(own) for own in samples.values()]), rcond=None)[0].clip(0.0).round(4)
    return HopCost(float(fitted[1]), float(fitted[2]))


def _draft_call(drafters: int, rows: int) -> DraftCall:
    plan = DraftPlan(fuse_every=_NUM_DRAFT_TOKENS, num_siblings=_NUM_SIBLINGS, keep_divergent=True)
    tokens, weights = np.ones(2, np.int32), np.ones(drafters, np.float32)
    return DraftCall([DraftRow(uid, 0, tokens, _NUM_DRAFT_TOKENS, weights) for uid in range(1, rows + 1)], plan=plan)
