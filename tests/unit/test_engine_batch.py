"""Which rows share a network call, and how far it is padded: never past the end of a slot that only runs along."""

from __future__ import annotations

import numpy as np

from drafthouse.engine.batch import Task, plan_runs
from drafthouse.engine.contract import RowStatus, StepCall
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.engine import ModelEngine
from drafthouse.engine.options import EngineOptions
from drafthouse.engine.slots import CacheEntry, SlotTable
from fakes.engine_driver import step_row
from fakes.engine_session import FakeSession, fake_manifest, predicted

# Six tokens are best run as six, but four are best run as eight.
UNEVEN = {(1, 2): 6.0, (1, 3): 7.0, (1, 4): 10.0, (1, 5): 10.0, (1, 6): 9.5, (1, 7): 10.0, (1, 8): 9.0, (3, 4): 14.0}


def test_a_part_of_a_class_is_not_padded_past_what_its_idle_slots_can_take() -> None:
    session = FakeSession(fake_manifest(context_len=32), 5)
    engine = ModelEngine(session, session.manifest, EngineOptions(slots=5, calibration_ms=0))
    engine.costs = CallCosts(2, 8, UNEVEN)
    assert [engine.costs.padded(num) for num in (4, 6)] == [8, 6]
    engine.step(StepCall([step_row(uid, [uid]) for uid in range(5)]))
    held = {uid: [uid, *range(23)] for uid in (1, 3)}
    for uid, drafted in ((1, 2), (3, 7)):  # slot 1 ends at cache row 26, which six tokens fit behind; slot 3 at 31, where nothing does
        for start in range(1, 24, 8):
            engine.step(StepCall([step_row(uid, held[uid][start : start + 8], prefix_len=start)], num_steps=0))
        draft = range(30, 30 + drafted)
        engine.step(StepCall([step_row(uid, [held[uid][-1], *draft], prefix_len=23, num_committed=1)]))
    session.calls.clear()
    rows = [step_row(uid, tokens, prefix_len=1) for uid, tokens in ((0, [5] * 4), (2, [6] * 4), (4, [7] * 6))]
    answers = engine.step(StepCall(rows)).rows
    assert session.calls == [(0, 3, 6), (4, 1, 6)]
    expected = [predicted([0, *[5] * 4]), predicted([2, *[6] * 4]), predicted([4, *[7] * 6])]
    assert [answer.sampled.tolist() for answer in answers] == [[token] for token in expected]
    for uid, token in ((1, 30), (3, 30)):
        answer = engine.step(StepCall([step_row(uid, [held[uid][-1], token], prefix_len=23, num_committed=1)])).rows[0]
        assert answer.sampled.tolist() == [predicted(held[uid]), predicted([*held[uid], token])]


def random_slots(random: np.random.Generator, num_slots: int) -> tuple[SlotTable, list[CacheEntry]]:
    """Slots of 32 rows, each nearly full: up to 24 committed tokens, then drafts."""
    slots = SlotTable(num_slots, 32)
    entries: list[CacheEntry] = []
    for uid in range(num_slots):
        entry = slots.admit(step_row(uid, [1]))
        assert not isinstance(entry, RowStatus)
        entry.committed_len = int(random.integers(20, 25))
        entry.draft_tokens = [1] * int(random.integers(0, 8))
        entries.append(entry)
    return slots, entries


def test_every_run_fits_its_tasks_and_its_idle_slots_whatever_calls_cost() -> None:
    random = np.random.default_rng(3)
    num_bridged = 0
    for trial in range(400):
        slots, entries = random_slots(random, 8)
        times = {shape: time_ms + (trial % 2) * float(random.uniform(0, 2)) for shape, time_ms in UNEVEN.items()}
        costs = CallCosts(2, 8, times | {(3, 4): times[1, 4] + 1.0})
        tasks = []
        for uid in sorted(random.permutation(8)[:4].tolist()):
            start = int(random.integers(0, entries[uid].committed_len))
            row = step_row(uid, [1] * int(random.integers(1, 7)), prefix_len=start)
            tasks.append(Task(uid, row, entries[uid], 0, None))
        runs = plan_runs(tasks, costs, slots)
        assert sorted(task.index for run in runs for task in run.tasks) == [task.index for task in tasks]
        for run in runs:
            assert all(task.num_new <= run.num_tokens for task in run.tasks)
            assert all(task.start + run.num_tokens <= slots.context_len for task in run.tasks)
            assert all(row == slots.spare_row(slot) and row + run.num_tokens <= slots.context_len for slot, row in run.idle.items())
            num_bridged += len(run.idle)
    assert num_bridged > 100
