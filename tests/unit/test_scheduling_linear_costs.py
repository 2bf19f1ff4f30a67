"""Stage times as linear functions of their shape, learned online."""

import numpy as np
import pytest

from drafthouse.scheduling.linear_costs import LinearCosts

MS = 1e6
PRIOR = (10 * MS, 1 * MS, 0.5 * MS)


def _observe(costs: LinearCosts, true_ns: tuple[float, ...], num: int, noise: float = 0.0, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(num):
        rows = int(rng.integers(1, 9))
        shape = (1, rows, rows * int(rng.integers(1, 8)))
        costs.observe(shape, float(np.dot(shape, true_ns)) * (1 + noise * float(rng.standard_normal())))


def test_before_anything_was_seen_the_prior_speaks() -> None:
    costs = LinearCosts(PRIOR)
    assert costs.coefficients.tolist() == list(PRIOR)
    assert float(costs.predict_ns((1, 2, 4))) == 14 * MS
    assert costs.num_observations == 0


def test_the_first_observation_corrects_the_scale() -> None:
    costs = LinearCosts(PRIOR)
    costs.observe((1, 2, 4), 42 * MS)
    np.testing.assert_allclose(costs.coefficients, 3 * np.array(PRIOR))


@pytest.mark.parametrize("true_ms", [(10.0, 1.0, 0.5), (14.0, 0.3, 0.9), (3.0, 2.0, 0.1)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_coefficients_are_recovered(true_ms: tuple[float, ...], noise: float) -> None:
    costs = LinearCosts(PRIOR)
    _observe(costs, tuple(value * MS for value in true_ms), 400, noise)
    shapes = np.array([(1, rows, rows * tokens) for rows in (1, 4, 8) for tokens in (1, 4, 7)])
    expected = shapes @ np.array(true_ms) * MS
    np.testing.assert_allclose(costs.predict_ns(shapes), expected, rtol=0.02 + noise / 2)
    if not noise:
        np.testing.assert_allclose(costs.coefficients, np.array(true_ms) * MS, rtol=0.05, atol=0.02 * MS)


def test_a_hiccup_is_not_a_price() -> None:
    costs = LinearCosts(PRIOR)
    _observe(costs, PRIOR, 200, noise=0.05)
    before = float(costs.predict_ns((1, 4, 16)))
    costs.observe((1, 4, 16), 100 * before)
    assert float(costs.predict_ns((1, 4, 16))) < 1.25 * before
    _observe(costs, PRIOR, 100, noise=0.05, seed=1)
    assert float(costs.predict_ns((1, 4, 16))) == pytest.approx(before, rel=0.1)


def test_a_machine_that_slows_down_is_followed() -> None:
    costs = LinearCosts(PRIOR)
    _observe(costs, PRIOR, 1_000, noise=0.05)
    slower = (16 * MS, 1 * MS, 1.5 * MS)
    _observe(costs, slower, 400, noise=0.05, seed=1)
    for shape in ((1, 1, 1), (1, 4, 16), (1, 8, 56)):
        assert float(costs.predict_ns(shape)) == pytest.approx(float(np.dot(shape, slower)), rel=0.12)


def test_a_shape_that_is_never_seen_keeps_its_price() -> None:
    costs = LinearCosts(PRIOR)
    for _ in range(5_000):
        costs.observe((1, 1, 0), 11 * MS)
    assert costs.coefficients[2] == pytest.approx(PRIOR[2], rel=0.01)
    for _ in range(30):
        costs.observe((1, 1, 10), 31 * MS)
    assert float(costs.predict_ns((1, 1, 10))) == pytest.approx(31 * MS, rel=0.1)


def test_no_price_is_negative() -> None:
    costs = LinearCosts(PRIOR)
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens = int(rng.integers(1, 20))
        costs.observe((1, 1, tokens), max(30 - tokens, 1) * MS)  # times that fall as tokens grow
        assert (costs.coefficients >= 0).all()
    assert np.isfinite(costs.predict_ns((1, 8, 100)))
    assert float(costs.predict_ns((1, 0, 0))) >= 0


def test_many_shapes_are_priced_at_once() -> None:
    costs = LinearCosts(PRIOR)
    shapes = np.arange(24, dtype=np.float64).reshape(2, 4, 3)
    times = costs.predict_ns(shapes)
    assert times.shape == (2, 4)
    assert float(times[1, 2]) == pytest.approx(float(costs.predict_ns(shapes[1, 2])))
