"""The router's arithmetic, and the registry of policies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from drafthouse.routing.contract import NUM_STATE, RouteRow, new_route_state
from drafthouse.routing.registry import DEFAULT_POLICY, ROUTERS, TOKEN_EMBEDDINGS_FILE, load_router
from drafthouse.routing.scores import (
    agreement,
    beside_peers,
    best_first,
    harmonic,
    later_weights,
    normalise_rows,
    relative_likelihood,
    running_mean,
)

NAN = float("nan")
# Tokens 0 and 1 are alike (cosine 0.8), 2 is at right angles to 0, 3 is its opposite.
EMBEDDINGS = np.array([[1, 0], [0.8, 0.6], [0, 2], [-1, 0]], np.float32)


def floats(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_prompt_s_likelihood_is_relative_and_unknown_counts_as_worst() -> None:
    got = relative_likelihood(floats([-1, -2, NAN, -9], [NAN, NAN, NAN, NAN]), sharpness=0.5, most_behind=3.0)
    assert got == pytest.approx(floats([1, np.exp(-0.5), np.exp(-1.5), np.exp(-1.5)], [1, 1, 1, 1]))


def test_agreement_is_one_when_equal_else_the_positive_cosine() -> None:
    proposals = np.array([[[0, 1, 2, 3, 99, 99, -1]]], np.int32)
    got = agreement(normalise_rows(EMBEDDINGS), proposals, np.array([[0, 0, 0, 0, 99, 0, 0]], np.int32))
    assert got[0, 0] == pytest.approx([1, 0.8, 0, 0, 1, 0, 0])


def test_a_zero_embedding_is_no_division_by_zero() -> None:
    assert normalise_rows(np.zeros((1, 2), np.float32)).tolist() == [[0, 0]]


def test_harmonic_mean_needs_both() -> None:
    assert harmonic(floats([1, 0, 0, 0.5], [1, 1, 0, 0.25])) == pytest.approx(floats(1, 0, 0, 1 / 3))


def test_evidence_decays_with_every_verified_position_whoever_proposed_there() -> None:
    reached = np.array([[True, True, False, True, True]])
    assert later_weights(reached, 0.9)[0, [0, 1, 3, 4]] == pytest.approx([0.9**3, 0.9**2, 0.9, 1])
    counted = np.array([[[True, False, False, True, False]]])
    weights = np.where(counted, later_weights(reached, 0.9)[:, None], np.float32(0))
    held = floats([5.0]) * 0.9**4
    total = held + weights.sum(axis=2)
    mean, count = 0.5, 5.0  # the same, one position after the other
    for value in (0.2, None, 0.6, None):
        count *= 0.9
        if value is not None:
            mean, count = (mean * count + value) / (count + 1), count + 1
    assert total[0, 0] == pytest.approx(count)
    signals = floats([[[0.2, 9, 9, 0.6, 9]]], [[[0, 9, 9, 0, 9]]])
    got = running_mean(floats([[0.5]], [[0]]), signals, weights, held, total)
    assert got[:, 0, 0] == pytest.approx([mean, 0])


def test_what_all_who_proposed_have_in_common_is_the_text_s_doing() -> None:
    counted = np.array([[[True, True], [True, False], [False, False]]])
    evidence = floats([[[0.2, 0.2], [0.4, 9], [9, 9]]], [[[0.8, 0.8], [0.8, 9], [9, 9]]])
    expected = floats([[0.8, 0.8, 0.8]], [[0.8, 0.8, 0.8]])
    confidence, near = beside_peers(evidence, expected, counted, share=1.0)
    assert confidence[0, :2, 0] == pytest.approx([0.7, 0.9])  # as far apart as before, around what was expected
    assert near[0, :2, 0] == pytest.approx([0.8, 0.8])
    assert confidence[0, 0, 1] == pytest.approx(0.2)  # nobody to compare with
    assert beside_peers(evidence, expected, counted, share=0.5)[0, 0, :2, 0] == pytest.approx([0.45, 0.65])


def test_rank_is_by_value_then_by_index() -> None:
    assert best_first(floats([0.2, 0.9, 0.2, -np.inf], [1, 1, 2, 3])).tolist() == [[1, 0, 2, 3], [2, 3, 1, 0]]


def contract_row(allowed: list[bool]) -> RouteRow:
    proposals = np.array([[0], [-1], [2]], np.int32)
    return RouteRow(
        request_uid=1,
        prompt_logprob=floats(-1.0, -2.0, NAN),
        state=new_route_state(3),
        proposals=proposals,
        proposal_probs=np.full(proposals.shape, 0.5, np.float32),
        target_tokens=np.array([0], np.int32),
        allowed=np.array(allowed),
        num_rounds=1,
        accepted_len=1.0,
        drafted_len=1.0,
    )


@pytest.mark.parametrize("policy", sorted(ROUTERS))
def test_every_policy_keeps_the_contract(tmp_path: Path, policy: str) -> None:
    np.save(tmp_path / TOKEN_EMBEDDINGS_FILE, EMBEDDINGS.astype(np.float16))
    router = load_router(tmp_path, policy)
    first, second = asyncio.run(router.route([contract_row([False, True, True]), contract_row([False] * 3)]))
    assert first.weights[0] == 0
    assert first.weights.max() == 1
    assert second.weights.tolist() == [0, 0, 0]
    for result in (first, second):
        assert result.weights.dtype == result.scores.dtype == result.state.dtype == np.float32
        assert result.state.shape == (3, NUM_STATE)
        assert ((result.scores > 0) & (result.scores < 1)).all()
    assert asyncio.run(router.route([])) == []


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
