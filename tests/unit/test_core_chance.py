"""The chance of a draft token: the formula by which drafts grow is the one that is learned."""

import math

import numpy as np
import pytest

from drafthouse.core.chance import LEAST_PROB, LEAST_SCORE, NEUTRAL_SCORE, chance, logit, score_logit
from drafthouse.scheduling.calibration import Calibration

PROBS = [-1.0, 0.0, 1e-9, 1e-4, 0.01, 0.3, 0.5, 0.97, 1 - 1e-5, 1.0, 1.5]
SCORES = [0.0, 1e-3, 0.2, 0.5, 0.9, 1.0, math.nan]


@pytest.mark.parametrize("line", [(0.0, 1.0, 0.0), (1.5, 0.4, 0.7), (-3.0, 2.5, -0.5)])
def test_it_agrees_with_the_calibration(line: tuple[float, float, float]) -> None:
    calibration = Calibration.from_table([line])
    intercept, slope, score_slope = map(float, calibration.table()[0])
    for score in SCORES:
        here = [chance(intercept + score_slope * score_logit(score), slope, prob) for prob in PROBS]
        there = calibration.chance([0] * len(PROBS), PROBS, [score] * len(PROBS))
        np.testing.assert_allclose(here, there, rtol=1e-5)


def test_the_raw_probability_is_its_own_chance() -> None:
    for prob in (0.01, 0.5, 0.99):
        assert chance(0.0, 1.0, prob) == pytest.approx(prob)


def test_what_is_not_a_number_has_no_chance() -> None:
    assert chance(5.0, 1.0, math.nan) == 0.0


def test_a_score_that_is_not_known_is_neutral() -> None:
    assert score_logit(math.nan) == score_logit(NEUTRAL_SCORE) == 0.0


def test_logits_are_bounded_and_odd() -> None:
    assert logit(0.0, LEAST_PROB) == logit(LEAST_PROB, LEAST_PROB) == pytest.approx(-logit(1.0, LEAST_PROB))
    assert score_logit(0.0) == logit(LEAST_SCORE, LEAST_SCORE)
    assert logit(0.8, LEAST_PROB) == pytest.approx(-logit(0.2, LEAST_PROB)) == pytest.approx(math.log(4))
