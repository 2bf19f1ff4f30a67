"""Which rows share a network call, how its tokens are packed, and that nothing is written past the end of a slot that only runs along."""

from __future__ import annotations

import numpy as np

from drafthouse.engine.batch import InputWriter, Task, plan_runs
from drafthouse.engine.contract import RowStatus, StepCall
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.engine import ModelEngine
from drafthouse.engine.options import EngineOptions
from drafthouse.engine.slots import CacheEntry, SlotTable
from fakes.engine_driver import step_row
from fakes.engine_session import FakeSession, call_times, fake_manifest, predicted

# Six tokens are best run as six, but four are best run as eight.
UNEVEN = {2: 6.0, 3: 7.0, 4: 10.0, 5: 10.0, 6: 9.5, 7: 10.0, 8: 9.0, 16: 12.0}


def test_padding_tokens_take_no_room_in_a_slot() -> None:
    """Slot 1 ends at cache row 26: six places fit behind, the eight tokens that four are padded to would not."""
    session = FakeSession(fake_manifest(context_len=32), 3)
    engine = ModelEngine(session, session.manifest, EngineOptions(slots=3, calibration_ms=0))
    engine.costs = CallCosts(2, 8, call_times(UNEVEN, place_ms=0.01, row_ms=0.1))
    assert [engine.costs.padded(num) for num in (4, 6)] == [8, 6]
    engine.step(StepCall([step_row(uid, [uid]) for uid in range(3)]))
    held = [1, *range(23)]
    for start in range(1, 24, 8):
        engine.step(StepCall([step_row(1, held[start : start + 8], prefix_len=start)], num_steps=0))
    engine.step(StepCall([step_row(1, [held[-1], 30, 31], prefix_len=23, num_committed=1)]))
    session.calls.clear()
    answers = engine.step(StepCall([step_row(0, [5] * 6, prefix_len=1), step_row(2, [6], prefix_len=1)])).rows
    assert session.calls == [(0, 3, 6, 8)]
    assert [answer.sampled.tolist() for answer in answers] == [[predicted([0, *[5] * 6])], [predicted([2, 6])]]
    answers = engine.step(StepCall([step_row(0, [5, 6], prefix_len=7), step_row(2, [7, 8], prefix_len=2)])).rows
    assert session.calls[-1] == (0, 3, 2, 8)
    assert [answer.sampled.tolist() for answer in answers] == [[predicted([0, *[5] * 6, 5, 6])], [predicted([2, 6, 7, 8])]]
    answer = engine.step(StepCall([step_row(1, [held[-1], 30], prefix_len=23, num_committed=1)])).rows[0]
    assert answer.sampled.tolist() == [predicted(held), predicted([*held, 30])]


def test_tokens_are_packed_in_the_order_of_the_slots() -> None:
    slots, entries = random_slots(np.random.default_rng(0), 4)
    tasks = [
        Task(uid, step_row(uid, range(10 * uid, 10 * uid + length)), entries[uid], 0, None) for uid, length in ((3, 1), (0, 3), (1, 2))
    ]
    costs = CallCosts(2, 8, call_times({2: 9.0, 3: 9.0, 7: 9.0, 8: 6.0}, place_ms=0.01, row_ms=0.1))
    entries[2].committed_len, entries[2].draft_tokens = 20, []
    (run,) = plan_runs(tasks, costs, slots)
    assert ([task.index for task in run.tasks], run.num_tokens, run.num_packed, run.idle) == ([0, 1, 3], 3, 6, {2: 20})
    session = FakeSession(fake_manifest(), 4)
    step = session.bind(run.first_slot, run.num_rows, run.num_tokens, 8)
    InputWriter(32, 32).write(step, run)
    assert step.input_ids.tolist() == [0, 1, 2, 10, 11, 30, 0, 0]
    assert step.pack_indices.tolist() == [0, 1, 2, 3, 4, 9, 0, 0]
    assert step.unpack_indices.tolist() == [[0, 1, 2], [3, 4, 3], [0, 0, 0], [5, 5, 5]]
    assert step.write_indices.tolist() == [0, 0, 20, 0]


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
    num_bridged = num_split = num_busy = 0
    for trial in range(400):
        slots, entries = random_slots(random, 8)
        times = {length: time_ms + (trial % 2) * float(random.uniform(0, 2)) for length, time_ms in UNEVEN.items()}
        costs = CallCosts(2, 8, call_times(times, place_ms=float(random.choice([0.01, 0.3, 3.0])), row_ms=0.3))
        tasks = []
        for uid in sorted(random.permutation(8)[:4].tolist()):
            start = int(random.integers(0, entries[uid].committed_len))
            row = step_row(uid, [1] * int(random.integers(1, 7)), prefix_len=start)
            tasks.append(Task(uid, row, entries[uid], 0, None))
        runs = plan_runs(tasks, costs, slots)
        assert sorted(task.index for run in runs for task in run.tasks) == [task.index for task in tasks]
        ends = {task.entry.slot: task.end for task in tasks}
        for run in runs:
            assert run.num_tokens == max(2, *(task.num_new for task in run.tasks))
            assert run.num_packed >= max(2, sum(task.num_new for task in run.tasks))
            assert all(task.start + run.num_tokens <= slots.context_len for task in run.tasks)
            assert all(row == ends.get(slot, slots.spare_row(slot)) for slot, row in run.idle.items())
            assert all(row + run.num_tokens <= slots.context_len for row in run.idle.values())
            num_bridged += len(run.idle)
            num_busy += len(run.idle.keys() & ends.keys())
        slots_run = [task.entry.slot for run in runs for task in run.tasks]
        num_split += slots_run != sorted(slots_run)
    assert num_bridged > 100
    assert num_split > 10
    assert num_busy > 10
