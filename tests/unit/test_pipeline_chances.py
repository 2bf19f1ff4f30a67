"""What drafters' probabilities are worth: learned for each, borrowed from all where little is known, by rank."""

import numpy as np
import pytest
from numpy.typing import NDArray

from drafthouse.core.chance import chance, score_logit
from drafthouse.pipeline.chances import Chances, Verdict

NUM_DRAFTERS = 3


def _verdict(rng: np.random.Generator, source: int, line: tuple[float, float], size: int = 40, rank: int = 0) -> Verdict:
    """Proposals of one drafter whose chance is sigmoid(a + b · logit(probability))."""
    prob = rng.uniform(0.05, 0.95, size).astype(np.float32)
    hit = rng.random(size) < np.array([chance(*line, value) for value in prob.tolist()])
    return Verdict(np.full(size, source, np.int32), np.full(size, rank, np.int32), prob, np.full(size, 0.5, np.float32), hit)


def _predicted(table: NDArray[np.float32], drafter: int, prob: float, rank: int = 0, score: float = 0.5) -> float:
    intercept, slope, score_slope = table[rank, drafter].tolist()
    return chance(intercept + score_slope * score_logit(score), slope, prob)


def test_before_anything_was_seen_all_drafters_are_alike_and_first_choices_count_for_more() -> None:
    chances = Chances(NUM_DRAFTERS)
    table = chances.table()
    assert table.shape == (2, NUM_DRAFTERS, 3)
    assert table.dtype == np.float32
    assert (table == table[:, :1]).all()
    assert _predicted(table, 0, 0.5, rank=0) > _predicted(table, 0, 0.5, rank=1) == pytest.approx(0.5)
    assert chances.num_observations == 0


def test_each_drafter_gets_its_own_line() -> None:
    rng, chances = np.random.default_rng(0), Chances(NUM_DRAFTERS)
    lines = [(1.0, 1.0), (-1.0, 0.5), (0.0, 2.0)]
    for _ in range(40):
        chances.learn([_verdict(rng, drafter, line) for drafter, line in enumerate(lines)])
    table = chances.table()
    for drafter, line in enumerate(lines):
        for prob in (0.2, 0.5, 0.8):
            assert _predicted(table, drafter, prob) == pytest.approx(chance(*line, prob), abs=0.06)
    assert chances.num_observations == 40 * 40 * NUM_DRAFTERS


def test_a_drafter_that_was_not_seen_is_judged_by_the_others() -> None:
    rng, chances = np.random.default_rng(1), Chances(NUM_DRAFTERS)
    before = _predicted(chances.table(), 2, 0.5)
    for _ in range(20):
        chances.learn([_verdict(rng, drafter, (-2.0, 1.0)) for drafter in (0, 1)])
    after = _predicted(chances.table(), 2, 0.5)
    assert after == pytest.approx(chance(-2.0, 1.0, 0.5), abs=0.05)
    assert after < before


def test_what_is_known_of_a_drafter_outweighs_the_others_little_by_little() -> None:
    rng, chances = np.random.default_rng(2), Chances(NUM_DRAFTERS)
    for _ in range(20):
        chances.learn([_verdict(rng, drafter, (-2.0, 1.0)) for drafter in (0, 1)])
    steps = []
    for _ in range(6):
        steps.append(_predicted(chances.table(), 2, 0.5))
        chances.learn([_verdict(rng, 2, (2.0, 1.0), size=60)])
    assert steps == sorted(steps)
    assert steps[0] < 0.25
    assert steps[1] < steps[-1] - 0.02
    assert steps[-1] > 0.7


def test_first_choices_and_others_are_learned_apart() -> None:
    rng, chances = np.random.default_rng(3), Chances(NUM_DRAFTERS)
    untouched = chances.table()[0].copy()
    for _ in range(20):
        chances.learn([_verdict(rng, 0, (-1.5, 1.0), rank=rank) for rank in (1, 2)])
    table = chances.table()
    np.testing.assert_array_equal(table[0], untouched)
    assert _predicted(table, 0, 0.5, rank=1) == pytest.approx(chance(-1.5, 1.0, 0.5), abs=0.06)


def test_a_routing_score_that_tells_something_is_used() -> None:
    rng, chances = np.random.default_rng(4), Chances(NUM_DRAFTERS)
    for _ in range(40):
        score = rng.choice([0.1, 0.9], 60).astype(np.float32)
        columns = np.zeros(60, np.int32), np.zeros(60, np.int32), np.full(60, 0.5, np.float32)
        chances.learn([Verdict(*columns, score, rng.random(60) < score)])
    table = chances.table()
    assert _predicted(table, 0, 0.5, score=0.9) == pytest.approx(0.9, abs=0.1)
    assert _predicted(table, 0, 0.5, score=0.1) == pytest.approx(0.1, abs=0.1)


def test_a_score_that_is_not_known_harms_nothing() -> None:
    rng, chances = np.random.default_rng(5), Chances(NUM_DRAFTERS)
    verdict = _verdict(rng, 0, (0.0, 1.0))
    chances.learn([Verdict(verdict.source, verdict.rank, verdict.prob, np.full(40, np.nan, np.float32), verdict.hit)])
    assert np.isfinite(chances.table()).all()


def test_no_verdicts_change_nothing() -> None:
    chances = Chances(NUM_DRAFTERS)
    before = chances.table()
    chances.learn([])
    np.testing.assert_array_equal(chances.table(), before)


def test_calibrated_chances_are_more_reliable_than_raw_probabilities() -> None:
    rng, chances = np.random.default_rng(6), Chances(NUM_DRAFTERS)
    for _ in range(60):
        chances.learn([_verdict(rng, drafter, (line, 0.7)) for drafter, line in enumerate((2.0, -1.0, 0.5))])
    calibrated, raw = chances.reliability()
    assert calibrated.expected_calibration_error < 0.05 < raw.expected_calibration_error
    assert calibrated.count.sum() == raw.count.sum() == 2 * chances.num_observations
