"""Routing: first scores, verified scores, choice, pins, and the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from drafthouse.routing.contract import RouteResult, RouteRow
from drafthouse.routing.prompt_likelihood import PromptLikelihoodOptions, PromptLikelihoodRouter
from drafthouse.routing.registry import DEFAULT_POLICY, ROUTERS, TOKEN_EMBEDDINGS_FILE, load_router
from drafthouse.routing.scores import agreement, choose, decayed, first_scores, harmonic, normalise_rows

NAN = float("nan")
# Tokens 0 and 1 are alike (cosine 0.8), 2 is at right angles to 0, 3 is its opposite.
EMBEDDINGS = np.array([[1, 0], [0.8, 0.6], [0, 2], [-1, 0]], np.float32)


def row(
    prompt_logprob: Sequence[float] = (-1.0, -2.0),
    scores: Sequence[float] | None = None,
    proposals: Sequence[Sequence[int]] | None = None,
    probs: Sequence[Sequence[float]] | None = None,
    target: Sequence[int] = (),
    allowed: Sequence[bool] | None = None,
) -> RouteRow:
    num_drafters = len(prompt_logprob)
    proposed = np.array(proposals if proposals is not None else [[]] * num_drafters, np.int32)
    return RouteRow(
        request_uid=1,
        prompt_logprob=np.array(prompt_logprob, np.float32),
        scores=np.array(scores or [NAN] * num_drafters, np.float32),
        proposals=proposed,
        proposal_probs=np.full(proposed.shape, 0.5, np.float32) if probs is None else np.array(probs, np.float32),
        target_tokens=np.array(target, np.int32),
        allowed=np.array(allowed or [True] * num_drafters, np.bool_),
    )


def route(*rows: RouteRow, **options: float) -> list[RouteResult]:
    fixed = {"margin": 0.7, "decay": 0.9, "prior": 0.5, "sharpness": 1.0}
    router = PromptLikelihoodRouter(EMBEDDINGS, PromptLikelihoodOptions(**{**fixed, **options}))  # type: ignore[arg-type]
    return list(asyncio.run(router.route(rows)))


def test_first_scores_follow_the_likelihood_and_unknown_counts_as_worst() -> None:
    got = first_scores(np.array([[-1, -2, NAN], [NAN, NAN, NAN]], np.float32), prior=0.5, sharpness=1.0)
    assert got == pytest.approx(np.array([[0.5, 0.5 * np.exp(-1), 0.5 * np.exp(-1)], [0.5, 0.5, 0.5]]), abs=1e-6)


def test_agreement_is_one_when_equal_else_the_positive_cosine() -> None:
    proposals = np.array([[[0, 1, 2, 3, 99, 99, -1]]], np.int32)
    got = agreement(normalise_rows(EMBEDDINGS), proposals, np.array([[0, 0, 0, 0, 99, 0, 0]], np.int32))
    assert got[0, 0] == pytest.approx([1, 0.8, 0, 0, 1, 0, 0])


def test_a_zero_embedding_is_no_division_by_zero() -> None:
    assert normalise_rows(np.zeros((1, 2), np.float32)).tolist() == [[0, 0]]


def test_harmonic_mean_needs_both() -> None:
    a, b = np.array([1, 0, 0, 0.5], np.float32), np.array([1, 1, 0, 0.25], np.float32)
    assert harmonic(a, b) == pytest.approx([1, 0, 0, 1 / 3])


def test_decay_is_the_moving_average_over_counted_positions() -> None:
    counted = np.array([[[True, False, True, True]]])
    evidence = np.array([[[0.2, 9, 0.4, 0.6]]], np.float32)
    expected = 0.5
    for value in (0.2, 0.4, 0.6):
        expected = 0.9 * expected + 0.1 * value
    assert decayed(np.array([[0.5]], np.float32), evidence, counted, 0.9)[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "allowed", "expected"),
    [
        ([0.2, 0.8, 0.6, 0.7], [True] * 4, [0, 1, 0, 0.875]),  # at most two, best first
        ([0.2, 0.8, 0.3, 0.1], [True] * 4, [0, 1, 0, 0]),  # the second is too far behind
        ([0.5, 0.5, 0.5, 0.5], [True] * 4, [1, 1, 0, 0]),  # ties go to the lower index
        ([0.2, 0.8, 0.6, 0.7], [True, False, False, False], [1, 0, 0, 0]),  # a pin
        ([0.2, 0.8, 0.6, 0.7], [False] * 4, [0, 0, 0, 0]),  # nobody left
    ],
)
def test_choice(scores: list[float], allowed: list[bool], expected: list[float]) -> None:
    got = choose(np.array([scores], np.float32), np.array([allowed]), max_drafters=2, margin=0.7)
    assert got[0] == pytest.approx(expected)


def test_a_new_request_goes_to_who_predicts_its_prompt_best() -> None:
    (got,) = route(row([-3.0, -1.5, -4.0]))
    assert got.weights.tolist() == [0, 1, 0]
    assert got.scores[1] == pytest.approx(0.5)
    assert got.scores.argsort().tolist() == [2, 0, 1]


def test_who_agrees_with_the_target_overtakes_who_is_only_sure() -> None:
    state = row([-1.0, -1.2])
    (first,) = route(state)
    assert first.weights[0] == 1
    wrong, right = [2] * 5, [0] * 5
    later = row([-1.0, -1.2], first.scores.tolist(), [wrong, right], [[0.95] * 5, [0.5] * 5], [0] * 5)
    (second,) = route(later)
    assert second.weights[1] == 1
    assert second.scores[0] < first.scores[0]


def test_positions_that_were_not_reached_say_nothing() -> None:
    reached = row([-1.0, -1.0], [0.5, 0.5], [[0, 2], [0, 0]], None, [0, -1])
    (got,) = route(reached)
    assert got.scores[0] == got.scores[1]


def test_a_drafter_that_did_not_propose_keeps_its_score() -> None:
    (got,) = route(row([-1.0, -2.0], [0.5, 0.25], [[0, 0], [-1, -1]], None, [0, 0]))
    assert got.scores[1] == np.float32(0.25)
    assert got.scores[0] > 0.5


def test_a_drafter_that_was_never_scored_stays_unknown_until_it_proposes() -> None:
    (first,) = route(row([-1.0, NAN]))
    assert first.weights.tolist() == [1, 1]  # unknown counts as the worst known one, here the only one
    assert np.isnan(first.scores[1])
    (second,) = route(row([-1.0, NAN], first.scores.tolist(), [[0], [0]], None, [0]))
    assert not np.isnan(second.scores).any()
    (scored,) = route(row([-1.0, -3.0], first.scores.tolist()))
    assert scored.scores[1] == pytest.approx(0.5 * np.exp(-2))


def test_probabilities_that_are_not_numbers_count_as_no_confidence() -> None:
    (got,) = route(row([-1.0, -1.0], [0.5, 0.5], [[0], [0]], [[NAN], [0.5]], [0]))
    assert got.scores[0] == pytest.approx(0.45)
    assert got.weights[1] == 1


def test_the_best_drafter_stays_choosable_however_bad_it_was() -> None:
    (got,) = route(row([-1.0], [1e-30], [[3] * 8], None, [0] * 8))
    assert got.weights.tolist() == [1]


def test_rows_do_not_influence_each_other() -> None:
    rows = [row([-1.0, -1.1], [0.4, 0.5], [[0, 1], [0, 0]], None, [0, 0]), row([-3.0, -2.0]), row([-1.0, NAN], allowed=[False, True])]
    together = route(*rows)
    for got, alone in zip(together, (route(one)[0] for one in rows), strict=True):
        np.testing.assert_array_equal(got.scores, alone.scores)
        np.testing.assert_array_equal(got.weights, alone.weights)


def test_nothing_to_route() -> None:
    assert route() == []


@pytest.mark.parametrize("bad", [{"max_drafters": 0}, {"margin": 0.0}, {"decay": 1.5}, {"prior": -1.0}, {"sharpness": -0.1}])
def test_bad_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="max_drafters"):
        route(**bad)


@pytest.mark.parametrize("policy", sorted(ROUTERS))
def test_every_policy_keeps_the_contract(tmp_path: Path, policy: str) -> None:
    np.save(tmp_path / TOKEN_EMBEDDINGS_FILE, EMBEDDINGS.astype(np.float16))
    router = load_router(tmp_path, policy)
    pinned = row([-1.0, -2.0, NAN], proposals=[[0], [-1], [2]], target=[0], allowed=[False, True, True])
    gone = row([-1.0, -2.0, -3.0], allowed=[False] * 3)
    first, second = asyncio.run(router.route([pinned, gone]))
    assert first.weights[0] == 0
    assert first.weights.max() == 1
    assert second.weights.tolist() == [0, 0, 0]
    assert first.weights.dtype == first.scores.dtype == np.float32


def test_load_router_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"unknown routing policy 'best'; known: {DEFAULT_POLICY}"):
        load_router(tmp_path, "best")
    with pytest.raises(OSError, match="token_embeddings"):
        load_router(tmp_path)
    np.save(tmp_path / TOKEN_EMBEDDINGS_FILE, EMBEDDINGS[0])
    with pytest.raises(ValueError, match=r"expected \[vocab, dim\]"):
        load_router(tmp_path)
    np.save(tmp_path / TOKEN_EMBEDDINGS_FILE, EMBEDDINGS)
    with pytest.raises(ValueError, match="unknown option"):
        load_router(tmp_path, options={"margins": 1})
