"""The estimator: LAPS-SD's remaining time, what it measures, what it forgets, how far off it was."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from drafthouse.scheduling.estimates.acceptance import AcceptanceOptions
from drafthouse.scheduling.estimates.histogram import HistogramPredictor
from drafthouse.scheduling.estimates.service import Estimator, EstimatorOptions
from fakes.estimated_request import EstimatedRequest, KnownLengths


class _AnyLength(dict[int, int]):
    """Every request is 100 tokens long."""

    def __missing__(self, uid: int) -> int:
        return 100


def _estimator(options: EstimatorOptions | None = None) -> Estimator:
    return Estimator(KnownLengths(_AnyLength()), options)


def _end(estimator: Estimator, request: EstimatedRequest, num_rounds: int, num_accepted: int, num_drafted: int = 4) -> None:
    for _ in range(num_rounds):
        request.run_round(estimator, num_drafted, num_accepted)
    estimator.saw_end(request, finished=True)


def test_before_anything_was_measured_the_stated_priors_hold() -> None:
    estimator = _estimator()
    options = EstimatorOptions()
    assert estimator.round_ns == 4 * options.prior_draft_token_ns + options.prior_verify_ns
    assert estimator.draft_token_ns == options.prior_draft_token_ns
    assert estimator.verify_ns == options.prior_verify_ns
    assert estimator.prefill_token_ns == options.prior_prefill_token_ns
    request = EstimatedRequest(1)
    assert estimator.remaining_ns(request) == pytest.approx(100 * estimator.round_ns / (4 * 0.5 + 1))
    assert estimator.acceptance(request) == 0.5
    assert not estimator.is_perceptible(request)


def test_remaining_time_is_the_papers_formula_with_what_was_measured() -> None:
    estimator = _estimator()
    for uid in range(2000):  # all alike: nothing is left of the prior
        _end(estimator, EstimatedRequest(uid, "code"), num_rounds=3, num_accepted=1)
    request = EstimatedRequest(-1, "code")
    assert estimator.num_drafted == pytest.approx(4)
    assert estimator.draft_token_ns == pytest.approx(5)
    assert estimator.verify_ns == pytest.approx(80)
    assert estimator.acceptance(request) == pytest.approx(0.25, abs=0.01)
    assert estimator.remaining_ns(request) == pytest.approx(100 * (4 * 5 + 80) / (4 * 0.25 + 1), rel=0.02)
    request.num_output_tokens = 60
    assert estimator.remaining_tokens(request) == 40
    assert estimator.total_tokens(request) == 100
    assert estimator.remaining_ns(request) == pytest.approx(40 * 100 / 2, rel=0.02)


def test_without_speculation_a_token_costs_a_verification() -> None:
    estimator = _estimator()
    request = EstimatedRequest(1)
    for _ in range(10):
        request.run_round(estimator, 0, 0, draft_ns=0, verify_ns=70)
    assert estimator.round_ns == pytest.approx(70)
    assert estimator.draft_token_ns == EstimatorOptions().prior_draft_token_ns  # nothing drafted, nothing learned
    assert estimator.remaining_ns(request) == pytest.approx(90 * 70)
    assert not estimator.is_perceptible(request)


def test_times_follow_the_server() -> None:
    estimator = _estimator()
    request = EstimatedRequest(1)
    for _ in range(3000):
        request.run_round(estimator, 4, 2, draft_ns=20, verify_ns=80)
    for _ in range(3000):
        request.run_round(estimator, 6, 2, draft_ns=60, verify_ns=240)
    assert estimator.num_drafted == pytest.approx(6, rel=0.01)
    assert estimator.draft_token_ns == pytest.approx(10, rel=0.01)
    assert estimator.verify_ns == pytest.approx(240, rel=0.01)
    assert estimator.round_ns == pytest.approx(300, rel=0.01)


def test_what_is_not_cached_is_computed_first() -> None:
    estimator = _estimator()
    ready, fresh = EstimatedRequest(1, num_uncached=1), EstimatedRequest(2, num_uncached=201)
    estimator.saw_prefill(100, 5000.0)
    assert estimator.prefill_token_ns == 50
    assert estimator.remaining_ns(fresh) - estimator.remaining_ns(ready) == pytest.approx(200 * 50)
    for _ in range(1000):
        estimator.saw_prefill(300, 3000.0)
    assert estimator.prefill_token_ns == pytest.approx(10, rel=0.01)


def test_acceptance_is_the_requests_own_shrunk_to_its_domain_and_that_to_all() -> None:
    estimator = _estimator()
    chance = random.Random(4)
    for uid in range(400):
        request = EstimatedRequest(uid, "good" if uid % 2 else "bad")
        own = chance.uniform(0.7, 0.9) if uid % 2 else chance.uniform(0.1, 0.3)
        for _ in range(12):
            request.run_round(estimator, 4, sum(chance.random() < own for _ in range(4)))
        estimator.saw_end(request, finished=True)
    assert estimator.acceptance(EstimatedRequest(-1, "good")) == pytest.approx(0.8, abs=0.03)
    assert estimator.acceptance(EstimatedRequest(-2, "bad")) == pytest.approx(0.2, abs=0.03)
    for unknown in ("", "never seen"):
        assert estimator.acceptance(EstimatedRequest(-3, unknown)) == pytest.approx(0.5, abs=0.05)
    _end(estimator, EstimatedRequest(-4, "new"), num_rounds=12, num_accepted=4)
    assert 0.5 < estimator.acceptance(EstimatedRequest(-5, "new")) < 0.7  # one request is not a domain
    odd = EstimatedRequest(-6, "bad")
    rates = [estimator.acceptance(odd)]
    for _ in range(200):
        odd.run_round(estimator, 4, 4)
        rates.append(estimator.acceptance(odd))
    assert rates == sorted(rates)
    assert rates[1] < 0.4  # one good round in a domain of bad ones
    assert rates[-1] > 0.9


def test_requests_with_bad_drafts_do_not_count_for_their_many_rounds() -> None:
    estimator = _estimator()
    for uid in range(1000):
        _end(estimator, EstimatedRequest(uid, "code"), *((10, 4) if uid % 2 else (50, 0)))
    assert estimator.acceptance(EstimatedRequest(-1, "code")) == pytest.approx(0.5, abs=0.03)  # by rounds: 0.17


def test_state_is_dropped_when_a_request_ends() -> None:
    lengths = KnownLengths(_AnyLength())
    estimator = Estimator(lengths)
    requests = [EstimatedRequest(uid, "code") for uid in range(30)]
    for request in requests[:20]:
        estimator.saw_arrival(request)
        estimator.saw_arrival(request)
    for request in requests[:10]:
        request.run_round(estimator, 4, 2)
    assert len(estimator) == 20
    for request in requests:  # the last ten were never asked about
        estimator.saw_end(request, finished=request.request_uid % 2 == 0)
    assert len(estimator) == 0
    assert lengths.ends == [(uid, uid % 2 == 0) for uid in range(30)]
    assert not estimator.is_perceptible(requests[0])


@pytest.mark.parametrize(
    "values", [(4, 5, 1, 1), (-1, -1, 1, 1), (4, -1, 1, 1), (4, 2, -1.0, 1), (4, 2, 1, -1.0), (4, 2, math.nan, 1), (4, 2, 1, math.nan)]
)
def test_impossible_rounds_are_refused_and_teach_nothing(values: tuple[int, int, float, float]) -> None:
    estimator = _estimator()
    before = estimator.round_ns
    with pytest.raises(ValueError, match="a round of"):
        estimator.saw_round(EstimatedRequest(1), *values)
    assert estimator.round_ns == before
    assert len(estimator) == 0


@pytest.mark.parametrize("values", [(0, 1.0), (-3, 1.0), (5, -1.0), (5, math.nan)])
def test_impossible_prefills_are_refused_and_teach_nothing(values: tuple[int, float]) -> None:
    estimator = _estimator()
    before = estimator.prefill_token_ns
    with pytest.raises(ValueError, match="a prefill of"):
        estimator.saw_prefill(*values)
    assert estimator.prefill_token_ns == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("prior_num_drafted", -1.0), ("prior_draft_token_ns", -1.0), ("prior_verify_ns", 0.0), ("prior_prefill_token_ns", -1.0)),
        *(("memory_rounds", 1.0), ("memory_prefills", 0.0)),
    ],
)
def test_options_out_of_range_are_refused(field: str, value: float) -> None:
    given: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match="estimator options"):
        EstimatorOptions(**given)


def _steady_world(estimator: Estimator, lengths: dict[int, int], uids: range) -> None:
    """Every round of every request accepts two of four tokens in 100 ns."""
    for uid in uids:
        request = EstimatedRequest(uid, "code", max_tokens=lengths[uid])
        estimator.saw_arrival(request)
        while request.num_output_tokens < lengths[uid]:
            request.run_round(estimator, 4, 2)
        estimator.saw_end(request, finished=False)  # cut at max_tokens: how long it took is known all the same


def test_the_error_is_of_execution_times_at_two_moments() -> None:
    lengths = {uid: 150 for uid in range(200)}
    estimator = Estimator(KnownLengths(lengths))
    assert estimator.error().at_perceptible.num_requests == 0
    assert json.loads(json.dumps(estimator.error().as_dict()))["at_perceptible"]["relative"] is None
    _steady_world(estimator, lengths, range(200))
    error = estimator.error()
    assert error.num_never_perceptible == 0
    assert error.at_arrival.num_requests == 199  # before the first round of all there is no measure of time
    assert error.at_perceptible.num_requests == 200
    assert error.at_arrival.relative < 0.01
    assert error.at_perceptible.relative < 0.01
    assert json.loads(json.dumps(error.as_dict()))["at_perceptible"]["num_requests"] == 200
    assert estimator.length_error().num_requests == 200


def test_a_length_that_is_off_by_a_quarter_makes_times_off_by_as_much() -> None:
    lengths = {uid: 300 for uid in range(50)}
    predictor = KnownLengths({uid: 375 for uid in range(50)})
    estimator = Estimator(predictor)
    _steady_world(estimator, lengths, range(50))
    error = estimator.error()
    assert error.at_perceptible.relative == pytest.approx(0.25, abs=0.02)
    assert error.at_perceptible.mean_relative == pytest.approx(0.25, abs=0.02)
    assert error.at_perceptible.bias == pytest.approx(0.25, abs=0.02)
    assert error.at_perceptible.mean_absolute == pytest.approx(0.25 * 100 * 100, rel=0.1)


def test_what_nobody_knows_is_not_counted() -> None:
    estimator = _estimator()
    short, cancelled, unasked = EstimatedRequest(1), EstimatedRequest(2), EstimatedRequest(3)
    estimator.saw_arrival(short)
    short.run_round(estimator, 4, 2)
    estimator.saw_end(short, finished=True)  # one round is too few to know
    estimator.saw_arrival(cancelled)
    for request in (cancelled, unasked):
        for _ in range(30):
            request.run_round(estimator, 4, 2)
    estimator.saw_end(cancelled, finished=False)
    estimator.saw_end(unasked, finished=True)
    error = estimator.error()
    assert error.num_never_perceptible == 1
    assert error.at_arrival.num_requests == 0
    assert error.at_perceptible.num_requests == 1


def test_whole_life_with_a_real_predictor() -> None:
    chance = random.Random(7)
    estimator = Estimator(HistogramPredictor(), EstimatorOptions(acceptance=AcceptanceOptions(stable_deviation=0.1)))
    for uid in range(1500):
        request, length = EstimatedRequest(uid, "code"), 40 + chance.randrange(20)
        estimator.saw_arrival(request)
        while request.num_output_tokens < length:
            num_accepted = min(sum(chance.random() < 0.5 for _ in range(4)), length - request.num_output_tokens - 1)
            request.run_round(estimator, 4, num_accepted)
        estimator.saw_end(request, finished=True)
    assert len(estimator) == 0
    assert estimator.error().at_perceptible.relative < 0.25
    assert estimator.error().at_arrival.relative < 0.25
    assert estimator.length_error().num_requests == 1500
    assert estimator.length_error().relative < 0.15


def test_rows_per_round_are_what_a_request_meets() -> None:
    estimator = _estimator()
    assert estimator.rows_per_round == 1
    request = EstimatedRequest(1)
    for num_rows in (2, 4):
        estimator.saw_round(request, 4, 2, 1, 1, num_rows)
    assert estimator.rows_per_round == pytest.approx(3, abs=0.01)
    with pytest.raises(ValueError, match="a round of 0 rows"):
        estimator.saw_round(request, 4, 2, 1, 1, 0)


def test_a_round_takes_time_even_if_the_clock_did_not_move() -> None:
    estimator = _estimator()
    estimator.saw_round(EstimatedRequest(1), 4, 2, 0, 0)
    assert estimator.round_ns == 1
