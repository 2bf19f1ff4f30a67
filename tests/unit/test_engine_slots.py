"""Slots of callers that died come back; those of living callers never do."""

import numpy as np

from drafthouse.engine.contract import RowStatus, StepRow
from drafthouse.engine.slots import LEASE_S, CacheEntry, SlotTable


def row(uid: int) -> StepRow:
    return StepRow(uid, 0, np.array([1, 2], np.int32), 2)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_request_nobody_names_any_more_loses_its_slot_to_a_new_one() -> None:
    clock = Clock()
    table = SlotTable(2, 16, clock)
    orphan, living = table.admit(row(1)), table.admit(row(2))
    assert isinstance(orphan, CacheEntry)
    assert isinstance(living, CacheEntry)
    clock.now_s = LEASE_S
    assert table.admit(row(2)) is living
    assert table.admit(row(3)) is RowStatus.NO_SLOT
    clock.now_s += 1.0
    heir = table.admit(row(3))
    assert isinstance(heir, CacheEntry)
    assert heir.slot == orphan.slot
    assert table.cached_len(1) == 0
    assert table.admit(row(2)) is living
    assert table.admit(row(4)) is RowStatus.NO_SLOT


def test_an_idle_request_keeps_its_slot_while_others_are_free() -> None:
    clock = Clock()
    table = SlotTable(2, 16, clock)
    idle = table.admit(row(1))
    clock.now_s = 10 * LEASE_S
    table.admit(row(2))
    assert table.admit(row(1)) is idle
