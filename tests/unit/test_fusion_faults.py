"""Draft rounds in which a drafter fails: the others finish, and it is taken back as soon as it answers again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drafthouse.engine.contract import RowStatus
from drafthouse.fusion.contract import DraftCall
from fakes.drafter_scripted import Context, ScriptedDrafter, counts, says
from fakes.fusion_rounds import draft, fusion_of, num_steps, row


def test_a_release_that_was_lost_is_repeated() -> None:
    drafter = ScriptedDrafter("a", counts(), gone=frozenset({1}))
    fusion = fusion_of(drafter)
    draft(fusion, row([1.0], uid=1))
    draft(fusion, release=[1])
    assert list(drafter.held) == [1]
    draft(fusion, row([1.0], uid=2))
    assert drafter.calls[-1].released == (1,)
    draft(fusion, row([1.0], uid=2))
    assert len(drafter.calls[-1].released) == 0
    assert list(drafter.held) == [2]


def test_a_lost_idle_drafter_is_not_waited_for() -> None:
    busy, lost = ScriptedDrafter("a", counts()), ScriptedDrafter("b", counts(), gone=frozenset({0}))
    fusion = fusion_of(busy, lost)
    draft(fusion, row([1.0, 1.0], uid=1))
    draft(fusion, row([1.0, 0.0], uid=2), release=[1])
    assert len(lost.calls) == 1
    draft(fusion, release=[2])  # nothing else to do: now it is tried
    assert lost.calls[-1].released == (1, 2)


def test_drafter_gone_in_the_middle_leaves_the_others_to_finish() -> None:
    stays, goes = ScriptedDrafter("a", counts(1, 0.2)), ScriptedDrafter("b", counts(2, 0.9), gone=frozenset({2}))
    (got,) = draft(fusion_of(stays, goes), row([1.0, 1.0], 5)).rows
    assert got.tree.tokens.tolist() == [22, 24, 25, 26, 27]
    assert got.proposals.tolist() == [[21, 23, 25, 26, 27], [22, 24, -1, -1, -1]]
    assert got.drafter_status.tolist() == [RowStatus.OK, RowStatus.ABSENT]
    assert num_steps(stays) == [1, 1, 1, 2]  # alone now: the rest in one call
    assert len(goes.calls) == 3


def test_slow_drafter_is_left_out_of_the_rest_of_the_round() -> None:
    quick, slow = ScriptedDrafter("a", counts()), ScriptedDrafter("b", counts(2, 0.9), hangs=frozenset({1}))
    fusion = fusion_of(quick, slow, timeout_s=0.02)
    (got,) = draft(fusion, row([1.0, 1.0])).rows
    assert got.tree.tokens.tolist() == [22, 23, 24]
    assert got.drafter_status.tolist() == [RowStatus.OK, RowStatus.ABSENT]
    assert len(slow.calls) == 2
    (again,) = draft(fusion, row([1.0, 1.0])).rows
    assert again.drafter_status.tolist() == [RowStatus.OK, RowStatus.OK]  # the next round takes it back


def test_nobody_left_gives_an_empty_tree() -> None:
    drafters = [ScriptedDrafter(name, counts(), gone=frozenset({0})) for name in "ab"]
    (got,) = draft(fusion_of(*drafters), row([1.0, 1.0])).rows
    assert (len(got.tree), got.proposals.shape) == (0, (2, 0))
    assert got.drafter_status.tolist() == [RowStatus.ABSENT] * 2


@pytest.mark.parametrize(
    ("fault", "status"),
    [({"errors": frozenset({0})}, RowStatus.ERROR), ({"truncates": frozenset({0})}, RowStatus.ABSENT), ({"slots": 0}, RowStatus.NO_SLOT)],
)
def test_a_drafter_that_refuses_sits_out(fault: dict[str, Any], status: RowStatus) -> None:
    fine, refuses = ScriptedDrafter("a", counts()), ScriptedDrafter("b", counts(2, 0.9), **fault)
    (got,) = draft(fusion_of(fine, refuses), row([1.0, 1.0])).rows
    assert got.tree.tokens.tolist() == [21, 22, 23]
    assert got.drafter_status.tolist() == [RowStatus.OK, status]
    assert len(refuses.calls) == 1


def test_no_slot_for_one_request_does_not_touch_the_other() -> None:
    drafter = ScriptedDrafter("a", counts(), slots=1)
    first, second = draft(fusion_of(drafter), row([1.0], uid=1), row([1.0], uid=2)).rows
    assert (first.drafter_status[0], second.drafter_status[0]) == (RowStatus.OK, RowStatus.NO_SLOT)
    assert (len(first.tree), len(second.tree)) == (3, 0)


def test_needs_prefill_below_the_row_reports_cached_len_and_catches_up_next_round() -> None:
    one, two = ScriptedDrafter("a", counts()), ScriptedDrafter("b", counts(1, 0.9))
    fusion = fusion_of(one, two)
    draft(fusion, row([1.0, 0.0], tokens=(1, 2)))
    (got,) = draft(fusion, row([1.0, 1.0], tokens=(2, 3), prefix_len=1)).rows
    assert got.drafter_status.tolist() == [RowStatus.OK, RowStatus.NEEDS_PREFILL]
    assert got.cached_len.tolist() == [3, 0]
    assert got.tree.source.tolist() == [0, 0, 0]
    (got,) = draft(fusion, row([1.0, 1.0], tokens=(1, 2, 3, 4))).rows
    assert got.drafter_status.tolist() == [RowStatus.OK, RowStatus.OK]
    assert got.cached_len.tolist() == [4, 4]
    assert got.tree.source.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("max_step_tokens", "lost_at", "calls"),
    [
        (6, 1, [(1, (1, 2, 3, 4)), (1, (4, 6)), (1, (1, 2, 3, 4, 6)), (1, (4, 6, 8))]),
        (4, 2, [(0, (1, 2, 3)), (1, (4,)), (1, (4, 6)), (0, (1, 2, 3)), (1, (4, 6)), (1, (4, 6, 8))]),
    ],
)
def test_reload_in_the_middle_heals_within_the_round(max_step_tokens: int, lost_at: int, calls: list[tuple[int, Context]]) -> None:
    steady = ScriptedDrafter("a", counts())
    reloaded = ScriptedDrafter("b", counts(2, 0.9), forgets=frozenset({lost_at}), max_step_tokens=max_step_tokens)
    (got,) = draft(fusion_of(steady, reloaded), row([1.0, 1.0], 3, (1, 2, 3, 4))).rows
    assert got.tree.tokens.tolist() == [6, 8, 10]
    assert got.drafter_status.tolist() == [RowStatus.OK, RowStatus.OK]
    # The point is repeated from the tokens that this round carries (in chunks where they are many), then it goes on.
    assert [(call.num_steps, call.sent[0]) for call in reloaded.calls] == calls
    assert num_steps(steady) == [1, 1, 1]


def test_a_drafter_that_keeps_forgetting_sits_out() -> None:
    drafter = ScriptedDrafter("a", counts(), forgets=frozenset(range(99)), max_step_tokens=2)
    (got,) = draft(fusion_of(drafter), row([1.0], 2, (1, 2, 3, 4))).rows
    assert got.drafter_status.tolist() == [RowStatus.NEEDS_PREFILL]
    assert [(call.num_steps, call.prefix_lens) for call in drafter.calls] == [(0, (0,)), (0, (2,)), (0, (0,)), (0, (2,))]
    assert got.cached_len.tolist() == [0]


def test_not_a_number_never_leads() -> None:
    broken, fine = ScriptedDrafter("a", says(5, prob=float("nan"))), ScriptedDrafter("b", says(6, prob=0.01))
    (got,) = draft(fusion_of(broken, fine), row([1.0, 1.0])).rows
    assert got.tree.tokens.tolist() == [6, 6, 6]


def test_a_cancelled_round_is_cancelled() -> None:
    fusion = fusion_of(ScriptedDrafter("a", counts(), hangs=frozenset({0})))

    async def cancel() -> None:
        task = asyncio.create_task(fusion.draft(DraftCall([row([1.0])])))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
