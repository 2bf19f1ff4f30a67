"""Requests that engines may forget: none is lost, and none that came back is forgotten for its first release."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from drafthouse.engine.contract import EngineError, StepCall, StepResult, StepRow
from drafthouse.engine.releases import Releases
from drafthouse.fusion.contract import DraftCall, DraftResult
from drafthouse.pipeline.links import FusionLink, TargetLink
from fakes.drafter_scripted import ScriptedDrafter, counts
from fakes.pipeline_harness import async_test
from fakes.pipeline_target import FakeTarget
from fakes.remote_calls import asks, reaching, until
from fakes.remote_node import FakeNode, serving


def test_a_call_settles_what_it_carried_and_nothing_else() -> None:
    releases = Releases()
    releases.add(5, 3)
    carried = releases.owed()
    assert tuple(carried) == (5, 3)
    releases.add(7)
    releases.add(5)  # it came back, and ended again, while the call was under way
    releases.settle(carried)
    assert tuple(releases.owed()) == (7, 5)
    releases.settle(carried)  # an answer that comes twice
    releases.settle(releases.owed())
    assert len(releases) == 0


def test_beyond_its_capacity_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Releases, "CAPACITY", 3)
    releases = Releases()
    releases.add(*range(5))
    releases.add(2)
    assert tuple(releases.owed()) == (3, 4, 2)


def call_for(uid: int) -> StepCall:
    return StepCall([StepRow(uid, 0, np.array([1, 2], np.int32), 2)])


@async_test
async def test_a_request_that_ends_while_its_own_first_release_is_under_way_is_released_again() -> None:
    target = FakeTarget()
    link = TargetLink(target)
    await link.step(call_for(9))
    link.releases.add(9)  # preempted,
    target.gate.clear()
    under_way = asyncio.ensure_future(link.step(call_for(9)))  # chosen again: the call releases it and takes it in anew,
    await asyncio.sleep(0.01)
    link.releases.add(9)  # and cancelled meanwhile
    target.gate.set()
    await under_way
    assert list(target.held) == [9]
    assert await link.flush()
    assert (list(target.held), len(link.releases)) == ([], 0)


@async_test
async def test_a_call_that_fails_keeps_its_releases_and_those_added_meanwhile() -> None:
    target = FakeTarget()
    link = TargetLink(target)
    await link.step(call_for(1))
    await link.step(call_for(2))
    link.releases.add(1)
    target.gate.clear()
    under_way = asyncio.ensure_future(link.step(call_for(3)))
    await asyncio.sleep(0.01)
    link.releases.add(2)
    target.down = True
    target.gate.set()
    with pytest.raises(EngineError):
        await under_way
    assert tuple(link.releases.owed()) == (1, 2)
    target.down = False
    await link.step(call_for(3))
    assert (list(target.held), len(link.releases)) == ([3], 0)


class GatedFusion:
    """Notes what it is told to release, and answers when it is let."""

    def __init__(self) -> None:
        self.told: list[Sequence[int]] = []
        self.gate = asyncio.Event()

    async def draft(self, call: DraftCall) -> DraftResult:
        """See `Fusion.draft`."""
        self.told.append(call.release_uids)
        await self.gate.wait()
        return DraftResult([], 0)


@async_test
async def test_fusion_hears_of_a_second_end_too() -> None:
    fusion = GatedFusion()
    link = FusionLink(fusion)
    link.releases.add(4)
    under_way = asyncio.ensure_future(link.draft(()))
    await asyncio.sleep(0.01)
    link.releases.add(4)
    fusion.gate.set()
    await under_way
    assert await link.flush()
    assert (fusion.told, len(link.releases)) == ([(4,), (4,)], 0)


class SlowToRelease(ScriptedDrafter):
    """Answers a call that only releases when it is let: other calls overtake it."""

    gate: asyncio.Event  # given by the test

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """See `EngineClient.step`."""
        if not call.rows and release_uids:
            await self.gate.wait()
        return await super().step(call, release_uids)


@async_test
async def test_a_release_told_beside_the_rounds_does_not_settle_a_later_one() -> None:
    slow = SlowToRelease("code", counts())
    slow.gate = asyncio.Event()
    nodes = FakeNode(slow), FakeNode()
    async with serving(*nodes), reaching(*nodes) as drafter:
        await drafter.step(asks(1, 2))
        await drafter.step(asks(2), [1])  # the first node is told in the background, and takes its time
        await until(lambda: nodes[0].num_calls == 3)
        await drafter.step(asks(1, 2))  # it came back to the same node,
        await drafter.step(asks(2), [1])  # and ends
        slow.gate.set()
        assert list(slow.held) == [1]
        await until(lambda: not slow.held, drafter)
