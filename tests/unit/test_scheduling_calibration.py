"""Calibrated chances of acceptance: what is learned, what is kept, what is published."""

import json

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from drafthouse.scheduling.calibration import Calibration

NAN = float("nan")


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-z))


def _feed(calibration: Calibration, truth: NDArray[np.float64], count: int, seed: int = 0) -> None:
    """``count`` observations in batches of 40 whose hits follow the coefficients ``truth`` [D, 3]."""
    rng = np.random.default_rng(seed)
    for _ in range(count // 40):
        drafter = rng.integers(0, len(truth), 40)
        prob, score = rng.beta(2, 1, 40), rng.uniform(0.2, 0.95, 40)
        a, b, c = truth[drafter].T
        chance = _sigmoid(a + b * np.log(prob / (1 - prob)) + c * np.log(score / (1 - score)))
        calibration.observe(drafter, prob, score, rng.random(40) < chance)


def test_starts_as_the_drafters_own_probability() -> None:
    prob = np.array([0.02, 0.5, 0.97], np.float32)
    np.testing.assert_allclose(Calibration(3).chance([0, 1, 2], prob, [0.1, NAN, 0.9]), prob, atol=1e-6)


def test_learns_each_drafters_coefficients() -> None:
    truth = np.array([[-1.0, 0.6, 0.0], [0.3, 1.2, 0.8], [-2.0, 1.0, 0.5]])
    calibration = Calibration(3, memory=20_000)
    _feed(calibration, truth, 12_000)
    np.testing.assert_allclose(calibration.table(), truth, atol=0.2)
    # Predictions made before learning include those of the first rounds; still far better than the raw probabilities.
    assert calibration.reliability().expected_calibration_error < 0.02
    assert calibration.raw_reliability().expected_calibration_error > 0.1


def test_forgets_what_no_longer_holds() -> None:
    calibration = Calibration(1, memory=500)
    _feed(calibration, np.array([[1.5, 1.0, 0.0]]), 4000)
    _feed(calibration, np.array([[-1.5, 1.0, 0.0]]), 4000, seed=1)
    assert calibration.table()[0, 0] == pytest.approx(-1.5, abs=0.4)


def test_chance_rises_with_the_drafters_probability_whatever_is_observed() -> None:
    calibration = Calibration(1)
    for _ in range(50):  # the surer, the wronger
        calibration.observe([0, 0, 0], [0.95, 0.5, 0.05], [0.5, 0.5, 0.5], [False, True, True])
    chances = calibration.chance(0, [0.05, 0.5, 0.95], 0.5)
    assert (np.diff(chances) > 0).all()
    assert chances[1] == pytest.approx(2 / 3, abs=0.1)


@pytest.mark.parametrize("hit", [False, True])
def test_a_large_one_sided_batch_does_not_overshoot(hit: bool) -> None:
    calibration = Calibration(2)
    count = 500
    calibration.observe(np.zeros(count, int), np.full(count, 0.9), np.full(count, 0.7), np.full(count, hit))
    assert np.isfinite(calibration.table()).all()
    surprising = calibration.chance(0, 0.9, 0.7)
    assert surprising > 0.95 if hit else surprising < 0.05
    np.testing.assert_array_equal(calibration.table()[1], [0, 1, 0])  # the other drafter learned nothing


def test_extreme_and_unknown_inputs_stay_finite() -> None:
    calibration = Calibration(1)
    calibration.observe([0] * 4, [0.0, 1.0, 0.5, 1.0], [0.0, 1.0, NAN, NAN], [True, False, True, True])
    chances = calibration.chance([0] * 4, [0.0, 1.0, 0.5, 1.0], [NAN, 0.0, 1.0, 2.0])
    assert np.isfinite(chances).all()
    assert ((chances > 0) & (chances < 1)).all()


def test_nothing_observed_changes_nothing() -> None:
    calibration = Calibration(2)
    calibration.observe([], [], [], [])
    np.testing.assert_array_equal(calibration.table(), Calibration(2).table())
    assert calibration.num_observations == 0
    assert np.isnan(calibration.reliability().expected_calibration_error)
    assert json.loads(json.dumps(calibration.reliability().as_dict()))["expected_calibration_error"] is None


def test_a_table_travels() -> None:
    calibration = Calibration(3)
    _feed(calibration, np.array([[-1.0, 0.6, 0.0]] * 3), 2000)
    copy = Calibration.from_table(calibration.table())
    prob, score = np.linspace(0.1, 0.9, 3), np.array([0.3, NAN, 0.8])
    np.testing.assert_allclose(copy.chance([0, 1, 2], prob, score), calibration.chance([0, 1, 2], prob, score), atol=1e-6)
    assert calibration.table().dtype == np.float32


@pytest.mark.parametrize("table", [[[0.0, 1.0]], [0.0, 1.0, 0.0], [[0.0, NAN, 0.0]]])
def test_a_malformed_table_is_refused(table: ArrayLike) -> None:
    with pytest.raises(ValueError, match="calibration table"):
        Calibration.from_table(table)


def test_reliability_counts_what_happened() -> None:
    calibration = Calibration(1)
    calibration.observe([0] * 4, [0.15, 0.15, 0.95, 0.95], [0.5] * 4, [False, True, True, True])
    diagram = calibration.raw_reliability()
    assert diagram.count[[1, 9]].tolist() == [2, 2]
    np.testing.assert_allclose(diagram.observed[[1, 9]], [0.5, 1.0])
    np.testing.assert_allclose(diagram.mean_predicted[[1, 9]], [0.15, 0.95])
    assert diagram.expected_calibration_error == pytest.approx((2 * 0.35 + 2 * 0.05) / 4)


def test_shapes_broadcast() -> None:
    chances = Calibration(4).chance(np.arange(4)[:, None], np.full((4, 5), 0.5), np.full((4, 1), 0.7))
    assert chances.shape == (4, 5)
