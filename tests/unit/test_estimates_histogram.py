"""Length by conditional mean residual: known distributions, cut outputs, domains, drift."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from drafthouse.scheduling.estimates.histogram import HistogramOptions, HistogramPredictor
from drafthouse.scheduling.estimates.survival import EDGES, LONGEST, LifeTable, SurvivalCurve, prior_hazards
from fakes.estimated_request import EstimatedRequest, end_with

Lengths = NDArray[np.int64]


def _exponential(count: int, mean: float, seed: int = 0) -> Lengths:
    lengths: Lengths = np.ceil(np.random.default_rng(seed).exponential(mean, count)).astype(np.int64)
    return lengths


def _bounded_pareto(count: int, seed: int = 0) -> Lengths:
    low, high, shape = 10.0, 2000.0, 1.1
    u = np.random.default_rng(seed).random(count)
    lengths: Lengths = np.ceil((low**-shape - u * (low**-shape - high**-shape)) ** (-1 / shape)).astype(np.int64)
    return lengths


def _trained(lengths: Lengths, domain: str = "code", cap: int = 100_000) -> HistogramPredictor:
    predictor = HistogramPredictor()
    for uid, length in enumerate(lengths):
        end_with(predictor, EstimatedRequest(uid, domain, max_tokens=cap), int(length))
    return predictor


def _remaining(predictor: HistogramPredictor, generated: int, domain: str = "code", cap: int = 100_000) -> float:
    return predictor.predict_remaining(EstimatedRequest(10**9, domain, num_output_tokens=generated, max_tokens=cap))


def test_before_any_data_the_prior_is_stated_and_grows_with_what_was_generated() -> None:
    predictor = HistogramPredictor(HistogramOptions(prior_mean=50.0))
    for generated in (0, 7, 100, 900):
        assert _remaining(predictor, generated) == pytest.approx(50 + generated, rel=0.05)


def test_an_exponential_length_never_gets_nearer_to_its_end() -> None:
    predictor = _trained(_exponential(5000, 100.0))
    for generated in (0, 5, 20, 100, 150):
        assert _remaining(predictor, generated) == pytest.approx(100, rel=0.08)


def test_a_heavy_tailed_length_gets_farther_from_its_end() -> None:
    lengths = _bounded_pareto(5000)
    predictor = _trained(lengths)
    for generated in (0, 5, 20, 50, 140, 200):
        assert _remaining(predictor, generated) == pytest.approx((lengths[lengths > generated] - generated).mean(), rel=0.08)
    assert _remaining(predictor, 10) < _remaining(predictor, 50) < _remaining(predictor, 140)


def test_constant_lengths_are_counted_down() -> None:
    predictor = _trained(np.full(2000, 20))
    assert [round(_remaining(predictor, generated)) for generated in (0, 10, 19)] == [20, 10, 1]


def test_the_cap_is_not_the_prediction_but_what_it_cuts_is_not_expected() -> None:
    lengths = _exponential(5000, 100.0)
    predictor = _trained(lengths)
    for cap in (10, 50, 200):
        for generated in (0, 4, 9):
            left = np.minimum(lengths[lengths > generated], cap) - generated
            assert _remaining(predictor, generated, cap=cap) == pytest.approx(max(1.0, left.mean()), rel=0.05)
    assert _remaining(predictor, 50, cap=50) == 1.0
    assert _remaining(predictor, 49, cap=50) == 1.0
    assert _remaining(predictor, LONGEST + 5, cap=2 * LONGEST) == 1.0


def test_outputs_cut_at_max_tokens_are_not_natural_ends() -> None:
    lengths = _exponential(5000, 100.0)
    predictor = _trained(lengths, cap=60)
    assert _remaining(predictor, 0, cap=60) == pytest.approx(np.minimum(lengths, 60).mean(), rel=0.03)
    # As ends at 60 they would say 45 tokens for every cap; what lies beyond 60 is the prior's guess, but it is known to be more.
    assert _remaining(predictor, 0, cap=1000) > 80
    assert _remaining(predictor, 55, cap=1000) > 80


def test_cancelled_outputs_do_not_shorten_the_others() -> None:
    lengths, patience = _exponential(6000, 100.0), _exponential(6000, 150.0, seed=1)
    predictor = HistogramPredictor()
    for uid, (length, cancelled_at) in enumerate(zip(lengths, patience, strict=True)):
        request = EstimatedRequest(uid, "code", num_output_tokens=int(min(length, cancelled_at)))
        predictor.observe(request, finished=bool(length <= cancelled_at))
    assert np.minimum(lengths, patience).mean() < 65  # what counting them as ends would say
    assert _remaining(predictor, 0) == pytest.approx(100, rel=0.08)
    assert _remaining(predictor, 0, domain="other") == pytest.approx(100, rel=0.08)


def test_the_life_table_is_kaplan_meiers() -> None:
    table = LifeTable(memory=1e9)
    for length, finished in ((2, True), (3, False), (4, True)):
        table.add(length, finished)
    curve = SurvivalCurve.from_hazards(table.hazards(prior_hazards(10.0), strength=1e-9))
    assert curve.masses()[:5] == pytest.approx([0, 1 / 3, 0, 2 / 3, 0], abs=1e-6)
    assert sum(curve.masses()) == pytest.approx(1)
    assert curve.remaining(0, 100) == pytest.approx(10 / 3, abs=1e-5)
    assert curve.remaining(2, 100) == pytest.approx(2.0, abs=1e-5)


def test_inside_a_wide_bin_lengths_are_taken_as_spread_evenly() -> None:
    low, high = next((low, high) for low, high in pairwise(EDGES) if high - low >= 8)
    table = LifeTable(memory=1e9)
    for length in range(low + 1, high + 1):
        table.add(length, finished=True)
    curve = SurvivalCurve.from_hazards(table.hazards(prior_hazards(10.0), strength=1e-9))
    for generated in (0, low, low + 3, high - 1):
        alive = [length - generated for length in range(low + 1, high + 1) if length > generated]
        assert curve.remaining(generated, LONGEST) == pytest.approx(sum(alive) / len(alive), abs=1e-4)
        assert curve.remaining(generated, low + 4) == pytest.approx(
            sum(min(left, max(low + 4 - generated, 0)) for left in alive) / len(alive), abs=1e-4
        )


def test_a_domain_is_believed_by_its_data() -> None:
    predictor = _trained(_exponential(2000, 100.0))
    assert _remaining(predictor, 0, domain="drama") == pytest.approx(100, rel=0.08)  # nothing seen: as all
    lengths = iter(range(10**6, 10**6 + 1000))

    def end_short(count: int) -> float:
        for _ in range(count):
            end_with(predictor, EstimatedRequest(next(lengths), "drama"), 10)
        return _remaining(predictor, 0, domain="drama")

    few, some, many = end_short(2), end_short(18), end_short(500)
    assert 60 < few < 100
    assert 15 < some < 60
    assert many == pytest.approx(10, rel=0.2)
    assert _remaining(predictor, 0, domain="code") == pytest.approx(100, rel=0.08)


def test_without_a_domain_all_requests_count() -> None:
    predictor = HistogramPredictor()
    for uid in range(1000):
        end_with(predictor, EstimatedRequest(uid, "" if uid % 2 else "code"), 10 if uid % 2 else 30)
    assert _remaining(predictor, 0, domain="") == pytest.approx(20, rel=0.05)
    assert _remaining(predictor, 0, domain="code") == pytest.approx(30, rel=0.05)


def test_old_lengths_fade() -> None:
    predictor = HistogramPredictor(HistogramOptions(memory=200.0))
    for uid in range(2000):
        end_with(predictor, EstimatedRequest(uid, "code"), 200)
    for uid in range(2000, 3000):
        end_with(predictor, EstimatedRequest(uid, "code"), 20)
    assert _remaining(predictor, 0) == pytest.approx(20, rel=0.1)


def test_weights_stay_finite_however_many_requests_end() -> None:
    table = LifeTable(memory=2.0)  # an observation's weight grows by half each time
    for _ in range(5000):
        table.add(7, finished=True)
    assert table.num_requests == pytest.approx(3, rel=0.01)  # 1 + 1/1.5 + 1/1.5² + …
    assert math.isfinite(table.mean_tokens(128.0, 1.0))
    assert SurvivalCurve.from_hazards(table.hazards(prior_hazards(128.0), 1e-6)).remaining(0, 100) == pytest.approx(7, rel=0.01)


def test_outputs_beyond_the_last_bin_count_as_that_long() -> None:
    table = LifeTable(memory=1e9)
    table.add(10 * LONGEST, finished=True)
    curve = SurvivalCurve.from_hazards(table.hazards(prior_hazards(10.0), strength=1e-9))
    assert curve.remaining(0, 20 * LONGEST) == pytest.approx(LONGEST, rel=0.06)


def test_error_counts_what_was_said_at_arrival_and_only_known_ends() -> None:
    predictor = HistogramPredictor(HistogramOptions(prior_mean=40.0, memory=1e9))
    request = EstimatedRequest(1, "code")
    said = predictor.predict_remaining(request)
    request.num_output_tokens = 10
    predictor.predict_remaining(request)  # underway: not counted
    predictor.observe(request, finished=True)
    assert predictor.error().num_requests == 1
    assert predictor.error().mean_absolute == pytest.approx(said - 10)
    assert predictor.error().relative == pytest.approx((said - 10) / 10)
    assert predictor.error().bias == pytest.approx((said - 10) / 10)
    assert predictor.error().log_rms == pytest.approx(math.log(said / 10))
    end_with(predictor, EstimatedRequest(2, "code", max_tokens=5), 50)  # cut: its number of tokens is known
    assert predictor.error().num_requests == 2
    cancelled, unstarted, unasked = (EstimatedRequest(uid, "code") for uid in (3, 4, 5))
    for request in (cancelled, unstarted):
        predictor.predict_remaining(request)
    cancelled.num_output_tokens = 3
    unasked.num_output_tokens = 4
    for request in (cancelled, unstarted):
        predictor.observe(request, finished=False)
    predictor.observe(unasked, finished=True)
    assert predictor.error().num_requests == 2


def test_a_request_cut_before_its_first_token_teaches_nothing_and_an_empty_output_is_a_short_one() -> None:
    predictor, untouched = HistogramPredictor(), HistogramPredictor()
    for uid in range(50):
        end_with(predictor, EstimatedRequest(uid, "code", max_tokens=0), 10)
    assert _remaining(predictor, 0) == _remaining(untouched, 0)
    for uid in range(50, 100):
        predictor.observe(EstimatedRequest(uid, "code"), finished=True)
    assert _remaining(predictor, 0) < 10


@pytest.mark.parametrize("field", ["prior_mean", "prior_strength", "domain_strength", "freshness", "memory"])
def test_options_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="histogram options"):
        HistogramOptions(**{field: 0.0})
