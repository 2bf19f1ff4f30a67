"""Choosing tokens: against a plain reference, against the distribution, and independent of company."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.sampling.choose import Ban, Choices, Chooser, Segment
from drafthouse.sampling.noise import gumbel_at

VOCAB = 203
FILTERS = [(0, 1.0), (1, 1.0), (5, 1.0), (0, 0.5), (0, 0.95), (0, 0.999999), (20, 0.9), (500, 0.7), (7, 1e-6)]


def random_logits(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Peaked, flat and tied rows."""
    random = np.random.default_rng(seed)
    scale = random.uniform(0.1, 4.0, (rows, 1))
    logits = (random.standard_normal((rows, VOCAB)) * scale).astype(np.float32)
    logits[::3] = np.round(logits[::3])
    return logits


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(values - values.max())
    total: NDArray[np.float64] = weights / weights.sum()
    return total


def survivors(logits: NDArray[np.float32], params: SamplingParams, banned: Sequence[int] = ()) -> list[int]:
    """The definition, token by token: bans, then top-k, then top-p, ties to the lower id."""
    scaled = (logits / np.float32(params.temperature)).astype(np.float64)
    scaled[list(banned)] = -np.inf
    order = [token for token in sorted(range(len(scaled)), key=lambda token: (-scaled[token], token)) if scaled[token] > -np.inf]
    order = order[: params.top_k or len(order)]
    kept, mass = [], 0.0
    for token, probability in zip(order, softmax(scaled[order]), strict=True):
        if mass >= params.top_p and params.top_p < 1:
            break
        kept.append(token)
        mass += probability
    return kept


def noise_of(seed: int, position: int, count: int = VOCAB) -> NDArray[np.float32]:
    return gumbel_at([seed], np.zeros(count, np.int64), np.full(count, position), np.arange(count))


def choose(logits: NDArray[np.float32], params: SamplingParams, first: int = 5, candidates: int = 0, bans: Sequence[Ban] = ()) -> Choices:
    segment = Segment(params, np.arange(first, first + len(logits)))
    return Chooser(logits.shape[1]).choose(logits, [segment], candidates, bans)


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_the_choice_is_the_noisiest_survivor(top_k: int, top_p: float, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=7)
    logits = random_logits(24)
    chosen = choose(logits, params, candidates=4)
    for node, row in enumerate(logits):
        kept = survivors(row, params)
        noisy = row / np.float32(temperature) + noise_of(7, 5 + node)
        expected = sorted(kept, key=lambda token: (-noisy[token], token))[:4] if len(kept) > 1 else kept
        rest = [token for token in np.lexsort((np.arange(VOCAB), -row)).tolist() if token not in expected]
        assert chosen.candidate_ids[node].tolist() == (expected + rest)[:4]
        probabilities = softmax(row.astype(np.float64) / temperature)
        assert chosen.candidate_probs[node] == pytest.approx(probabilities[chosen.candidate_ids[node]], rel=1e-4, abs=1e-9)
        expected_logprob = np.log(softmax(row.astype(np.float64))[chosen.sampled[node]])
        assert chosen.logprobs[node] == pytest.approx(expected_logprob, abs=1e-4)
    assert np.array_equal(chosen.sampled, chosen.candidate_ids[:, 0])


def test_greedy_takes_the_highest_logit_and_the_lower_id_of_a_tie() -> None:
    logits = np.zeros((2, 8), np.float32)
    logits[0, [3, 6]] = 2
    chosen = choose(logits, SamplingParams(), candidates=3)
    assert chosen.candidate_ids.tolist() == [[3, 6, 0], [0, 1, 2]]
    assert chosen.candidate_probs[1] == pytest.approx([1 / 8] * 3)
    assert chosen.logprobs[1] == pytest.approx(-np.log(8))


def test_signed_zeros_tie() -> None:
    logits = np.full((1, 6), -3, np.float32)
    logits[0, [2, 4]] = 0.0, 0.0
    logits[0, 1] = -0.0
    kept = {int(choose(logits, SamplingParams(temperature=1.0, top_k=2, seed=seed)).sampled[0]) for seed in range(40)}
    assert kept == {1, 2}


