"""Length by ridge regression: convergence, cut outputs, what was generated, drift; and predictors by name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drafthouse.core.errors import ClientError
from drafthouse.scheduling.estimates.registry import LENGTH_PREDICTORS, LengthPredictorRegistry
from drafthouse.scheduling.estimates.ridge import RidgeOptions, RidgePredictor
from fakes.estimated_request import EstimatedRequest, end_with

OFFSETS = {"code": 0.5, "math": -0.7, "": 0.0}


def _fed(count: int, cap: int, sigma: float = 0.5, memory: float = 4000.0, intercept: float = 3.5, seed: int = 0) -> RidgePredictor:
    """log L = intercept + 0.4 · (log prompt_len − 5) + offset of the domain + noise."""
    predictor, rng = RidgePredictor(RidgeOptions(memory=memory)), np.random.default_rng(seed)
    _feed(predictor, rng, count, cap, sigma, intercept)
    return predictor


def _feed(predictor: RidgePredictor, rng: np.random.Generator, count: int, cap: int, sigma: float, intercept: float) -> None:
    domains = list(OFFSETS)
    for uid in range(count):
        domain, prompt_len = domains[uid % 3], int(np.exp(rng.normal(5, 1))) + 1
        length = np.exp(rng.normal(intercept + 0.4 * (np.log(prompt_len) - 5) + OFFSETS[domain], sigma))
        end_with(predictor, EstimatedRequest(uid, domain, prompt_len, cap), int(np.ceil(length)))


def _total(predictor: RidgePredictor, domain: str, prompt_len: int, cap: int = 10**6) -> float:
    return predictor.predict_remaining(EstimatedRequest(10**9, domain, prompt_len, cap))


def _expected(domain: str, prompt_len: int, sigma: float = 0.5, intercept: float = 3.5) -> float:
    return float(np.exp(intercept + 0.4 * (np.log(prompt_len) - 5) + OFFSETS[domain] + sigma**2 / 2))


def test_before_any_data_the_prior_is_stated() -> None:
    predictor = RidgePredictor(RidgeOptions(prior_mean=70.0))
    assert _total(predictor, "code", 10) == _total(predictor, "", 1000) == pytest.approx(70, rel=0.05)
    assert _total(predictor, "code", 10, cap=5) < 5


@pytest.mark.parametrize("domain", OFFSETS)
@pytest.mark.parametrize("prompt_len", [30, 150, 800])
def test_learns_what_the_prompt_says(domain: str, prompt_len: int) -> None:
    assert _total(_FULL, domain, prompt_len) == pytest.approx(_expected(domain, prompt_len), rel=0.15)


def test_reports_its_error() -> None:
    error = _FULL.error()
    assert error.num_requests == 4000
    assert error.log_rms == pytest.approx(0.5, rel=0.1)  # the noise, and a little
    assert abs(error.bias) < 0.05
    assert _FULL.sigma == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("domain", OFFSETS)
def test_cut_outputs_do_not_shorten_the_others(domain: str) -> None:
    assert _total(_CUT, domain, 150) == pytest.approx(_expected(domain, 150), rel=0.15)
    assert _CUT.sigma == pytest.approx(0.5, rel=0.1)


def test_what_was_generated_is_taken_into_account() -> None:
    usual = math.log(_expected("code", 150, sigma=0.0))
    lengths = np.exp(np.random.default_rng(1).normal(usual, 0.5, 200_000))
    for cap in (100, 10**6):
        for generated in (0, 10, 33, 80):
            left = np.minimum(lengths[lengths > generated], cap) - generated
            request = EstimatedRequest(10**9, "code", 150, cap, generated)
            assert _FULL.predict_remaining(request) == pytest.approx(left.mean(), rel=0.15)


def test_far_beyond_what_was_expected_the_answer_stays_sane() -> None:
    predictor = RidgePredictor()
    for uid in range(300):
        end_with(predictor, EstimatedRequest(uid, "code"), 30)
    end_with(predictor, EstimatedRequest(300, "code", max_tokens=10**9), 10**12)  # cut 40 standard deviations out
    assert np.isfinite(_total(predictor, "code", 100))
    for generated, cap in ((5000, 5001), (5000, 5000), (10**7, 10**9)):
        request = EstimatedRequest(301, "code", num_output_tokens=generated, max_tokens=cap)
        assert 1 <= predictor.predict_remaining(request) <= max(1, cap - generated)


def test_lengths_need_not_be_log_normal() -> None:
    """Nearly all are short, a few are very long: a log-normal law around the prediction would say far too little."""
    predictor, rng = RidgePredictor(), np.random.default_rng(3)
    lengths = np.where(rng.random(4000) < 0.97, 10, 1500)
    for uid, length in enumerate(lengths):
        end_with(predictor, EstimatedRequest(uid, "code"), int(length))
    assert _total(predictor, "code", 100) == pytest.approx(lengths.mean(), rel=0.15)
    underway = EstimatedRequest(10**8, "code", num_output_tokens=200)
    assert predictor.predict_remaining(underway) == pytest.approx(1300, rel=0.15)


def test_a_domain_with_little_data_is_drawn_to_the_others() -> None:
    predictor = _fed(3000, cap=10**6)
    nothing = _total(predictor, "drama", 150)
    for uid in range(10**6, 10**6 + 3):
        end_with(predictor, EstimatedRequest(uid, "drama", 150), 400)
    _feed(predictor, np.random.default_rng(5), 60, 10**6, 0.5, 3.5)  # enough that coefficients are solved for again
    few = _total(predictor, "drama", 150)
    assert nothing * 1.3 < few < 300


def test_old_data_fade() -> None:
    predictor, rng = RidgePredictor(RidgeOptions(memory=300.0)), np.random.default_rng(2)
    _feed(predictor, rng, 1500, 10**6, 0.5, 3.5)
    _feed(predictor, rng, 1500, 10**6, 0.5, 5.0)
    assert _total(predictor, "code", 150) == pytest.approx(_expected("code", 150, intercept=5.0), rel=0.15)


def test_a_request_cut_before_its_first_token_teaches_nothing_and_an_empty_output_is_a_short_one() -> None:
    predictor = RidgePredictor()
    before = _total(predictor, "code", 100)
    for uid in range(20):
        end_with(predictor, EstimatedRequest(uid, "code", max_tokens=0), 10)
    assert _total(predictor, "code", 100) == before
    for uid in range(20, 120):
        predictor.observe(EstimatedRequest(uid, "code"), finished=True)
    assert _total(predictor, "code", 100) < 5


@pytest.mark.parametrize("field", ["prior_mean", "prior_sigma", "prior_strength", "penalty", "memory", "freshness"])
def test_options_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="ridge options"):
        RidgeOptions(**{field: 0.0})


def test_predictors_by_name() -> None:
    assert LENGTH_PREDICTORS.names == ("histogram", "ridge")
    for name in LENGTH_PREDICTORS.names:
        first, second = LENGTH_PREDICTORS.create(name), LENGTH_PREDICTORS.create(name)
        assert first.name == name
        assert first is not second
        assert first.error().num_requests == 0
        assert first.error().as_dict()["relative"] is None
    with pytest.raises(ClientError, match=r"UNSUPPORTED field=length_predictor value='magic' allowed=one of histogram, ridge"):
        LENGTH_PREDICTORS.create("magic")
    registry = LengthPredictorRegistry()
    registry.register("mine", RidgePredictor)
    with pytest.raises(ValueError, match="twice"):
        registry.register("mine", RidgePredictor)


_FULL = _fed(4000, cap=10**6)
_CUT = _fed(6000, cap=40)  # more than a third of the outputs
