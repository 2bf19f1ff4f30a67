"""Drafters in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from drafthouse.engine.contract import EngineError, EngineLimits, RowResult, RowStatus, StepCall, StepResult, StepRow
from drafthouse.fusion.local import LocalDrafter

CALL = StepCall([StepRow(7, 0, np.array([1, 2], np.int32), 2)])


class RecordingEngine:
    """Notes the order of what it is asked, the thread, and whether two calls ever overlapped."""

    limits = EngineLimits(max_step_tokens=16, usable_context=48, vocab_size=10, slots=2)

    def __init__(self, is_gone: bool = False) -> None:
        self.log: list[str] = []
        self.threads: set[int] = set()
        self.overlapped = False
        self._is_gone = is_gone
        self._busy = threading.Lock()

    def step(self, call: StepCall) -> StepResult:
        self.overlapped |= not self._busy.acquire(blocking=False)
        self.threads.add(threading.get_ident())
        self.log.append("step")
        if self._is_gone:
            raise EngineError("gone")
        none_i, none_f = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
        rows = [RowResult(RowStatus.OK, 2, none_i.ravel(), none_f.ravel(), none_i, none_f) for _ in call.rows]
        self._busy.release()
        return StepResult(rows, 1, 5, 1, 2)

    def release(self, request_uids: Sequence[int]) -> None:
        self.log.append(f"release {list(request_uids)}")

    def status(self) -> StepResult:
        self.log.append("status")
        return StepResult((), 1, 0, 2, 2)


@pytest.mark.parametrize("threaded", [False, True])
def test_releases_before_it_steps_and_a_call_without_rows_only_releases(threaded: bool) -> None:
    engine = RecordingEngine()
    drafter = LocalDrafter("code", engine, threaded)

    async def calls() -> list[StepResult]:
        return [await drafter.step(CALL, [3, 4]), await drafter.step(StepCall(()), [5]), await drafter.step(CALL)]

    first, second, _ = asyncio.run(calls())
    assert engine.log == ["release [3, 4]", "step", "release [5]", "status", "step"]
    assert (len(first.rows), len(second.rows)) == (1, 0)
    assert (drafter.name, drafter.max_step_tokens) == ("code", 16)


def test_threaded_calls_leave_the_loop_free_and_never_overlap() -> None:
    engine = RecordingEngine()
    drafter = LocalDrafter("code", engine, threaded=True)

    async def calls() -> None:
        await asyncio.gather(*(drafter.step(CALL) for _ in range(8)))

    asyncio.run(calls())
    assert len(engine.log) == 8
    assert not engine.overlapped
    assert threading.get_ident() not in engine.threads


def test_a_gone_engine_is_an_engine_error() -> None:
    drafter = LocalDrafter("code", RecordingEngine(is_gone=True))
    with pytest.raises(EngineError, match="gone"):
        asyncio.run(drafter.step(CALL))
