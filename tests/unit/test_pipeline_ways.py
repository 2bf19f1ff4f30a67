"""Ways on trial: the fastest one wins and stays, trials get rarer, and every batch size has its own answer."""

import itertools
from collections.abc import Callable

import pytest

from drafthouse.pipeline.modes import Overlap
from drafthouse.pipeline.stats import RoundStats
from drafthouse.pipeline.ways import LAST_TRIAL_AFTER, Way, Ways

MS = 1_000_000
Speed = Callable[[bool, int], tuple[int, float]]  # (overlapped, round) -> tokens and ms of a round


def only_overlap() -> Ways:
    return Ways(Overlap.AUTO, Overlap.OFF)


def _run(choice: Ways, num_rounds: int, speed: Speed, num_rows: int = 1, first: int = 0) -> list[bool]:
    """The ways of so many rounds."""
    ways = []
    for number in range(first, first + num_rounds):
        way = choice.decide(num_rows).overlaps
        tokens, wall_ms = speed(way, number)
        choice.learn(RoundStats(wall_ns=int(wall_ms * MS), num_verified_rows=num_rows, num_verified_emitted=tokens))
        ways.append(way)
    return ways


def _faster(overlapped: bool) -> Speed:
    return lambda way, _: (4, 20.0 if way == overlapped else 25.0)


@pytest.mark.parametrize("overlapped", [True, False])
def test_the_faster_way_wins_and_stays(overlapped: bool) -> None:
    ways = _run(only_overlap(), 3_000, _faster(overlapped))
    assert ways[200:].count(overlapped) > 0.94 * len(ways[200:])
    assert ways[2_000:].count(overlapped) > 0.97 * len(ways[2_000:])


def test_tokens_count_as_well_as_time() -> None:
    """The overlapped rounds are shorter, and bring less than they save."""
    ways = _run(only_overlap(), 2_000, lambda way, _: (3, 20.0) if way else (4, 22.0))
    assert ways[200:].count(False) > 0.9 * len(ways[200:])


@pytest.mark.parametrize("overlapped", [True, False])
def test_trials_of_the_slower_way_get_rarer_but_do_not_end(overlapped: bool) -> None:
    ways = _run(only_overlap(), 8 * LAST_TRIAL_AFTER, _faster(overlapped))
    begins = [number for number in range(20, len(ways)) if ways[number] != overlapped and ways[number - 1] == overlapped]
    gaps = [later - earlier for earlier, later in itertools.pairwise(begins)]
    assert len(gaps) >= 3
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1] < 1.1 * LAST_TRIAL_AFTER


@pytest.mark.parametrize("overlapped", [True, False])
def test_it_follows_a_machine_that_changes(overlapped: bool) -> None:
    choice = only_overlap()
    _run(choice, 500, _faster(not overlapped))
    ways = _run(choice, 3_000, _faster(overlapped))
    assert ways[-500:].count(overlapped) > 450


def test_every_batch_size_has_its_own_answer() -> None:
    choice = only_overlap()
    ways: dict[int, list[bool]] = {1: [], 8: []}
    for block in range(120):
        for rows, overlapped in ((1, False), (8, True)):
            ways[rows] += _run(choice, 10, _faster(overlapped), rows, first=10 * block)
    assert ways[1][200:].count(False) > 900
    assert ways[8][200:].count(True) > 900


def test_under_load_every_round_prefills_and_trials_end_all_the_same() -> None:
    choice, ways = only_overlap(), list[bool]()
    for number in range(2_000):
        ways.append(choice.decide(2).overlaps)
        prefill_ns = (number % 7) * 50 * MS
        wall_ns = prefill_ns + (25 if ways[-1] else 20) * MS
        choice.learn(
            RoundStats(wall_ns=wall_ns, prefill_wall_ns=prefill_ns, num_prefill_rows=1, num_verified_rows=2, num_verified_emitted=4)
        )
    assert 0 < ways.count(True) < 0.05 * len(ways)


def test_a_hiccup_in_the_first_rounds_of_a_block_is_not_held_against_a_way() -> None:
    choice = only_overlap()
    before: list[bool] = []

    def speed(way: bool, _: int) -> tuple[int, float]:
        is_first = not before or before[-1] != way
        before.append(way)
        return 4, (500.0 if is_first and way else 20.0 if way else 25.0)  # the pipe has to fill first

    ways = _run(choice, 2_000, speed)
    assert ways[200:].count(True) > 0.9 * len(ways[200:])


@pytest.mark.parametrize(("overlap", "expected"), [(Overlap.ON, True), (Overlap.OFF, False)])
def test_a_fixed_choice_is_never_reconsidered(overlap: Overlap, expected: bool) -> None:
    assert set(_run(Ways(overlap, Overlap.OFF), 200, _faster(not expected))) == {expected}


@pytest.mark.parametrize("best", [Way(overlaps, company) for overlaps in (False, True) for company in (False, True)])
def test_of_four_ways_the_fastest_wins_also_where_only_both_together_pay(best: Way) -> None:
    choice, ways = Ways(Overlap.AUTO, Overlap.AUTO), list[Way]()
    for _ in range(2_000):
        ways.append(choice.decide(4))
        choice.learn(RoundStats(wall_ns=20 * MS if ways[-1] == best else 25 * MS, num_verified_rows=4, num_verified_emitted=8))
    assert ways[300:].count(best) > 0.9 * len(ways[300:])
    assert set(ways) == {Way(False, False), Way(False, True), Way(True, False), Way(True, True)}


def test_a_clearly_slower_way_costs_few_rounds() -> None:
    ways = _run(only_overlap(), 200, _faster(False))
    assert 0 < ways.count(True) <= 2 * 6
