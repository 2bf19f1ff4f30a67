"""Requests that a server has served, served again in virtual time."""

from dataclasses import replace

import pytest

from drafthouse.core.errors import ClientError
from drafthouse_load.simulate.costs import MeasuredCosts
from drafthouse_load.simulate.figures import PolicyFigures
from drafthouse_load.simulate.predict import MeasuredRequest, predict_latency

MS = 1_000_000
COSTS = MeasuredCosts({1: 5.0 * MS, 2: 6.0 * MS}, {1: 10.0 * MS, 2: 14.0 * MS}, prefill_token_ns=1.0 * MS)
FIRST = MeasuredRequest(7_000 * MS, 30, "code", [3, 2], [4, 4], prefill_ns=20 * MS, round_ns=[12 * MS, 18 * MS])
SECOND = replace(FIRST, arrival_ns=7_010 * MS, domain="math", tokens_per_round=[1], drafted_per_round=[0], round_ns=[11 * MS])


def predict(requests: list[MeasuredRequest], policy: str = "fcfs", batch: int = 1) -> PolicyFigures:
    return predict_latency(
        requests, COSTS, policy=policy, batch=batch, slots=2, starvation_limit_ns=10**12, length_predictor="histogram", max_tokens=64
    )


def test_measured_times_are_charged_where_a_round_is_not_shared() -> None:
    found = predict([SECOND, FIRST])
    assert found.latency == pytest.approx([20 + 12 + 18, 50 - 10 + 20 + 11])
    assert found.unit == "ms"
    assert found.makespan == pytest.approx(81.0)


def test_shared_rounds_cost_what_their_number_of_rows_does() -> None:
    together = replace(SECOND, arrival_ns=FIRST.arrival_ns)
    found = predict([FIRST, together], batch=2)
    assert found.latency == pytest.approx([20 + 20 + 20 + 18, 20 + 20 + 20])


def test_without_measured_rounds_the_costs_hold() -> None:
    assert predict([replace(FIRST, round_ns=None), replace(SECOND, round_ns=None)]).latency[0] == pytest.approx(20 + 2 * 15)


def test_requests_that_cannot_be_are_refused() -> None:
    for wrong in ({"drafted_per_round": [4]}, {"tokens_per_round": [3, 0]}, {"round_ns": [1]}):
        with pytest.raises(ValueError, match="rounds of a measured request"):
            predict([replace(FIRST, **wrong), SECOND])  # type: ignore[arg-type]
    with pytest.raises(ClientError, match="field=policy"):
        predict([FIRST, SECOND], policy="fastest")
