"""Recording stage costs: which shapes, what is fitted, and a recording of a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from drafthouse_load.replay.costs import EngineCosts, HopCost
from drafthouse_load.replay.models import ReplayModels
from drafthouse_load.replay.record import (
    HopPoint,
    Sample,
    decode_shapes,
    fit_around,
    fit_place,
    hops_from,
    num_recordings,
    prefill_shapes,
    record_engines,
)
from drafthouse_load.replay.record_fusion import record_fanout
from fakes.replay_repository import build_replay_repository

FULL = EngineCosts(1, {(rows, tokens): 10.0 + rows * tokens for rows in (1, 2, 4, 8) for tokens in range(1, 17)}, 0.0, 0.7, 0.0, 0.1)


def test_decoding_is_recorded_shape_by_shape() -> None:
    shapes = decode_shapes(slots=8, max_step_tokens=64)
    equal = {(len(shape), shape[0]) for shape in shapes if len(set(shape)) == 1}
    assert equal == {(rows, tokens) for rows in range(1, 9) for tokens in range(1, 18)}
    assert (2, 2, 16, 16) in shapes
    assert max(len(shape) for shape in decode_shapes(12, 64)) == 12
    assert {max(shape) for shape in decode_shapes(1, 5)} == {1, 2, 3, 4, 5}
    assert prefill_shapes(2, 32) == [(24,), (32,), (24, 24), (32, 32)]


def test_time_around_the_session_is_fitted_to_calls_runs_and_outputs() -> None:
    samples = [
        Sample((1,) * rows, steps, rows * steps, 1.0, 0.5 + 0.2 * steps + 0.01 * rows * steps) for rows in (1, 2, 4) for steps in (1, 2, 8)
    ]
    assert fit_around(samples, is_drafter=True) == pytest.approx((0.5, 0.2, 0.01), abs=1e-3)
    one_run = [Sample((tokens,), 1, tokens, 1.0, 0.6 + 0.02 * tokens) for tokens in range(1, 9)]
    assert fit_around(one_run, is_drafter=False) == pytest.approx((0.6, 0.0, 0.02), abs=1e-3)


def test_empty_places_cost_what_unequal_rows_take_longer() -> None:
    assert fit_place(FULL, {(2, 2, 16, 16): FULL.session(4, 9, 36) + 28 * 0.05}) == pytest.approx(0.05)
    assert fit_place(FULL, {(2, 2, 16, 16): 1.0}) == 0.0, "noise must not make padding pay"
    assert fit_place(FULL, {}) == 0.0


def test_messages_are_what_is_left_of_a_stage() -> None:
    """Two concurrencies: a message of 1 ms + 0.5 ms per row to the target, twice 2 ms + 0.25 ms per row for drafting."""
    drafter = EngineCosts(1, {(1, 2): 1.0}, 0.0, 0.2, 0.1, 0.0)
    fanout = HopCost(0.1, 0.05)
    points = [
        HopPoint(
            rows=rows,
            drafted=3.0,
            verify_other_ms=1.0 + 0.5 * rows + FULL.around(1, round(rows * 4)),
            draft_other_ms=2 * (2.0 + 0.25 * rows) + drafter.around(3, round(rows * 3)) + fanout.ms(rows),
            pipeline_ms=0.3,
        )
        for rows in (1.0, 8.0)
    ]
    hops = hops_from(points, FULL, drafter, fanout)
    assert (hops.target.call_ms, hops.target.row_ms) == pytest.approx((1.0, 0.5), abs=1e-3)
    assert (hops.fusion.call_ms, hops.fusion.row_ms) == pytest.approx((2.0, 0.25), abs=1e-3)
    assert hops.drafter == hops.router == hops.fusion
    assert (hops.pipeline, hops.fanout) == (HopCost(0.3), fanout)
    assert hops_from(points[:1], FULL, drafter, fanout).target == HopCost(1.5)
    with pytest.raises(ValueError, match="no mode with a drafter"):
        hops_from([HopPoint(1.0, 0.0, 1.0, 0.0, 0.1)], FULL, drafter, fanout)


def test_a_real_engine_is_recorded(tmp_path: Path) -> None:
    models = ReplayModels(build_replay_repository(tmp_path))
    calls: list[None] = []
    costs = record_engines(models, lambda: calls.append(None), rounds=1)
    assert len(calls) == num_recordings(models, rounds=1) == 4
    assert set(costs) == {"target", "twin", "stranger"}
    assert costs["twin"] is costs["stranger"], "models of one shape are recorded once"
    for own in costs.values():
        assert set(own.session_ms) >= {(rows, tokens) for rows in range(1, 5) for tokens in range(1, 18)}
        assert {(4, 24), (1, 24)} <= set(own.session_ms)
        assert all(ms > 0 for ms in own.session_ms.values())
        assert own.around(1, 1) > 0
        assert own.place_ms >= 0
    assert (costs["target"].num_threads, costs["twin"].num_threads) == (models.target.num_threads, 1)
    assert costs["target"].run_ms == 0.0


def test_fusions_work_per_drafter_is_recorded_on_the_real_code() -> None:
    fanout = record_fanout()
    assert fanout.ms(8) > 0
    assert fanout.call_ms >= 0
    assert fanout.row_ms >= 0
