"""Fusion points are as far apart as the hops to the drafters ask for."""

from __future__ import annotations

import pytest

from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.fusion.pacing import MAX_INTERVAL, Pace, tokens_between_fusion
from fakes.drafter_scripted import ScriptedDrafter, counts
from fakes.fusion_rounds import draft, fusion_of, num_steps, row

MS = 1_000_000


@pytest.mark.parametrize(
    ("hop_ms", "step_ms", "at_least", "interval"),
    [
        (0.9, 1.0, 1, 1),  # within the server, with a drafter worth the name: after every token, as in the paper
        (1.0, 0.3, 1, 4),
        (5.0, 0.3, 1, 17),
        (20.0, 0.3, 1, MAX_INTERVAL),
        (20.0, 10.0, 1, 2),  # the larger the drafter, the less a hop matters
        (0.9, 1.0, 3, 3),  # never more often than configured
        (1.0, 0.3, 16, 16),
        (5.0, 0.1, 100, 100),
        (0.0, 0.3, 2, 2),  # nothing measured yet
        (5.0, 0.0, 2, 2),
    ],
)
def test_the_interval_follows_the_hop(hop_ms: float, step_ms: float, at_least: int, interval: int) -> None:
    assert tokens_between_fusion(hop_ms * MS, step_ms * MS, at_least) == interval


def test_the_means_follow_what_was_seen() -> None:
    pace = Pace()
    assert pace.interval(1) == 1
    pace.saw(wall_ns=4 * MS, session_ns=2 * MS, num_steps=4)
    assert (pace.hop_ns, pace.step_ns) == (2 * MS, 0.5 * MS)
    assert pace.interval(1) == 4
    for _ in range(40):  # the node moved further away
        pace.saw(wall_ns=12 * MS, session_ns=2 * MS, num_steps=4)
    assert pace.interval(1) == pytest.approx(20, abs=1)
    pace.saw(wall_ns=1000 * MS, session_ns=2 * MS, num_steps=4)  # one slow call does not decide alone
    assert pace.hop_ns < 0.25 * 1000 * MS


@pytest.mark.parametrize(("wall_ns", "session_ns", "num_steps"), [(5, 0, 1), (5, 9, 1), (5, 3, 0), (5, -1, 1)])
def test_calls_that_say_nothing_about_drafting_are_ignored(wall_ns: int, session_ns: int, num_steps: int) -> None:
    pace = Pace()
    pace.saw(wall_ns, session_ns, num_steps)
    assert (pace.hop_ns, pace.step_ns) == (0.0, 0.0)


def test_far_drafters_meet_less_often() -> None:
    """Scripted sessions take a microsecond per token, so everything around them is a long way."""
    drafters = ScriptedDrafter("a", counts(1, 0.9)), ScriptedDrafter("b", counts(1, 0.5))
    fusion = CollaborativeFusion(drafters, [64, 64], FusionOptions(pace=True))
    (got,) = draft(fusion, row([1.0, 1.0], 5)).rows
    assert got.tree.tokens.tolist() == [21, 22, 23, 24, 25]
    assert [num_steps(drafter) for drafter in drafters] == [[1, 4], [1, 4]]  # the first call measures


def test_without_pacing_the_configured_interval_holds() -> None:
    drafters = ScriptedDrafter("a", counts(1, 0.9)), ScriptedDrafter("b", counts(1, 0.5))
    draft(fusion_of(*drafters, fuse_every=2), row([1.0, 1.0], 5))
    assert [num_steps(drafter) for drafter in drafters] == [[2, 2, 1], [2, 2, 1]]
