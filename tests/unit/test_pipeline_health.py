"""Drafters that do not answer are left out, and taken back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from drafthouse.core.tree import DraftTree
from drafthouse.engine.contract import RowStatus
from drafthouse.fusion.contract import DraftRow, DraftRowResult
from drafthouse.pipeline import stage_route
from drafthouse.pipeline.health import FIRST_PAUSE_NS, LONGEST_PAUSE_NS, ROUNDS_BEFORE_LEFT_OUT, DrafterHealth
from drafthouse.pipeline.stage_route import RouteStage
from drafthouse.pipeline.state import Feedback, RequestState, new_state
from fakes.pipeline_fusion import DRAFTERS, FakeRouter
from fakes.pipeline_harness import make_request
from fakes.pipeline_sink import FakeSink

NUM_DRAFTERS = len(DRAFTERS)
OK, ABSENT, NO_SLOT = RowStatus.OK, RowStatus.ABSENT, RowStatus.NO_SLOT


def draft_round(asked: list[int], *statuses: RowStatus) -> tuple[DraftRow, DraftRowResult]:
    """One request's part: the drafters asked, and what became of each."""
    status = np.full(NUM_DRAFTERS, ABSENT, np.int32)
    status[asked] = statuses
    weights = np.zeros(NUM_DRAFTERS, np.float32)
    weights[asked] = 1
    nothing = np.zeros(NUM_DRAFTERS, np.int32)
    proposals = np.zeros((NUM_DRAFTERS, 0), np.int32)
    row = DraftRow(1, 0, np.array([1], np.int32), 3, weights)
    answer = DraftRowResult(
        tree=DraftTree(),
        trunk=np.empty(0, np.int32),
        drafter_status=status,
        cached_len=nothing,
        proposals=proposals,
        proposal_probs=proposals.astype(np.float32),
        prompt_logprob=nothing.astype(np.float32),
        num_scored=nothing,
    )
    return row, answer


def hear(health: DrafterHealth, now_ns: int, *parts: tuple[DraftRow, DraftRowResult]) -> None:
    health.note([row for row, _ in parts], [answer for _, answer in parts], now_ns)


def left_out(health: DrafterHealth, now_ns: int) -> list[int]:
    return np.flatnonzero(~health.available(NUM_DRAFTERS, now_ns)).tolist()


def test_one_hiccup_is_forgiven_and_several_in_a_row_are_not() -> None:
    health = DrafterHealth()
    for now_ns in range(ROUNDS_BEFORE_LEFT_OUT - 1):
        hear(health, now_ns, draft_round([0, 1], OK, ABSENT))
    hear(health, 5, draft_round([0, 1], OK, OK))
    hear(health, 6, draft_round([0, 1], OK, ABSENT))
    assert left_out(health, 7) == []
    for now_ns in range(7, 7 + ROUNDS_BEFORE_LEFT_OUT):
        hear(health, now_ns, draft_round([0, 1], OK, ABSENT))
    assert left_out(health, 10) == [1]


def test_who_is_not_asked_is_not_judged_and_one_answer_in_the_batch_is_enough() -> None:
    health = DrafterHealth()
    for now_ns in range(5):
        hear(health, now_ns, draft_round([0], OK), draft_round([2, 3], ABSENT, NO_SLOT), draft_round([2], OK))
    assert left_out(health, 5) == []
    health.note([], [], 6)
    assert left_out(health, 7) == []


def test_the_pause_doubles_with_every_failed_attempt_and_an_answer_ends_it() -> None:
    health, now_ns, pauses = DrafterHealth(), 0, []
    gone, back = draft_round([1], ABSENT), draft_round([1], OK)
    for _ in range(ROUNDS_BEFORE_LEFT_OUT - 1):
        hear(health, now_ns, gone)
    for _ in range(10):
        hear(health, now_ns, gone)
        pause = next(step for step in range(FIRST_PAUSE_NS, 2 * LONGEST_PAUSE_NS, FIRST_PAUSE_NS) if not left_out(health, now_ns + step))
        assert left_out(health, now_ns + pause - 1) == [1]
        now_ns += pause
        pauses.append(pause)
    assert pauses[:3] == [FIRST_PAUSE_NS, 2 * FIRST_PAUSE_NS, 4 * FIRST_PAUSE_NS]
    assert pauses[-1] == LONGEST_PAUSE_NS
    hear(health, now_ns, back)
    hear(health, now_ns, gone)
    assert left_out(health, now_ns) == []  # a clean record again


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [0]
    monkeypatch.setattr(stage_route, "now_ns", lambda: now[0])
    return now


def request(drafters: tuple[str, ...] = ()) -> RequestState:
    return new_state(make_request(drafters=drafters), FakeSink(), 0, DRAFTERS, DRAFTERS, lambda token: b"")


def lose(stage: RouteStage, drafter: int) -> None:
    for _ in range(ROUNDS_BEFORE_LEFT_OUT):
        row, answer = draft_round([drafter], ABSENT)
        stage.note([row], [answer])


def test_the_router_is_not_offered_who_does_not_answer(clock: list[int]) -> None:
    router = FakeRouter()
    stage, state = RouteStage(router, route_every=1), request()
    lose(stage, 1)
    asyncio.run(stage.first([state]))
    assert router.calls[-1][0].allowed.tolist() == [True, False, True, True]
    clock[0] += FIRST_PAUSE_NS
    state.feedback = [Feedback(np.zeros((4, 2), np.int32), np.ones((4, 2), np.float32), np.array([0, 1], np.int32))]
    asyncio.run(stage.refresh([state]))
    (row,) = router.calls[-1]
    assert row.allowed.all()
    assert (row.num_rounds, row.accepted_len, row.drafted_len, row.max_drafters) == (1, 1, 2, 0)
    assert state.allowed.all()


def test_weights_given_before_a_drafter_went_away_do_not_call_it(clock: list[int]) -> None:
    stage, state = RouteStage(None, route_every=1), request()
    asyncio.run(stage.first([state]))
    assert stage.weights(state).tolist() == [1, 1, 0, 0]
    lose(stage, 0)
    assert stage.weights(state).tolist() == [0, 1, 0, 0]
    lose(stage, 1)
    assert stage.weights(state).tolist() == [0, 0, 1, 1]  # others step in
    clock[0] += FIRST_PAUSE_NS
    assert stage.weights(state).tolist() == [1, 1, 0, 0]


def test_a_request_pinned_to_a_drafter_that_is_gone_goes_on_without_drafts(clock: list[int]) -> None:
    stage, state = RouteStage(FakeRouter(), route_every=1), request(("math",))
    assert stage.weights(state).tolist() == [0, 1, 0, 0]
    lose(stage, 1)
    asyncio.run(stage.first([state]))
    assert stage.weights(state).tolist() == [0, 0, 0, 0]
    clock[0] += FIRST_PAUSE_NS
    assert stage.weights(state).tolist() == [0, 1, 0, 0]
