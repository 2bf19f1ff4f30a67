"""Batch assignment: near the exact optimum, within its limits, and nobody waits for ever."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from drafthouse.scheduling.assignment import NO_SLOT, Assignment, Candidate, Limits, Prices, WaitingRounds, assign, cost_matrix
from drafthouse.scheduling.slot_runs import best_subsets
from fakes.exact_assignment import exact_objective_ns

MS = 1e6
Instance = tuple[list[Candidate], NDArray[np.float64], Limits, Prices]
UNLIMITED = 10**6


def _instance(seed: int, count: int, rows: int, tight: bool, hurried: bool) -> Instance:
    """Random requests on scattered slots; times that are not monotone; limits of tokens and latency that bind, or not."""
    rng = np.random.default_rng(seed)
    slots = rng.permutation(int(count * 1.3))[:count]
    candidates = []
    for slot in slots.tolist():
        chances = rng.uniform(0.3, 0.9) ** np.arange(1, rng.integers(1, 10))
        waited = int(rng.integers(0, 6)) if rng.random() < 0.3 else 0
        candidates.append(Candidate(NO_SLOT if rng.random() < 0.1 else slot, int(rng.integers(1, 3)), chances, waited))
    costs = cost_matrix(lambda batch, width: (8 + 0.15 * batch + 0.5 * width + 0.32 * batch * width) * MS, rows, 9)
    costs *= rng.uniform(0.85, 1.15, costs.shape)
    max_tokens = int(min(rows, count) * rng.uniform(2, 4)) if tight else UNLIMITED
    max_latency_ns = float(rng.uniform(0.5, 0.9) * costs[rows, 9]) if hurried else float("inf")
    limits = Limits(rows, max_tokens, 9, max_latency_ns, num_free_slots=int(rng.integers(0, 4)))
    prices = Prices(*(rng.uniform((0.5, 0.0, 0.0), (3.0, 0.3, 6.0)) * MS).tolist())
    return candidates, costs, limits, prices


def _check(found: Assignment, instance: Instance) -> None:
    """The limits hold, and the figures are those of the definition."""
    candidates, costs, limits, prices = instance
    rows = [candidates[index] for index in found.chosen]
    tokens = [row.num_uncached + drafted for row, drafted in zip(rows, found.num_draft_tokens, strict=True)]
    assert 1 <= len(rows) <= limits.max_rows
    assert list(found.chosen) == sorted(set(found.chosen))
    assert max(tokens) <= found.width <= limits.max_width
    assert sum(tokens) <= limits.max_tokens
    assert sum(row.slot == NO_SLOT for row in rows) <= limits.num_free_slots
    slots = sorted(row.slot for row in rows if row.slot != NO_SLOT)
    num_runs = sum(slot - 1 not in slots for slot in slots) + len(rows) - len(slots)
    assert found.num_runs == num_runs
    assert found.latency_ns == pytest.approx(costs[len(rows), found.width] + prices.run_ns * (num_runs - 1))
    assert found.latency_ns <= limits.max_latency_ns
    taken = dict(zip(found.chosen, found.num_draft_tokens, strict=True))
    put_off = 0.0
    for index, row in enumerate(candidates):
        best = np.sort(row.chances)[::-1]
        missed = best[taken[index] :].sum() if index in taken else 1 + best.sum()
        put_off += prices.worth_ns * (1 + prices.ageing * row.rounds_waited) * missed
    assert found.objective_ns == pytest.approx(found.latency_ns + prices.token_ns * sum(tokens) + put_off, rel=1e-3)


def test_within_two_percent_of_the_optimum() -> None:
    gaps = []
    for seed, (count, tight, hurried) in enumerate(itertools.product((5, 8, 11, 14, 17), (False, True), (False, True))):
        for repeat in range(2):
            instance = _instance(100 * repeat + seed, count, 8, tight, hurried)
            optimum = exact_objective_ns(*instance)
            found = assign(*instance)
            assert optimum is not None
            _check(found, instance)
            gaps.append(found.objective_ns / optimum - 1)
    assert len(gaps) == 40
    assert min(gaps) > -1e-3  # the order of urgency is worth less than this
    assert np.mean(gaps) < 0.01
    assert max(gaps) < 0.05


def test_64_candidates_without_binding_limits_are_solved_exactly() -> None:
    instance = _instance(3, 64, 8, tight=False, hurried=False)
    optimum, found = exact_objective_ns(*instance), assign(*instance)
    assert optimum is not None
    _check(found, instance)
    assert found.objective_ns == pytest.approx(optimum, rel=1e-3)


@pytest.mark.parametrize(("tight", "hurried"), list(itertools.product((False, True), (False, True))))
def test_64_candidates_keep_to_the_limits(tight: bool, hurried: bool) -> None:
    for seed in range(5):
        instance = _instance(seed, 64, 16, tight, hurried)
        _check(assign(*instance), instance)


def _chain(slot: int, length: int, chance: float = 0.8, waited: int = 0) -> Candidate:
    return Candidate(slot, 1, chance ** np.arange(1, length + 1), waited)


def _flat(rows: int, width: int = 20, time_ms: float = 20.0) -> NDArray[np.float64]:
    return cost_matrix(lambda batch, tokens: time_ms * MS, rows, width)


def test_the_longest_drafts_are_shortened_first() -> None:
    candidates = [_chain(0, 2), _chain(1, 9), _chain(2, 4), _chain(3, 8)]
    found = assign(candidates, _flat(4), Limits(4, max_tokens=4 + 14, max_width=20), Prices(worth_ns=5 * MS))
    assert found.num_draft_tokens == (2, 4, 4, 4)


def test_more_drafts_than_are_worth_their_price_are_left() -> None:
    found = assign([_chain(0, 8, 0.5)], _flat(1), Limits(1, 100, 20), Prices(worth_ns=10 * MS, token_ns=1 * MS))
    assert found.num_draft_tokens == (3,)  # 0.5³ · 10 ms > 1 ms > 0.5⁴ · 10 ms


def test_the_width_of_a_fast_shape_is_used() -> None:
    times = {1: 15.0, 2: 19.0, 3: 31.0, 4: 26.0, 5: 60.0}
    costs = cost_matrix(lambda batch, tokens: times[tokens] * MS, 2, 5)
    found = assign([_chain(0, 4), _chain(1, 4)], costs, Limits(2, 100, 5), Prices(worth_ns=8 * MS))
    assert (found.width, found.num_draft_tokens) == (4, (3, 3))


def test_gaps_between_slots_are_avoided_when_they_cost_more_than_they_bring() -> None:
    candidates = [_chain(0, 4, 0.8), _chain(5, 4, 0.82), _chain(1, 4, 0.8), _chain(2, 4, 0.8)]
    limits = Limits(3, 100, 20)
    near = assign(candidates, _flat(3), limits, Prices(worth_ns=5 * MS, run_ns=6 * MS))
    far = assign(candidates, _flat(3), limits, Prices(worth_ns=5 * MS, run_ns=0.01 * MS))
    assert (near.chosen, near.num_runs) == ((0, 2, 3), 1)
    assert (far.chosen, far.num_runs) == ((0, 1, 2), 2)


def test_ties_go_to_the_more_urgent() -> None:
    candidates = [_chain(slot, 3) for slot in (7, 3, 5, 1)]
    assert assign(candidates, _flat(2), Limits(2, 100, 20), Prices(worth_ns=5 * MS)).chosen == (0, 1)


def test_a_request_without_a_slot_needs_a_free_one() -> None:
    candidates = [_chain(NO_SLOT, 8, 0.9), _chain(NO_SLOT, 8, 0.9), _chain(4, 1, 0.1)]
    prices = Prices(worth_ns=5 * MS)
    chosen = [assign(candidates, _flat(3), Limits(3, 100, 20, num_free_slots=free), prices).chosen for free in (0, 1, 2)]
    assert chosen == [(2,), (0, 2), (0, 1, 2)]


def test_something_always_runs() -> None:
    prices = Prices(worth_ns=0.0)
    late = Limits(2, 100, 20, max_latency_ns=1 * MS)
    found = assign([_chain(3, 4), _chain(1, 2)], _flat(2), late, prices)
    assert (found.chosen, found.num_draft_tokens, found.width) == ((0,), (0,), 1)
    wide = [Candidate(NO_SLOT, 50, np.empty(0)), Candidate(2, 30, np.empty(0))]
    found = assign(wide, _flat(2), Limits(2, 10, 20), prices)
    assert (found.chosen, found.width) == ((1,), 30)
    assert assign([_chain(0, 4)], _flat(1), Limits(1, 100, 20), prices).chosen == (0,)  # although it is worth nothing


def test_nobody_waits_for_ever() -> None:
    """One request drafts badly and sits apart: it is left out at first, gains weight, and is served again and again."""
    waiting, served, longest = WaitingRounds(), [0] * 5, 0
    for _ in range(100):
        candidates = [_chain(slot, 6, 0.9, waiting[slot]) for slot in range(4)] + [Candidate(9, 1, np.empty(0), waiting[9])]
        found = assign(candidates, _flat(2), Limits(2, 100, 20), Prices(worth_ns=3 * MS, run_ns=4 * MS))
        for index in found.chosen:
            served[index] += 1
        waiting.note([0, 1, 2, 3, 9], [candidates[index].slot for index in found.chosen])
        longest = max(longest, waiting[9])
    assert served[4] == min(served) >= 3
    assert 10 < longest < 35


def test_waiting_is_counted_in_a_row_and_forgotten_with_the_request() -> None:
    waiting = WaitingRounds()
    waiting.note([1, 2, 3], [1])
    waiting.note([1, 2, 3], [2])
    assert [waiting[uid] for uid in (1, 2, 3, 4)] == [1, 0, 2, 0]
    waiting.note([1], [1])
    assert waiting[3] == 0


@pytest.mark.parametrize("seed", range(10))
def test_best_subsets_are_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 3, (7, 2))
    values[rng.random((7, 2)) < 0.2] = -np.inf
    neighbours = np.append(False, rng.random(6) < 0.6)
    subsets = best_subsets(values, neighbours, 1.5, 4)

    def total(members: tuple[int, ...], column: int) -> float:
        runs = sum(not (neighbours[item] and item - 1 in members) for item in members)
        return float(values[list(members), column].sum()) - 1.5 * (runs - 1)

    for column, count in itertools.product(range(2), range(1, 5)):
        best = max(total(members, column) for members in itertools.combinations(range(7), count))
        assert subsets.totals[column, count] == pytest.approx(best)
        if np.isfinite(best):
            assert total(tuple(subsets.members(column, count).tolist()), column) == pytest.approx(best)
