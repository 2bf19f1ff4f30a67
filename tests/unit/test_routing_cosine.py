"""The policy `cosine`: first scores, verified scores, exploring and exploiting, pins, and that it keeps nothing to itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from drafthouse.routing.contract import RouteResult, RouteRow, RouteState, new_route_state
from drafthouse.routing.cosine import CosineOptions, CosineRouter

NAN = float("nan")
# Tokens 0 and 1 are alike (cosine 0.8), 2 is at right angles to 0, 3 is its opposite.
EMBEDDINGS = np.array([[1, 0], [0.8, 0.6], [0, 2], [-1, 0]], np.float32)
SURE, UNSURE = 0.95, 0.5


def row(
    prompt_logprob: Sequence[float] = (-1.0, -1.0),
    state: np.ndarray | None = None,
    proposals: Sequence[Sequence[int]] | None = None,
    probs: Sequence[Sequence[float]] | None = None,
    target: Sequence[int] = (),
    allowed: Sequence[bool] | None = None,
    accepted_len: float = 5.0,
    drafted_len: float = 10.0,
    max_drafters: int = 0,
) -> RouteRow:
    num_drafters = len(prompt_logprob)
    proposed = np.array(proposals if proposals is not None else [[]] * num_drafters, np.int32)
    return RouteRow(
        request_uid=1,
        prompt_logprob=np.array(prompt_logprob, np.float32),
        state=new_route_state(num_drafters) if state is None else state,
        proposals=proposed,
        proposal_probs=np.full(proposed.shape, UNSURE, np.float32) if probs is None else np.array(probs, np.float32),
        target_tokens=np.array(target, np.int32),
        allowed=np.array(allowed or [True] * num_drafters, np.bool_),
        num_rounds=int(len(target) > 0),
        accepted_len=accepted_len,
        drafted_len=drafted_len,
        max_drafters=max_drafters,
    )


def route(*rows: RouteRow, **options: float) -> list[RouteResult]:
    router = CosineRouter(EMBEDDINGS, CosineOptions(**options))  # type: ignore[arg-type]
    return list(asyncio.run(router.route(rows)))


def workers(result: RouteResult) -> set[int]:
    return set(np.flatnonzero(result.weights).tolist())


def known(*drafters: tuple[float, float, float], age: float = 40.0) -> np.ndarray:
    """A routing state of (confidence, agreement, evidence) per drafter."""
    return np.array([(*drafter, age) for drafter in drafters], np.float32)


def test_a_new_request_goes_to_those_who_predict_its_prompt_best() -> None:
    (got,) = route(row([-3.0, -1.5, -2.0, -4.0], max_drafters=2))
    assert workers(got) == {1, 2}
    assert got.weights[1] == 1
    assert got.scores.argsort().tolist()[2:] == [2, 1]


def test_who_agrees_with_the_target_overtakes_who_is_only_sure() -> None:
    (first,) = route(row([-1.0, -1.2], max_drafters=1))
    assert workers(first) == {0}
    wrong, right = [2] * 8, [0] * 8
    later = row([-1.0, -1.2], first.state, [wrong, right], [[SURE] * 8, [UNSURE] * 8], [0] * 8)
    (second,) = route(later, max_drafters=1)
    assert workers(second) == {1}
    assert second.scores[0] < first.scores[0]


def test_a_near_miss_is_better_than_a_far_one() -> None:
    (got,) = route(row(proposals=[[1] * 5, [2] * 5], target=[0] * 5))
    assert got.state[:, RouteState.AGREEMENT] == pytest.approx(np.array([0.8, 0]), abs=0.35)  # around what both had in common
    assert got.scores[0] > got.scores[1]


def test_positions_that_were_not_reached_say_nothing() -> None:
    (got,) = route(row(proposals=[[0, 2], [0, 0]], target=[0, -1]))
    assert got.scores[0] == got.scores[1]
    assert got.state[:, RouteState.AGE].tolist() == [1, 1]


def test_evidence_fades_also_of_drafters_that_sit_out() -> None:
    state = known((0.6, 0.9, 10.0), (0.6, 0.9, 10.0))
    (got,) = route(row(state=state, proposals=[[0, 0], [-1, -1]], target=[0, 0]), decay=0.9)
    assert got.state[1, RouteState.EVIDENCE] == pytest.approx(8.1)
    assert got.state[0, RouteState.EVIDENCE] == pytest.approx(8.1 + 1.9)
    assert got.state[1, RouteState.AGREEMENT] == pytest.approx(0.9)


def test_what_is_not_renewed_fades_into_the_mean_of_all() -> None:
    bad, good = (0.3, 0.2, 12.0), (0.7, 0.9, 12.0)
    state = known(bad, good, good)
    scores = []
    for _ in range(16):
        (got,) = route(row([-1.0] * 3, state, [[-1] * 5, [0] * 5, [0] * 5], [[NAN] * 5, [0.7] * 5, [0.7] * 5], [0] * 5))
        state = got.state
        scores.append(float(got.scores[0]))
    assert scores == sorted(scores)
    assert scores[-1] > 0.9 * got.scores[1]


def test_exploiting_takes_the_best_and_those_who_are_nearly_as_good() -> None:
    state = known((0.7, 0.9, 20.0), (0.65, 0.85, 20.0), (0.2, 0.3, 20.0), (0.6, 0.8, 20.0))
    last = {"proposals": [[0], [0], [-1], [0]], "probs": [[0.7], [0.7], [0], [0.7]], "target": [0], "accepted_len": 4.0}
    (got,) = route(row([-1.0] * 4, state, **last), margin=0.8, max_drafters=4)  # type: ignore[arg-type]
    assert workers(got) == {0, 1, 3}
    assert got.weights[0] == 1
    assert (got.weights[[1, 3]] < 1).all()
    (got,) = route(row([-1.0] * 4, state, **last), margin=0.8, max_drafters=2)  # type: ignore[arg-type]
    assert workers(got) == {0, 1}


def test_a_request_explores_at_first_and_whenever_little_is_accepted() -> None:
    options = {"max_drafters": 2, "explore_below": 3.0}
    state = known((0.7, 0.9, 20.0), (0.2, 0.3, 20.0), (0.6, 0.8, 20.0))
    verdict = {"proposals": [[0], [0], [0]], "target": [0]}
    (first,) = route(row([-1.0] * 3), **options)
    (content,) = route(row([-1.0] * 3, state, accepted_len=3.0, **verdict), **options)  # type: ignore[arg-type]
    (worried,) = route(row([-1.0] * 3, state, accepted_len=2.9, **verdict), **options)  # type: ignore[arg-type]
    assert [len(workers(got)) for got in (first, content, worried)] == [3, 2, 3]
    (worried,) = route(row([-1.0] * 3, state, accepted_len=2.9, **verdict), **options, explore_drafters=1)  # type: ignore[arg-type]
    assert len(workers(worried)) == 1


def test_exploring_prefers_who_was_not_used_and_the_best_stays() -> None:
    state = known((0.7, 0.9, 20.0), (0.6, 0.8, 20.0), (0.2, 0.3, 0.5))
    last = {"proposals": [[0], [0], [-1]], "probs": [[0.7], [0.6], [0]], "target": [0]}

    def choice(accepted_len: float, wanted: int, **options: float) -> set[int]:
        (got,) = route(row([-1.0] * 3, state, accepted_len=accepted_len, max_drafters=wanted, **last), **options)  # type: ignore[arg-type]
        assert got.weights.max() == 1
        return workers(got)

    assert choice(4.0, 2) == {0, 1}
    assert choice(1.0, 2) == {0, 2}
    assert choice(1.0, 2, explore_weight=0.0) == {0, 1}
    assert choice(1.0, 1) == {2}  # a seat alone is no exception
    assert choice(1.0, 1, exploit_weight=5.0) == {0}


def test_half_of_a_short_draft_is_no_reason_to_explore() -> None:
    short = row([-1.0] * 3, proposals=[[0]] * 3, target=[0], accepted_len=1.0, drafted_len=2.0)
    assert len(workers(route(short, explore_below=2.5, max_drafters=2)[0])) == 2


def test_the_call_may_ask_for_fewer_drafters() -> None:
    rows = [row([-1.0] * 5, max_drafters=wanted) for wanted in (0, 1, 4)]
    assert [len(workers(got)) for got in route(*rows)] == [5, 1, 4]
    assert [len(workers(got)) for got in route(*rows, explore_drafters=3)] == [3, 1, 3]


def test_pins_are_kept_whatever_the_scores_say() -> None:
    state = known((0.2, 0.1, 20.0), (0.7, 0.9, 20.0), (0.7, 0.9, 20.0))
    (got,) = route(row([-1.0] * 3, state, allowed=[True, False, False]))
    assert got.weights.tolist() == [1, 0, 0]
    (got,) = route(row([-1.0] * 3, state, allowed=[True, True, False], max_drafters=1))
    assert workers(got) == {1}
    (got,) = route(row([-1.0] * 3, state, allowed=[False] * 3))
    assert got.weights.tolist() == [0, 0, 0]


def test_numbers_that_are_none_do_not_spread() -> None:
    state = known((NAN, np.inf, 3.0), (0.6, 0.9, -5.0), (0.6, 0.9, 5.0))
    (got,) = route(row([NAN, -np.inf, -1.0], state, [[0], [0], [0]], [[NAN], [UNSURE], [np.inf]], [0]))
    assert np.isfinite(got.state).all()
    assert np.isfinite(got.scores).all()
    assert np.isfinite(got.weights).all()
    assert got.scores.argmin() == 0  # no probability is no confidence


def test_the_best_drafter_stays_choosable_however_bad_it_was() -> None:
    (got,) = route(row([-1.0], known((0.0, 0.0, 1e6)), [[3] * 8], [[0.0] * 8], [0] * 8))
    assert got.weights.tolist() == [1]
    assert 0 < got.scores[0] < 0.01


def test_rows_do_not_influence_each_other() -> None:
    rows = [
        row([-1.0, -1.1], known((0.4, 0.5, 3), (0.5, 0.5, 2)), [[0, 1], [0, 0]], None, [0, 0]),
        row([-3.0, -2.0]),
        row([-1.0, NAN], None, [[0, -1, 2], [2, 2, 2]], None, [0, 1, -1], allowed=[False, True], accepted_len=0.0),
    ]
    for got, alone in zip(route(*rows), (route(one)[0] for one in rows), strict=True):
        np.testing.assert_allclose(got.state, alone.state, rtol=1e-6)
        np.testing.assert_allclose(got.weights, alone.weights, rtol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_drafters": 0},
        {"explore_drafters": -1},
        {"margin": 0.0},
        {"decay": 1.5},
        {"prior_evidence": -1.0},
        {"sharpness": -0.1},
        {"peer_share": 1.1},
        {"exploit_weight": -1.0},
        {"explore_weight": NAN},
        {"unknown_evidence": np.inf},
    ],
)
def test_bad_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CosineOptions(**bad)  # type: ignore[arg-type]
