"""Adaptive speculation on simulated stages: it loses to no fixed depth, does not oscillate, stops speculating and resumes."""

import json
from collections import Counter

import numpy as np
import pytest

from drafthouse.scheduling.adaptive import RoundOutcome, SpeculationController, SpeculationPlan
from drafthouse.scheduling.stage_costs import StageCosts
from fakes.two_stages import MAX_DEPTH, MS, TwoStages

CONVERGED, STEADY = 400, 600  # rounds


def _stages(hop_ms: float = 5.0, overlap: bool = False, seed: int = 0) -> TwoStages:
    return TwoStages(SpeculationController(MAX_DEPTH, 1, overlap=overlap), hop_ms, overlap, seed)


def _num_changes(stages: TwoStages) -> int:
    return sum(plan["changes"] for plan in stages.controller.statistics()["plans"].values())


@pytest.mark.parametrize(("hop_ms", "overlap"), [(5.0, False), (12.0, False), (5.0, True)])
@pytest.mark.parametrize("batch", [1, 4, 8, 16])
def test_adaptation_never_loses(batch: int, hop_ms: float, overlap: bool) -> None:
    """Against every fixed depth, 0 included, trials paid for; also after the text has changed."""
    stages = _stages(hop_ms, overlap, seed=batch)
    for chance in (0.78, 0.3):
        stages.run(batch, chance, CONVERGED)
        before = _num_changes(stages)
        assert stages.run(batch, chance, STEADY) >= 0.97 * stages.best_rate(batch, chance)
        assert _num_changes(stages) - before <= 6


def test_speculation_stops_when_it_does_not_pay_and_resumes_when_it_does() -> None:
    stages = _stages(hop_ms=12.0)
    for chance, speculates in ((0.8, True), (0.2, False), (0.8, True)):
        stages.run(4, chance, CONVERGED)
        stages.run(4, chance, 200)
        share = np.mean(np.array(stages.depths[-200:]) > 0)
        assert share > 0.95 if speculates else share < 0.1


def test_without_drafts_trials_become_rare_but_do_not_end() -> None:
    stages = _stages(hop_ms=40.0)
    stages.run(8, 0.1, 600)
    drafted = [index for index, depth in enumerate(stages.depths) if depth]
    late = [index for index in drafted if index >= 300]
    assert 2 <= len(late) <= 12
    assert len(late) < len(drafted) - len(late)


def test_a_change_of_text_is_noticed_at_once() -> None:
    stages = _stages()
    stages.run(8, 0.9, 300)
    stages.run(8, 0.1, 60)
    assert np.mean(np.array(stages.depths[-20:])) < 1.5


def test_the_fast_shape_is_found_although_times_are_not_monotone() -> None:
    """At 8 rows 4 tokens take less time than 3: depth 3 beats its neighbours on both sides."""
    stages = _stages()
    stages.run(8, 0.78, 600)
    (depth, _), *_ = Counter(stages.depths[-300:]).most_common()
    assert depth == 3


def test_another_batch_size_starts_from_what_is_known() -> None:
    stages = _stages()
    stages.run(8, 0.78, 300)
    stages.run(7, 0.78, 5)
    assert stages.rate(7, stages.depths[-1], 0.78) >= 0.9 * stages.best_rate(7, 0.78)


def test_changing_batch_sizes() -> None:
    stages, rng, batch, got, best = _stages(), np.random.default_rng(1), 6, 0.0, 0.0
    for number in range(1200):
        batch = int(np.clip(batch + rng.integers(-1, 2) * (rng.random() < 0.3), 1, 16))
        rate = stages.run(batch, 0.7, 1)
        if number >= 600:
            got, best = got + batch / rate, best + batch / stages.best_rate(batch, 0.7)
    assert best / got >= 0.96  # against the best depth of each batch size, which is more than any fixed depth gives


def _drafted_with(num_drafters_chance: dict[int, float], draft_ms_per_drafter: float) -> SpeculationPlan:
    """The most frequent plan when m drafters accept with the given chance and drafting slows down with m."""
    controller = SpeculationController(MAX_DEPTH, max(num_drafters_chance))
    rng, plans = np.random.default_rng(0), list[SpeculationPlan]()
    for _ in range(600):
        plan = controller.decide(4)
        depth, drafters = plan.num_draft_tokens, plan.max_drafters
        accepted = np.minimum(rng.geometric(1 - num_drafters_chance[drafters], 4) - 1, depth)
        draft_ns = (2 + depth * draft_ms_per_drafter * drafters) * MS * (depth > 0)
        verify_ns = (15 + depth * 1.5) * MS
        controller.observe(RoundOutcome(plan, 4, depth + 1, draft_ns, verify_ns, 3 * MS, np.full(4, depth), accepted))
        plans.append(plan)
    return Counter(plans[-200:]).most_common(1)[0][0]


def test_drafters_that_cost_more_than_they_add_are_left_out_and_others_are_not() -> None:
    assert _drafted_with({1: 0.70, 2: 0.71, 3: 0.72}, 0.8).max_drafters == 1
    assert _drafted_with({1: 0.55, 2: 0.65, 3: 0.75}, 0.1).max_drafters == 3


def test_known_costs_decide_the_first_round() -> None:
    known = StageCosts()
    for depth in range(MAX_DEPTH + 1):
        known.observe(2, depth + 1, (10 + 20 * depth) * MS)
    assert SpeculationController(MAX_DEPTH, 1, verify_costs=known).decide(2).num_draft_tokens == 0
    assert SpeculationController(MAX_DEPTH, 1, first_draft_tokens=5).decide(2) == SpeculationPlan(5, 1)


def test_widths_other_than_the_depth_count() -> None:
    """A depth whose trees were cut to 2 tokens is predicted by the time of 2 tokens, not of depth + 1."""
    controller = SpeculationController(4, 1)
    for depth, width, time_ms in [(1, 2, 10.0), (4, 5, 50.0)] * 5 + [(4, 2, 10.0)] * 60:
        plan = SpeculationPlan(depth, 1)
        outcome = RoundOutcome(plan, 1, width, 1 * MS, time_ms * MS, 1 * MS, np.array([depth]), np.array([1]))
        controller.observe(outcome)
    expected = controller._survival.expected_tokens(1)[4]
    draft_and_other = controller.overhead_ns(1, SpeculationPlan(4, 1))
    assert expected / controller.rates(1, 1)[4] - draft_and_other == pytest.approx(10 * MS, rel=0.02)


def test_no_depth_to_choose_from() -> None:
    controller = SpeculationController(0, 1)
    for _ in range(300):
        plan = controller.decide(3)
        assert plan.num_draft_tokens == 0
        controller.observe(RoundOutcome(plan, 3, 1, 0.0, 9 * MS, MS, np.zeros(3, np.int64), np.zeros(3, np.int64)))


def test_statistics_are_json() -> None:
    stages = _stages()
    stages.run(2, 0.6, 30)
    read = json.loads(json.dumps(stages.controller.statistics()))
    assert read["plans"]["2"]["max_drafters"] == 1
    assert len(read["expected_tokens"]["1"]) == MAX_DEPTH + 1
