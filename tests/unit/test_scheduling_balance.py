"""How much is speculated follows what drafts are worth and what the stages take: seen from outside, in virtual time."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.modes import Mode
from drafthouse.scheduling.balance import Balance
from fakes.pipeline_stages import Phase, Stages, simulate

MS = 1e6
TARGET_ONLY = PipelineConfig(mode=Mode.TARGET_ONLY)
VANILLA = PipelineConfig(mode=Mode.VANILLA)
EVEN = replace(VANILLA, adaptation="on")  # every request gets the same depth
TETRIS = replace(VANILLA, adaptation="on", tetris="on")
COSINE = PipelineConfig(overlap="off")
OVERLOAD = Stages(verify_ms=2, token_ms=3, draft_ms=5, accuracy=0.3)  # every token costs, and is seldom right
NUM_REQUESTS = {1: 6, 8: 32}


@cache
def steady(config: PipelineConfig, concurrency: int, stages: Stages) -> Phase:
    """When everything has settled."""
    return simulate(config, concurrency, (stages, NUM_REQUESTS[concurrency]))[0]


@pytest.mark.parametrize(("config", "concurrency"), [(EVEN, 8), (TETRIS, 8), (TETRIS, 1)])
def test_the_better_the_drafts_the_deeper(config: PipelineConfig, concurrency: int) -> None:
    depths = [steady(config, concurrency, Stages(accuracy=accuracy)).drafted_per_row for accuracy in (0.3, 0.7, 0.9)]
    assert depths == sorted(depths)
    assert depths[0] + 2 < depths[2]


@pytest.mark.parametrize("config", [EVEN, TETRIS], ids=["even", "tetris"])
def test_the_more_requests_share_the_target_the_less_each_speculates(config: PipelineConfig) -> None:
    assert steady(config, 8, Stages()).drafted_per_row < 0.5 * steady(config, 1, Stages()).drafted_per_row


@pytest.mark.parametrize("config", [EVEN, TETRIS], ids=["even", "tetris"])
@pytest.mark.parametrize(
    "dearer", [Stages(accuracy=0.9, beyond_ms=3.0), Stages(accuracy=0.9, row_step_ms=1.0)], ids=["verification", "drafting"]
)
def test_the_dearer_a_stage_the_shallower(config: PipelineConfig, dearer: Stages) -> None:
    assert steady(config, 8, dearer).drafted_per_row < 0.8 * steady(config, 8, Stages(accuracy=0.9)).drafted_per_row


@pytest.mark.parametrize("config", [EVEN, TETRIS, COSINE], ids=["even", "tetris", "cosine"])
def test_under_overload_nothing_is_drafted(config: PipelineConfig) -> None:
    before, overloaded = simulate(config, 8, (Stages(accuracy=0.9), 16), (OVERLOAD, 32))
    assert before.drafted_per_row > 2
    assert overloaded.drafted_per_row < 0.1
    assert overloaded.tokens_per_s > 0.95 * steady(TARGET_ONLY, 8, OVERLOAD).tokens_per_s


@pytest.mark.parametrize("config", [TETRIS, COSINE], ids=["tetris", "cosine"])
def test_drafts_that_were_no_good_and_are_again_come_back(config: PipelineConfig) -> None:
    good, bad = Stages(accuracy=0.9), Stages(accuracy=0.05)
    before, meanwhile, after = simulate(config, 8, (good, 16), (bad, 24), (good, 64))
    assert meanwhile.drafted_per_row < 0.2  # two rounds in six are tries at first, ever fewer later
    assert after.drafted_per_row > 0.5
    assert after.tokens_per_s > 0.93 * before.tokens_per_s


@pytest.mark.parametrize("config", [EVEN, TETRIS], ids=["even", "tetris"])
@pytest.mark.parametrize(
    ("concurrency", "stages"),
    [(1, Stages()), (1, Stages(accuracy=0.9)), (8, Stages()), (8, Stages(accuracy=0.9)), (8, Stages(accuracy=0.3)), (8, OVERLOAD)],
)
def test_adaptation_does_not_lose_against_any_fixed_depth(config: PipelineConfig, concurrency: int, stages: Stages) -> None:
    fixed = [TARGET_ONLY, *(replace(VANILLA, num_draft_tokens=depth) for depth in (1, 4))]
    best = max(steady(other, concurrency, stages).tokens_per_s for other in fixed)
    assert steady(config, concurrency, stages).tokens_per_s > 0.95 * best


def _taught(verify_ms: Callable[[int], float], step_ms: float) -> Balance:
    """Has seen verifications of so many tokens, and drafts of five good tokens."""
    balance = Balance(8)
    for number in range(200):
        rows = 1 + number % 8
        tokens = rows * (1 + number % 6)
        balance.saw_round(rows, tokens, verify_ms(tokens) * MS, 1 * MS)
        balance.saw_drafts(rows, 5, [[0.9**depth for depth in range(1, 6)]] * rows, 5 * step_ms * MS)
        balance.saw_sizes(rows, 6 * rows, 4.7 * rows, 5)
        balance.saw_selection(rows, 4.7 * rows, (verify_ms(6 * rows) + 5 * step_ms + 1) * MS, 0.1)
    return balance


def _flat(tokens: int) -> float:
    return 20.0 + 0.01 * tokens


def test_requests_that_are_ready_do_not_wait_for_slow_drafts() -> None:
    assert _taught(_flat, step_ms=20.0).goes_without(7, 1)


def test_where_drafts_are_quick_and_calls_cost_the_same_all_go_together() -> None:
    assert not _taught(_flat, step_ms=0.2).goes_without(1, 7)
    assert not _taught(_flat, step_ms=0.2).goes_without(4, 4)


def test_nobody_waits_for_nothing() -> None:
    balance = Balance(8)
    assert balance.goes_without(3, 0)
    assert not balance.goes_without(0, 3)


def test_what_was_never_seen_is_tried() -> None:
    balance = Balance(6)
    assert balance.decide(1, False, False) > 0
    assert balance.decide(8, True, True) > 0
