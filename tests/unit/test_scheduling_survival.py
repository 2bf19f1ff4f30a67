"""How deep drafts are accepted: learned by depth and by number of drafters, and how fast a change is followed."""

import numpy as np
import pytest

from drafthouse.scheduling.survival import Survival


def _feed(survival: Survival, chance: float, rounds: int, depth: int, drafters: int = 1, seed: int = 0, rows: int = 4) -> int:
    """Rounds in which each depth is accepted with ``chance``; returns how often a change was reported."""
    rng, asked = np.random.default_rng(seed), np.full(rows, depth)
    return sum(survival.observe(drafters, asked, np.minimum(rng.geometric(1 - chance, rows) - 1, depth), None, 1.0) for _ in range(rounds))


def _tokens(chance: float, depth: int) -> float:
    return float((chance ** np.arange(depth + 1)).sum())


def test_learns_the_chance_and_extends_it_to_depths_never_drafted() -> None:
    survival = Survival(8, 1)
    _feed(survival, 0.75, 400, depth=3)
    expected = survival.expected_tokens(1)
    assert expected[0] == 1.0
    assert expected[3] == pytest.approx(_tokens(0.75, 3), rel=0.05)
    assert expected[8] == pytest.approx(_tokens(0.75, 8), rel=0.1)


def test_depths_differ() -> None:
    survival, rng = Survival(4, 1), np.random.default_rng(0)
    for _ in range(400):
        kept = np.cumprod(rng.random((4, 4)) < [0.9, 0.9, 0.3, 0.3], axis=1)
        survival.observe(1, np.full(4, 4), kept.sum(axis=1), None, 1.0)
    gains = np.diff(survival.expected_tokens(1))
    np.testing.assert_allclose(gains, [0.9, 0.81, 0.243, 0.0729], atol=0.05)


def test_a_change_is_reported_once_and_followed() -> None:
    survival = Survival(4, 1)
    assert _feed(survival, 0.85, 300, depth=4) == 0
    assert _feed(survival, 0.2, 25, depth=4, seed=1) >= 1
    assert survival.expected_tokens(1)[4] == pytest.approx(_tokens(0.2, 4), abs=0.2)
    assert _feed(survival, 0.2, 300, depth=4, seed=2) <= 1


def test_more_drafters_are_told_apart_and_unknown_numbers_borrow() -> None:
    survival = Survival(4, 3)
    for seed in range(20):
        _feed(survival, 0.5, 10, depth=4, drafters=1, seed=seed)
        _feed(survival, 0.8, 10, depth=4, drafters=2, seed=seed)
    one, two, three = (survival.expected_tokens(drafters)[4] for drafters in (1, 2, 3))
    assert one < three < two
    assert two - one > 0.7 * (_tokens(0.8, 4) - _tokens(0.5, 4))


def test_calibrated_chances_reduce_the_noise() -> None:
    deviations = {True: list[float](), False: list[float]()}
    for seed in range(20):
        for calibrated in (True, False):
            survival, rng = Survival(4, 1), np.random.default_rng(seed)
            for _ in range(10):
                accepted = np.minimum(rng.geometric(0.3, 2) - 1, 4)
                probs = np.tile(0.7 ** np.arange(1, 5), (2, 1)) if calibrated else None
                survival.observe(1, np.full(2, 4), accepted, probs, 1.0)
            deviations[calibrated].append(survival.expected_tokens(1)[4] - _tokens(0.7, 4))
    assert np.std(deviations[True]) < 0.8 * np.std(deviations[False])


def test_rows_asked_for_less_say_nothing_about_deeper_positions() -> None:
    survival = Survival(4, 1)
    for _ in range(200):
        survival.observe(1, np.array([1, 4]), np.array([1, 4]), None, 1.0)
    assert survival.expected_tokens(1)[4] == pytest.approx(5.0, rel=0.05)


def test_optimism_shrinks_with_evidence() -> None:
    few, many = Survival(4, 1), Survival(4, 1)
    _feed(few, 0.5, 2, depth=2)
    _feed(many, 0.5, 100, depth=2)
    gaps = [survival.expected_tokens(1, optimism=1.0)[4] - survival.expected_tokens(1)[4] for survival in (few, many)]
    assert gaps[0] > gaps[1] > 0


def test_nothing_asked_is_nothing_learned() -> None:
    survival = Survival(4, 1)
    before = survival.expected_tokens(1)
    assert not survival.observe(1, np.zeros(3, np.int64), np.zeros(3, np.int64), None, 1.0)
    assert not survival.observe(1, np.zeros(0, np.int64), np.zeros(0, np.int64), None, 1.0)
    np.testing.assert_array_equal(survival.expected_tokens(1), before)