def test_a_choice_does_not_depend_on_its_company() -> None:
    logits = random_logits(40, seed=3)
    kinds = [SamplingParams(temperature=t, top_k=k, top_p=p, seed=s) for s, (k, p) in enumerate(FILTERS) for t in (0.0, 0.8)]
    segments = [Segment(kinds[node % len(kinds)], np.array([50 + node])) for node in range(40)]
    together = Chooser(VOCAB).choose(logits, segments, 5)
    for node in range(40):
        alone = Chooser(VOCAB).choose(logits[node : node + 1], [segments[node]], 5)
        assert alone.candidate_ids[0].tolist() == together.candidate_ids[node].tolist()
        assert alone.logprobs[0] == together.logprobs[node]
        assert alone.candidate_probs[0].tolist() == together.candidate_probs[node].tolist()


def test_siblings_at_one_position_share_their_noise() -> None:
    logits = np.repeat(random_logits(1), 2, axis=0)
    segment = Segment(SamplingParams(temperature=1.0, seed=3), np.array([9, 9]))
    first, second = Chooser(VOCAB).choose(logits, [segment]).sampled
    assert first == second


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, seed=1), SamplingParams(temperature=1.0, top_p=0.9)])
def test_banned_tokens_are_not_chosen_and_keep_their_probability(params: SamplingParams) -> None:
    logits = random_logits(3)
    best = np.argsort(-logits, axis=1)[:, :3]
    bans = [Ban(node, best[node]) for node in range(2)]
    chosen = choose(logits, params, candidates=4, bans=bans)
    for node in range(2):
        assert not set(chosen.candidate_ids[node].tolist()) & set(best[node].tolist())
    probabilities = softmax(logits[0].astype(np.float64))
    assert chosen.candidate_probs[0] == pytest.approx(probabilities[chosen.candidate_ids[0]], rel=1e-4)
    assert chosen.sampled[2] == choose(logits[2:], params, first=7).sampled[0]


def test_logits_that_are_not_finite_show_in_the_log_probability() -> None:
    logits = random_logits(2)
    logits[1, 4] = np.nan
    assert np.isnan(choose(logits, SamplingParams()).logprobs).tolist() == [False, True]


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), [(0, 1.0, 0.8), (10, 1.0, 1.3), (0, 0.9, 0.8), (12, 0.8, 1.0)])
def test_samples_follow_the_filtered_distribution(top_k: int, top_p: float, temperature: float) -> None:
    """Chi-square over 20,000 (seed, position) pairs; seeds are fixed, so the test cannot flake."""
    logits = np.random.default_rng(1).standard_normal(64).astype(np.float32) * 2
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    kept = survivors(logits, params)
    expected = np.zeros(64)
    expected[kept] = softmax((logits / np.float32(temperature)).astype(np.float64)[kept])
    chooser = Chooser(64)
    counts = np.zeros(64)
    tiled = np.tile(logits, (1000, 1))
    for seed in range(20):
        segment = Segment(SamplingParams(temperature, top_k, top_p, seed), np.arange(1000))
        counts += np.bincount(chooser.choose(tiled, [segment]).sampled, minlength=64)
    assert counts[expected == 0].sum() == 0
    likely = expected * counts.sum() >= 5
    observed = [*counts[likely], counts[~likely].sum()]
    wanted = [*expected[likely] * counts.sum(), expected[~likely].sum() * counts.sum()]
    keep = np.array(wanted) > 0
    assert stats.chisquare(np.array(observed)[keep], np.array(wanted)[keep]).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_log_probabilities_that_nobody_asked_for_cost_no_finiteness_check(temperature: float) -> None:
    logits = np.random.default_rng(5).normal(size=(3, 32)).astype(np.float32)
    segments = [Segment(SamplingParams(temperature=temperature, seed=3), np.arange(3))]
    asked = Chooser(32).choose(logits, segments, 2)
    unasked = Chooser(32).choose(logits, segments, 2, with_logprobs=False)
    assert unasked.sampled.tolist() == asked.sampled.tolist()
    assert unasked.candidate_probs.tolist() == asked.candidate_probs.tolist()
    assert unasked.logprobs.tolist() == [0.0, 0.0, 0.0]
    logits[1] = np.nan
    assert np.isnan(Chooser(32).choose(logits, segments, with_logprobs=False).logprobs).tolist() == [False, True, False]
