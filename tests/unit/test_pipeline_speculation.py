"""What `Speculation` decides, seen from outside: limits of a verification, chains where trees are not exact, rehearsals."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from drafthouse.core.errors import ClientError
from drafthouse.engine.contract import StepCall
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.loop import Pipeline, Services
from drafthouse.pipeline.modes import Mode
from drafthouse.pipeline.rehearsal import REPEATS, made_up_uids, verified_shapes
from fakes.pipeline_fusion import DRAFTERS, FakeFusion, FakeRouter
from fakes.pipeline_harness import Rig, async_test, make_request, reference_ids, running
from fakes.pipeline_model import token_bytes
from fakes.pipeline_target import FakeTarget

REHEARSING = PipelineConfig(rehearsal="on")


def verifications(calls: Sequence[StepCall]) -> list[StepCall]:
    """Calls that verify drafts, without prefill."""
    return [call for call in calls if call.num_steps and any(row.prefix_len > 0 for row in call.rows)]


@pytest.mark.parametrize("overlap", ["on", "off"])
@async_test
async def test_a_verification_keeps_its_limit_and_everybody_gets_there(overlap: str) -> None:
    limit = 9
    async with running(PipelineConfig(max_verified_tokens=limit, overlap=overlap)) as rig:
        requests = [make_request((1, 2, 3 + item), 24, end_ids=()) for item in range(6)]
        sinks = await rig.generate(*requests)
        for request, sink in zip(requests, sinks, strict=True):
            assert sink.output_ids == reference_ids(request)
        drafted = [stats for stats in rig.rounds if stats.num_drafted and stats.num_verified_rows > 1]
        assert drafted
        assert max(stats.num_verified_tokens for stats in rig.rounds) <= limit


@async_test
async def test_chains_only_where_side_branches_are_not_exact() -> None:
    for exact in (True, False):
        async with running(PipelineConfig(adaptation="off", num_siblings=2), exact_trees=exact) as rig:
            await rig.generate(make_request((4, 5, 6), 40, end_ids=()))
            plans = [call.plan for call in rig.fusion.calls if any(row.num_draft_tokens for row in call.rows)]
            assert {(plan.num_siblings, plan.keep_divergent) for plan in plans} == {(2, True) if exact else (0, False)}


def test_a_mode_that_is_made_of_trees_is_refused_where_they_are_not_exact() -> None:
    target = FakeTarget()
    services = Services(target, target.limits, token_bytes, FakeFusion(), FakeRouter(), DRAFTERS, exact_trees=False)
    with pytest.raises(ClientError, match="UNSUPPORTED field=mode value='specinfer'"):
        Pipeline(PipelineConfig(mode=Mode.SPECINFER), services)


async def rehearsed(rig: Rig) -> None:
    """Until the rehearsal is over."""
    for _ in range(5_000):
        if not rig.pipeline.snapshot().is_rehearsing:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the rehearsal does not end")


@async_test
async def test_a_rehearsal_shows_every_shape_and_leaves_nothing_behind() -> None:
    async with running(REHEARSING) as rig:
        await asyncio.sleep(0.02)
        assert rig.target.calls == [], "nobody is called before the pipeline is opened"
        rig.pipeline.open()
        assert rig.pipeline.snapshot().is_rehearsing
        await rehearsed(rig)
        seen = [(len(call.rows), len(call.rows[0].tokens)) for call in verifications(rig.target.calls)]
        assert sorted(seen) == sorted(REPEATS * list(verified_shapes(rig.target.limits)))
        (sink,) = await rig.generate(request := make_request())
        assert sink.output_ids == reference_ids(request)


@async_test
async def test_a_rehearsal_gives_way_to_a_request_and_is_made_up_for() -> None:
    target = FakeTarget()
    async with running(REHEARSING, target) as rig:
        rig.pipeline.open()
        while len(target.calls) < 3:
            await asyncio.sleep(0)
        num_before = len(target.calls)
        (sink,) = await rig.generate(request := make_request())
        assert sink.output_ids == reference_ids(request)
        first = next(index for index, call in enumerate(target.calls) if any(row.request_uid == request.request_uid for row in call.rows))
        assert first <= num_before + 2
        await rehearsed(rig)
        assert len(verifications(target.calls)) > REPEATS * len(list(verified_shapes(target.limits)))


@async_test
async def test_what_a_broken_off_rehearsal_held_is_released_by_the_next_front_door() -> None:
    target = FakeTarget()
    left = made_up_uids(target.limits)[0]
    target.held[left] = np.array([1, 2, 3]).tolist()
    async with running(replace(REHEARSING, rehearsal="off"), target) as rig:
        rig.pipeline.open()
        for _ in range(1_000):
            if left not in target.held:
                break
            await asyncio.sleep(0.001)
        assert left not in target.held
