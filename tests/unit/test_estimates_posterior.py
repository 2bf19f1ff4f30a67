"""From a point prediction to an expectation: Bayes against the same by hand, measured scatter, refuted predictions, bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drafthouse.scheduling.estimates.posterior import PointPosterior, PosteriorOptions
from drafthouse.scheduling.estimates.survival import LONGEST
from fakes.estimated_request import EstimatedRequest

SIGMA = 0.5
LENGTHS = (8, 16, 31)  # bins of one token: nothing is lost to their width
CHANCES = (0.6, 0.3, 0.1)


def _end(posterior: PointPosterior, uid: int, length: int, log_predicted: float, cap: int = 10**6) -> None:
    posterior.curve(uid, log_predicted)
    posterior.observe(EstimatedRequest(uid, num_output_tokens=min(length, cap), max_tokens=cap), finished=length <= cap)


def _fed(posterior: PointPosterior, count: int = 4000, slope: float = 1.0, cap: int = 10**6, seed: int = 0) -> PointPosterior:
    """ln P = 1 + slope · ln L + noise, or 0 + ln L + noise where slope is 1."""
    rng = np.random.default_rng(seed)
    for uid, length in enumerate(rng.choice(LENGTHS, count, p=CHANCES).tolist()):
        _end(posterior, uid, length, (slope != 1.0) + slope * math.log(length) + SIGMA * rng.standard_normal(), cap)
    return posterior


def _by_hand(log_predicted: float, generated: int, cap: int, slope: float = 1.0) -> float:
    usual = [(slope != 1.0) + slope * math.log(length) for length in LENGTHS]
    weights = [chance * math.exp(-0.5 * ((log_predicted - mean) / SIGMA) ** 2) for chance, mean in zip(CHANCES, usual, strict=True)]
    alive = [(weight, length) for weight, length in zip(weights, LENGTHS, strict=True) if length > generated]
    return sum(weight * (min(length, cap) - generated) for weight, length in alive) / sum(weight for weight, _ in alive)


@pytest.fixture(scope="module")
def known() -> PointPosterior:
    return _fed(PointPosterior(SIGMA, PosteriorOptions(memory=1e6)))


@pytest.fixture(scope="module")
def measured() -> PointPosterior:
    return _fed(PointPosterior(options=PosteriorOptions(memory=1e6)))


@pytest.mark.parametrize("predicted", [5, 12, 30, 60])
@pytest.mark.parametrize("generated", [0, 4, 10])
@pytest.mark.parametrize("cap", [20, 10**6])
def test_is_bayes(known: PointPosterior, measured: PointPosterior, predicted: int, generated: int, cap: int) -> None:
    expected = _by_hand(math.log(predicted), generated, cap)
    assert known.curve(-1, math.log(predicted)).remaining(generated, cap) == pytest.approx(expected, rel=0.07, abs=0.2)
    assert measured.curve(-1, math.log(predicted)).remaining(generated, cap) == pytest.approx(expected, rel=0.08, abs=0.2)


def test_is_worth_more_than_the_prediction_itself(known: PointPosterior) -> None:
    """Most outputs have 8 tokens: a predicted 16 is expected to be less."""
    assert 10 < known.curve(-2, math.log(16)).remaining(0, 100) < 14.5


def test_any_scale_of_predictions_is_measured_and_cut_outputs_do_not_disturb_it() -> None:
    posterior = _fed(PointPosterior(options=PosteriorOptions(memory=1e6)), slope=0.5, cap=20)  # the longest are always cut
    for predicted in (1.8, 2.4, 3.0):
        assert posterior.curve(-1, predicted).remaining(0, 20) == pytest.approx(_by_hand(predicted, 0, 20, slope=0.5), rel=0.06)


def test_a_predictor_that_always_says_the_same_leaves_the_lengths_seen() -> None:
    posterior, rng = PointPosterior(options=PosteriorOptions(memory=1e6)), np.random.default_rng(1)
    for uid, length in enumerate(rng.choice(LENGTHS, 3000, p=CHANCES).tolist()):
        _end(posterior, uid, length, 4.0)
    mean = sum(chance * length for chance, length in zip(CHANCES, LENGTHS, strict=True))
    assert posterior.curve(-1, 4.0).remaining(0, 10**6) == pytest.approx(mean, rel=0.05)


def test_before_any_data_a_measured_prediction_says_nothing_and_a_known_one_much() -> None:
    measured, known = PointPosterior(options=PosteriorOptions(prior_mean=70.0)), PointPosterior(0.3, PosteriorOptions(prior_mean=70.0))
    assert measured.curve(1, math.log(5)).remaining(0, 10**6) == pytest.approx(70, rel=0.06)
    assert known.curve(1, math.log(5)).remaining(0, 10**6) == pytest.approx(5, rel=0.2)


def test_where_a_prediction_was_refuted_the_prior_rules(known: PointPosterior) -> None:
    curve = known.curve(-3, math.log(2))  # and it has 20 tokens, and then 500
    assert curve.remaining(20, 10**6) == pytest.approx(11, rel=0.2)
    for generated in (500, 50_000, LONGEST - 1):
        assert 0 < curve.remaining(generated, 10**6) < 2 * LONGEST
    assert curve.remaining(LONGEST, 10**6) == 0.0


def test_a_curve_is_kept_until_the_end_unless_the_prediction_moves() -> None:
    posterior = PointPosterior(SIGMA)
    first = posterior.curve(1, 3.0)
    assert posterior.curve(1, 3.1) is first
    assert posterior.curve(1, 3.5) is not first
    posterior.curve(2, 3.0)
    assert len(posterior) == 2
    posterior.observe(EstimatedRequest(1, num_output_tokens=4), finished=True)
    posterior.observe(EstimatedRequest(2), finished=False)  # cancelled while it waited
    posterior.observe(EstimatedRequest(3, num_output_tokens=4), finished=True)  # never predicted
    assert len(posterior) == 0


@pytest.mark.parametrize("sigma", [0.0, 0.04, -1.0, math.nan])
def test_an_error_below_the_bins_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma is at least"):
        PointPosterior(sigma)


@pytest.mark.parametrize("field", ["prior_mean", "prior_strength", "prior_sigma", "memory", "freshness"])
def test_options_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="posterior options"):
        PosteriorOptions(**{field: 0.0})
