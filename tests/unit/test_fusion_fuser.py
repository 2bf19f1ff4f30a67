"""Draft rounds against scripted drafters: what is asked, what is fused, and what happens when a drafter fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import RowStatus
from drafthouse.fusion.contract import DraftCall, DraftResult, DraftRow, Fusion
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from fakes.drafter_scripted import SESSION_NS_PER_CALL, Context, ScriptedDrafter, counts, says


def row(
    weights: Sequence[float], num_draft_tokens: int = 3, tokens: Sequence[int] = (10, 20), uid: int = 1, prefix_len: int = 0
) -> DraftRow:
    return DraftRow(uid, prefix_len, np.array(tokens, np.int32), num_draft_tokens, np.array(weights, np.float32))


def fusion_of(*drafters: ScriptedDrafter, max_branches: int = 0, timeout_s: float = 5.0) -> CollaborativeFusion:
    return CollaborativeFusion(drafters, [drafter.max_step_tokens for drafter in drafters], FusionOptions(timeout_s, max_branches))


def draft(fusion: Fusion, *rows: DraftRow, release: Sequence[int] = ()) -> DraftResult:
    return asyncio.run(fusion.draft(DraftCall(rows, release)))


def num_steps(drafter: ScriptedDrafter) -> list[int]:
    return [call.num_steps for call in drafter.calls]


def test_lone_drafter_drafts_the_whole_trunk_in_one_call() -> None:
    drafter, other = ScriptedDrafter("code", counts()), ScriptedDrafter("math", counts(2))
    result = draft(fusion_of(drafter, other), row([1.0, 0.0], num_draft_tokens=5))
    (got,) = result.rows
    assert got.tree.tokens.tolist() == [21, 22, 23, 24, 25]
    assert got.tree.parents.tolist() == [-1, 0, 1, 2, 3]
    assert num_steps(drafter) == [5]
    assert other.calls == []
    assert got.drafter_status.tolist() == [RowStatus.OK, RowStatus.ABSENT]
    assert got.proposals.tolist() == [[21, 22, 23, 24, 25], [-1] * 5]
    assert result.draft_session_ns == 5 * SESSION_NS_PER_CALL


def test_two_drafters_cost_one_call_each_per_position_and_follow_the_fused_trunk() -> None:
    one, two = ScriptedDrafter("code", counts(1, 0.6)), ScriptedDrafter("math", counts(2, 0.5))
    result = draft(fusion_of(one, two), row([1.0, 1.0]))
    (got,) = result.rows
    assert got.tree.tokens.tolist() == [21, 22, 23]
    assert got.proposals.tolist() == [[21, 22, 23], [22, 23, 24]]  # the second one continues from the first one's tokens
    assert got.proposal_probs == pytest.approx(np.array([[0.6] * 3, [0.5] * 3]))
    assert got.tree.source.tolist() == [0, 0, 0]
    assert got.tree.confidence == pytest.approx([0.6] * 3)
    assert num_steps(one) == num_steps(two) == [1, 1, 1]
    assert [call.sent[0] for call in two.calls] == [(10, 20), (20, 21), (20, 21, 22)]
    assert [call.prefix_lens[0] for call in two.calls] == [0, 1, 1]
    assert got.cached_len.tolist() == [2, 2]
    assert result.draft_session_ns == 3 * SESSION_NS_PER_CALL


@pytest.mark.parametrize(("weights", "source"), [([1.0, 0.5], 0), ([0.5, 1.0], 1), ([1.0, 0.75], 0)])
def test_raw_confidence_loses_to_the_weight(weights: list[float], source: int) -> None:
    modest, sure = ScriptedDrafter("code", says(7, prob=0.6)), ScriptedDrafter("math", says(8, prob=0.75))
    (got,) = draft(fusion_of(modest, sure), row(weights)).rows
    assert got.tree.source.tolist() == [source] * 3
    assert set(got.tree.tokens.tolist()) == {8 if source else 7}


def test_the_lead_changes_hands_at_every_position() -> None:
    def sure_at(parity: int, token: int) -> ScriptedDrafter:
        return ScriptedDrafter("d", lambda context: [(token, 0.9 if len(context) % 2 == parity else 0.1)])

    (got,) = draft(fusion_of(sure_at(0, 5), sure_at(1, 6)), row([1.0, 1.0], num_draft_tokens=4)).rows
    assert got.tree.tokens.tolist() == [5, 6, 5, 6]
    assert got.tree.source.tolist() == [0, 1, 0, 1]


def test_ties_go_to_the_lower_drafter() -> None:
    (got,) = draft(fusion_of(ScriptedDrafter("a", says(9)), ScriptedDrafter("b", says(3))), row([1.0, 1.0])).rows
    assert got.tree.source.tolist() == [0, 0, 0]


def test_rows_of_any_length_share_the_calls() -> None:
    one, two = ScriptedDrafter("code", counts()), ScriptedDrafter("math", counts(1, 0.4))
    rows = [
        row([1.0, 1.0], 2, (1, 2), uid=1),
        row([1.0, 0.0], 5, (1, 7), uid=2),
        row([0.0, 1.0], 1, (1, 40), uid=3),
        row([1.0, 1.0], 0, (1, 2, 3), uid=4),
        row([0.0, 0.0], 5, (1, 2, 3), uid=5),
    ]
    got = draft(fusion_of(one, two), *rows).rows
    assert [result.tree.tokens.tolist() for result in got] == [[3, 4], [8, 9, 10, 11, 12], [41], [], []]
    # Taking in, two fused positions that the lone row rides along, then its rest in one call.
    assert [(call.num_steps, call.uids) for call in one.calls] == [(0, (4,)), (1, (1, 2)), (1, (1, 2)), (3, (2,))]
    assert [(call.num_steps, call.uids) for call in two.calls] == [(0, (4,)), (1, (1, 3)), (1, (1,))]
    assert got[4].drafter_status.tolist() == [RowStatus.ABSENT] * 2
    assert got[3].drafter_status.tolist() == [RowStatus.OK] * 2


def test_independent_drafters_do_not_wait_for_each_other() -> None:
    one, two, alone = (ScriptedDrafter(name, counts()) for name in ("a", "b", "c"))
    result = draft(fusion_of(one, two, alone), row([1, 1, 0], 2, uid=1), row([0, 0, 1], 2, uid=2), row([0, 0, 1], 5, uid=3))
    assert num_steps(alone) == [5]
    assert [len(got.tree) for got in result.rows] == [2, 2, 5]
    assert result.draft_session_ns == 5 * SESSION_NS_PER_CALL  # the longest lane, not the sum of both


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, 1.0]])
def test_trunk_ends_with_end_id(weights: list[float]) -> None:
    one, two = ScriptedDrafter("code", says(5, 6, 0, 7, start=2)), ScriptedDrafter("math", says(9, prob=0.1))
    request = replace(row(weights, 5), sampling=SamplingParams(end_id=0))
    (got,) = draft(fusion_of(one, two), request).rows
    assert got.tree.tokens.tolist() == [5, 6, 0]
    assert len(one.calls) == (1 if weights[1] == 0 else 3)
    assert got.proposals.shape == (2, 3)


def test_long_rows_are_taken_in_by_chunks_of_the_whole_batch() -> None:
    drafter = ScriptedDrafter("code", counts(), max_step_tokens=4)
    rows = [row([1.0], 2, range(1, 11), uid=1), row([1.0], 2, range(1, 7), uid=2), row([1.0], 2, (1, 2), uid=3)]
    got = draft(fusion_of(drafter), *rows).rows
    assert [call.uids for call in drafter.calls] == [(1, 2), (1,), (1, 2, 3)]
    assert num_steps(drafter) == [0, 0, 2]
    assert not any(call.return_prompt_logprob for call in drafter.calls)
    assert [result.tree.tokens.tolist() for result in got] == [[11, 12], [7, 8], [3, 4]]
    assert [result.cached_len.tolist() for result in got] == [[10], [6], [2]]


def test_prompt_scoring_adds_up_its_chunks_and_samples_nothing() -> None:
    drafter = ScriptedDrafter("code", counts(), max_step_tokens=4)
    (got,) = draft(fusion_of(drafter), row([1.0], 0, range(10))).rows
    assert [(call.num_steps, len(call.sent[0]), call.return_prompt_logprob) for call in drafter.calls] == [
        (0, 4, True),
        (0, 4, True),
        (0, 2, True),
    ]
    assert got.num_scored.tolist() == [7]
    assert got.prompt_logprob == pytest.approx([-3.5])
    assert len(got.tree) == 0
    assert got.proposals.shape == (1, 0)


def test_fused_trunk_never_exceeds_the_smallest_limit() -> None:
    small, big = ScriptedDrafter("a", counts(), max_step_tokens=3), ScriptedDrafter("b", counts())
    (got,) = draft(fusion_of(small, big), row([1.0, 1.0], 8, range(1, 6))).rows
    assert got.tree.tokens.tolist() == [6, 7, 8]


def test_releases_reach_every_drafter_first() -> None:
    busy, idle = ScriptedDrafter("a", counts(), slots=1), ScriptedDrafter("b", counts())
    fusion = fusion_of(busy, idle)
    assert draft(fusion, row([1.0, 1.0], uid=1)).rows[0].drafter_status.tolist() == [0, 0]
    (got,) = draft(fusion, row([1.0, 0.0], uid=2), release=[1]).rows
    assert got.drafter_status[0] == RowStatus.OK  # its only slot was freed in the same call
    assert busy.calls[-1].released == (1,)
    assert (idle.calls[-1].released, idle.calls[-1].uids) == ((1,), ())
    assert draft(fusion, release=[2]).rows == []
    assert busy.held == idle.held == {}


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


def test_interleaved_rounds_give_the_same_trees_as_serial_ones() -> None:
    def talk(salt: int) -> ScriptedDrafter:
        def script(context: Context) -> list[tuple[int, float]]:
            mixed = hash((salt, context))
            return [(mixed % 97, (mixed // 97 % 100 + 1) / 101)]

        return ScriptedDrafter(str(salt), script)

    first = DraftCall([row([1.0, 0.7, 0.0], 5, (3, 1, 4), uid=1)])
    second = DraftCall([row([0.0, 1.0, 0.9], 4, (2, 7, 1, 8), uid=2), row([0.0, 0.0, 1.0], 6, (5, 5), uid=3)])

    async def interleaved() -> list[DraftResult]:
        fusion = fusion_of(talk(1), talk(2), talk(3))
        return list(await asyncio.gather(fusion.draft(first), fusion.draft(second)))

    async def serial() -> list[DraftResult]:
        fusion = fusion_of(talk(1), talk(2), talk(3))
        return [await fusion.draft(first), await fusion.draft(second)]

    together, apart = asyncio.run(interleaved()), asyncio.run(serial())
    for got, wanted in zip(together, apart, strict=True):
        for a, b in zip(got.rows, wanted.rows, strict=True):
            assert a.tree.tokens.tolist() == b.tree.tokens.tolist()
            assert a.tree.source.tolist() == b.tree.source.tolist()
            assert a.proposals.tolist() == b.proposals.tolist()


def test_a_cancelled_round_is_cancelled() -> None:
    fusion = fusion_of(ScriptedDrafter("a", counts(), hangs=frozenset({0})))

    async def cancel() -> None:
        task = asyncio.create_task(fusion.draft(DraftCall([row([1.0])])))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def test_options_and_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="call_timeout_s"):
        FusionOptions(call_timeout_s=0.0)
    with pytest.raises(ValueError, match="2 limits"):
        CollaborativeFusion([ScriptedDrafter("a", counts())], [64, 64])
