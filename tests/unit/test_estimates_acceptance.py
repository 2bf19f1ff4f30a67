"""When the acceptance of a request is known, and when it is no longer."""

from __future__ import annotations

import random
from itertools import pairwise
from statistics import mean, pstdev
from typing import Any

import pytest

from drafthouse.scheduling.estimates.acceptance import AcceptanceOptions, DomainAcceptance, Prior, RequestAcceptance
from drafthouse.scheduling.estimates.service import Estimator, EstimatorOptions
from fakes.estimated_request import EstimatedRequest, KnownLengths

NUM_DRAFTED = 5
USUAL = Prior(rate=0.4, round_variance=0.08, pseudo_rounds=1.1)
OPTIONS = AcceptanceOptions()


def _round(chance: random.Random, per_token: float) -> int:
    """Accepted tokens of a chain: it breaks off at the first that is not."""
    num_accepted = 0
    while num_accepted < NUM_DRAFTED and chance.random() < per_token:
        num_accepted += 1
    return num_accepted


def _rate(per_token: float) -> float:
    return sum(per_token**i for i in range(1, NUM_DRAFTED + 1)) / NUM_DRAFTED


def _run(history: RequestAcceptance, chance: random.Random, per_token: float, num_rounds: int) -> list[bool]:
    perceptible = []
    for _ in range(num_rounds):
        history.saw_round(NUM_DRAFTED, _round(chance, per_token), USUAL, OPTIONS)
        perceptible.append(history.is_perceptible)
    return perceptible


@pytest.mark.parametrize("per_token", [0.05, 0.3, 0.5, 0.7, 0.9])
def test_every_steady_request_becomes_perceptible_however_random_its_rounds_are(per_token: float) -> None:
    chance, off, late = random.Random(1), [], []
    for _ in range(100):
        history = RequestAcceptance()
        perceptible = _run(history, chance, per_token, 40)
        assert not perceptible[0]  # one round says little
        assert any(perceptible[:30])
        late += perceptible[20:]
        off.append(abs(history.rate(USUAL) - _rate(per_token)))
    assert mean(late) > 0.95
    assert mean(off) < 0.06


def test_single_rounds_scatter_for_ever() -> None:
    """Why the deviation is not that of single rounds: the same threshold would never let most of these requests pass."""
    chance = random.Random(2)
    for _ in range(50):
        rounds = [_round(chance, 0.7) / NUM_DRAFTED for _ in range(40)]
        settled = [pstdev(rounds[i : i + 16]) <= OPTIONS.stable_deviation for i in range(24)]
        assert mean(settled) < 0.5


def test_a_rate_that_moves_is_no_longer_known_and_becomes_known_anew() -> None:
    chance, found, rates = random.Random(3), 0, []
    for _ in range(50):
        history = RequestAcceptance()
        _run(history, chance, 0.2, 40)
        after = _run(history, chance, 0.95, 40)
        found += not all(after[:12])
        assert all(after[-10:])
        rates.append(history.rate(USUAL))
    assert found >= 48
    assert mean(rates) == pytest.approx(_rate(0.95), abs=0.05)  # half of all its rounds were at 0.2: that would make 0.45


def test_it_is_not_lost_by_chance() -> None:
    chance, lost, num_rounds = random.Random(4), 0, 0
    for _ in range(100):
        perceptible = _run(RequestAcceptance(), chance, 0.6, 150)
        lost += sum(before and not now for before, now in pairwise(perceptible))
        num_rounds += len(perceptible)
    assert lost / num_rounds < 0.01


def test_hysteresis_between_known_and_unknown() -> None:
    """Deviations 0.141 and 0.181 between the bounds 0.12 and 0.12 · 2: known stays known, unknown stays unknown."""
    options = AcceptanceOptions(stable_deviation=0.12, hysteresis=2.0)
    steady, prior = Prior(0.5, 0.02, 0.01), Prior(0.5, 0.1, 0.01)

    def scattered(history: RequestAcceptance) -> RequestAcceptance:
        for num_accepted in (0, 5, 0, 5):
            history.saw_round(NUM_DRAFTED, num_accepted, prior, options)
        return history

    known, unknown = RequestAcceptance(), RequestAcceptance()
    for _ in range(2):
        known.saw_round(NUM_DRAFTED, 2, steady, options)
    assert known.is_perceptible
    for history in (scattered(known), scattered(unknown)):
        assert 0.12 < history.deviation(prior) < 0.24
    assert known.is_perceptible
    assert not unknown.is_perceptible
    loud = Prior(0.5, 3.0, 0.01)
    known.saw_round(NUM_DRAFTED, 5, loud, options)
    assert known.deviation(loud) > 0.24
    assert not known.is_perceptible


