"""Draft rounds against scripted drafters: what is asked and what is fused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.core.tree import DraftTree
from drafthouse.engine.contract import RowStatus
from drafthouse.fusion.contract import DraftCall, DraftPlan, DraftResult
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from fakes.drafter_scripted import SESSION_NS_PER_CALL, Context, ScriptedDrafter, counts, says
from fakes.fusion_rounds import draft, fusion_of, num_steps, row


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


def test_between_fusion_points_drafters_write_by_themselves() -> None:
    one, two = ScriptedDrafter("code", counts(1, 0.6)), ScriptedDrafter("math", counts(2, 0.5))
    result = draft(fusion_of(one, two, fuse_every=2), row([1.0, 1.0], num_draft_tokens=5))
    (got,) = result.rows
    assert got.tree.tokens.tolist() == [21, 22, 23, 24, 25]
    assert num_steps(one) == num_steps(two) == [2, 2, 1]
    # What the second one wrote after its own first token was for another text: it has no say there.
    assert got.proposals.tolist() == [[21, 22, 23, 24, 25], [22, -1, 24, -1, 26]]
    assert result.draft_session_ns == 5 * SESSION_NS_PER_CALL


def test_a_drafter_keeps_its_say_for_as_long_as_it_agrees() -> None:
    def writes(*tokens_and_probs: tuple[int, float]) -> ScriptedDrafter:
        return ScriptedDrafter("d", lambda context: [tokens_and_probs[len(context) - 2]])

    agreeing = writes((5, 0.6), (6, 0.3), (7, 0.3))
    other = writes((5, 0.5), (8, 0.9), (9, 0.4))
    (got,) = draft(fusion_of(agreeing, other, fuse_every=3), row([1.0, 1.0])).rows
    assert got.tree.tokens.tolist() == [5, 8, 9]
    assert got.tree.source.tolist() == [0, 1, 1]
    assert got.proposals.tolist() == [[5, 6, -1], [5, 8, 9]]


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
@pytest.mark.parametrize("end_ids", [(0,), (3, 0), (0, 7)])
def test_trunk_ends_with_any_end_token(weights: list[float], end_ids: tuple[int, ...]) -> None:
    one, two = ScriptedDrafter("code", says(5, 6, 0, 7, start=2)), ScriptedDrafter("math", says(9, prob=0.1))
    request = replace(row(weights, 5), sampling=SamplingParams(end_ids=end_ids))
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


def test_options_and_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="call_timeout_s"):
        FusionOptions(call_timeout_s=0.0)
    with pytest.raises(ValueError, match="fuse_every"):
        FusionOptions(fuse_every=0)
    with pytest.raises(ValueError, match="2 limits"):
        CollaborativeFusion([ScriptedDrafter("a", counts())], [64, 64])


def test_siblings_and_divergent_chains_become_branches() -> None:
    def script(own: int, prob: float) -> ScriptedDrafter:
        return ScriptedDrafter(str(own), lambda context: [(context[-1] + own, prob), (context[-1] + own + 50, prob / 2)])

    plan = DraftPlan(fuse_every=2, num_siblings=1, keep_divergent=True)
    (got,) = draft(fusion_of(script(1, 0.6), script(2, 0.5)), row([1.0, 1.0], 2), plan=plan).rows
    assert got.tree.tokens[:2].tolist() == [21, 22]
    nodes = zip(got.tree.parents.tolist(), got.tree.tokens.tolist(), got.tree.ranks.tolist(), strict=True)
    ranks = {(20 if parent < 0 else int(got.tree.tokens[parent]), token): rank for parent, token, rank in nodes}
    # The second drafter wrote 22, 24 by itself; each position also offers what came second.
    assert ranks == {(20, 21): 0, (21, 22): 0, (20, 71): 1, (21, 72): 1, (20, 22): 0, (20, 72): 1, (22, 24): 0, (22, 74): 1}


def test_a_draft_goes_on_from_a_leaf_of_an_earlier_one() -> None:
    drafter = ScriptedDrafter("code", counts())
    base = DraftTree(np.array([21, 31, 22], np.int32), np.array([-1, -1, 0], np.int32), np.full(3, 0.5, np.float32))
    request = replace(row([1.0]), base=base, leaf=1)
    (got,) = draft(fusion_of(drafter), request).rows
    assert drafter.calls[0].sent == ((10, 20, 31),)
    assert got.tree.tokens.tolist() == [21, 31, 22, 32, 33, 34]
    assert got.tree.parents.tolist() == [-1, -1, 0, 1, 3, 4]
    assert got.trunk.tolist() == [3, 4, 5]
    assert got.cached_len.tolist() == [2]  # what hangs on the leaf is not committed


def test_calibration_turns_probabilities_into_chances_and_growth_stops_at_hopeless_paths() -> None:
    drafter = ScriptedDrafter("code", counts(prob=0.5))
    plan = DraftPlan(calibration=np.array([[[1.0, 1.0, 2.0]], [[0.0, 1.0, 0.0]]], np.float32), min_chance=0.7, fuse_every=1)
    (got,) = draft(fusion_of(drafter), replace(row([1.0], 5), scores=np.array([0.5], np.float32)), plan=plan).rows
    sure = 1 / (1 + np.exp(-1.0))  # the intercept alone: logit(0.5) = 0, and a score of one half says nothing
    assert got.tree.confidence == pytest.approx([sure, sure], rel=1e-5)  # 0.73, 0.53: the second is below, so nothing follows it
    assert got.tree.probs == pytest.approx([0.5, 0.5])