def test_the_window_slides() -> None:
    options = AcceptanceOptions(window=8, recent=2, moved_deviations=100.0)  # no moves: only the window forgets
    history = RequestAcceptance()
    for _ in range(50):
        history.saw_round(4, 0, USUAL, options)
    for _ in range(8):
        history.saw_round(2, 2, USUAL, options)
    assert history.num_rounds == 8
    assert history.rate(Prior(0.0, 0.1, 1e-9)) == pytest.approx(1.0)
    assert history.summary() == pytest.approx((8, 1.0, 0.0))


def test_rounds_count_by_their_draft_tokens() -> None:
    history = RequestAcceptance()
    history.saw_round(8, 4, USUAL, OPTIONS)
    history.saw_round(2, 2, USUAL, OPTIONS)
    assert history.rate(Prior(0.5, 0.1, 1e-9)) == pytest.approx(0.6)
    assert RequestAcceptance().rate(USUAL) == USUAL.rate
    assert RequestAcceptance().summary() == (0, 0.0, 0.0)


def _learned(rates: list[float], num_rounds: int = 20) -> DomainAcceptance:
    chance, overall = random.Random(5), DomainAcceptance(OPTIONS)
    above = overall.prior, overall.request_variance
    for per_token in rates:
        history = RequestAcceptance()
        _run(history, chance, per_token, num_rounds)
        overall.saw_end(history, *above)
    overall.saw_end(RequestAcceptance(), *above)  # one that never ran
    return overall


def test_a_domain_learns_its_spread_and_so_how_many_rounds_outweigh_it() -> None:
    draw = random.Random(6)
    wide = _learned([draw.betavariate(2, 1.5) for _ in range(600)])
    tight = _learned([0.6] * 600)
    true = [_rate(draw.betavariate(2, 1.5)) for _ in range(20_000)]
    assert wide.prior.rate == pytest.approx(mean(true), abs=0.04)
    assert wide.request_variance == pytest.approx(pstdev(true) ** 2, rel=0.3)
    assert wide.prior.pseudo_rounds < 2
    assert tight.prior.rate == pytest.approx(_rate(0.6), abs=0.02)
    assert tight.prior.pseudo_rounds > 20
    history = RequestAcceptance()
    for num_accepted in (5, 0):
        history.saw_round(NUM_DRAFTED, num_accepted, tight.prior, OPTIONS)
    assert history.is_perceptible  # the domain says it all
    assert history.deviation(tight.prior) < history.deviation(wide.prior)


def test_the_estimator_tells_both_ways() -> None:
    estimator = Estimator(KnownLengths({1: 1000}), EstimatorOptions(acceptance=AcceptanceOptions(min_rounds=3)))
    request = EstimatedRequest(1, "code", num_output_tokens=1)
    seen = []
    for _ in range(30):
        request.run_round(estimator, 4, 1)
        seen.append(estimator.is_perceptible(request))
    assert seen[:2] == [False, False]
    assert all(seen[6:])
    after = []
    for _ in range(30):
        request.run_round(estimator, 4, 4)
        after.append(estimator.is_perceptible(request))
    assert not all(after[:9])
    assert after[-1]
    assert estimator.acceptance(request) > 0.85


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("prior_rate", 0.0), ("prior_rate", 1.0), ("prior_round_variance", 0.0), ("prior_request_variance", 0.0)),
        *(("memory_requests", 1.0), ("domain_strength", -1.0), ("window", 15), ("recent", 1), ("min_rounds", 0)),
        *(("stable_deviation", 0.0), ("hysteresis", 0.9), ("moved_deviations", 0.0)),
    ],
)
def test_options_out_of_range_are_refused(field: str, value: float) -> None:
    given: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match="acceptance options"):
        AcceptanceOptions(**given)
