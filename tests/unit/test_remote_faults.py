"""Nodes that hang, die, lie and come back: the round goes on without them, and nothing but EngineError is raised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from drafthouse.engine.contract import EngineError, RowStatus, StepCall, StepResult
from drafthouse.fusion import tardiness
from drafthouse.fusion.contract import DraftCall
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from fakes.drafter_scripted import ScriptedDrafter, counts
from fakes.fusion_rounds import row
from fakes.pipeline_harness import async_test
from fakes.remote_calls import CONTACT, asks, hasty, reaching, until
from fakes.remote_node import FakeNode, serving

STATUSES = [RowStatus.OK, RowStatus.ABSENT]


@async_test
async def test_a_node_that_hangs_costs_its_own_rows_and_one_timeout() -> None:
    hangs, works = FakeNode(), FakeNode()
    async with serving(hangs, works), reaching(hangs, works, contact=hasty(0.5)) as drafter:
        await drafter.step(asks(1, 2))
        hangs.hangs = True
        result = await drafter.step(asks(1, 2))
        assert [row.status for row in result.rows] == [RowStatus.ABSENT, RowStatus.OK]
        moved = await drafter.step(asks(1, 2))  # at once: nobody waits for the other node
        assert [row.status for row in moved.rows] == [RowStatus.OK] * 2
        assert sorted(works.drafter.held) == [1, 2]
        hangs.resume()
        await until(lambda: all(node.is_up for node in drafter.nodes), drafter)
        await drafter.step(asks(1, 2))
        assert sorted(works.drafter.held) == [1, 2]  # who moved stays
        await drafter.step(asks(3))
        assert 3 in hangs.drafter.held  # who comes anew goes to the one that has less to do
        await drafter.step(StepCall(()), [1, 2, 3])
        assert (dict(hangs.drafter.held), dict(works.drafter.held)) == ({}, {})  # also what it took in before it hung


@async_test
async def test_a_switch_heals_by_the_contract() -> None:
    lost, left = FakeNode(), FakeNode()
    async with serving(lost, left), reaching(lost, left) as drafter:
        await drafter.step(asks(1, tokens=(10, 20)))
        await lost.stop()
        (gone,) = (await drafter.step(asks(1, 2, tokens=(30,), prefix_len=2))).rows[:1]
        assert gone.status == RowStatus.ABSENT
        (moved,) = (await drafter.step(asks(1, tokens=(30,), prefix_len=2))).rows
        assert (moved.status, moved.cached_len) == (RowStatus.NEEDS_PREFILL, 0)
        (healed,) = (await drafter.step(asks(1, tokens=(10, 20, 30)))).rows
        assert (healed.status, healed.sampled.tolist()) == (RowStatus.OK, [31, 32])


@async_test
async def test_a_lone_node_that_hangs_is_not_asked_again_until_it_answers() -> None:
    node = FakeNode()
    async with serving(node), reaching(node, contact=hasty(0.5)) as drafter:
        node.hangs = True
        before = node.num_calls
        with pytest.raises(EngineError, match="no node answers"):
            await drafter.step(asks(1))
        for _ in range(5):
            with pytest.raises(EngineError, match="no node answers"):
                await drafter.step(asks(1))
            await asyncio.sleep(0.02)
        assert node.num_calls == before + 2  # the call that hangs, and one probe
        node.resume()
        await until(lambda: drafter.nodes[0].is_up, drafter)
        assert (await drafter.step(asks(1))).rows[0].status == RowStatus.OK


@async_test
async def test_a_node_that_died_is_taken_back_when_it_is_there_again() -> None:
    node = FakeNode()
    async with serving(node), reaching(node) as drafter:
        await drafter.step(asks(1))
        await node.stop()
        for _ in range(3):
            with pytest.raises(EngineError):
                await drafter.step(asks(1))
        node.drafter = ScriptedDrafter("code", counts())
        await node.start()
        await until(lambda: drafter.nodes[0].is_up, drafter)
        (row,) = (await drafter.step(asks(1, tokens=(30,), prefix_len=2))).rows
        assert row.status == RowStatus.NEEDS_PREFILL


@async_test
async def test_a_node_that_is_not_there_at_the_start_joins_later() -> None:
    late, there = FakeNode(), FakeNode()
    await late.start()
    await late.stop()  # its port is known now
    async with serving(there), reaching(late, there) as drafter:
        assert [node.is_up for node in drafter.nodes] == [False, True]
        assert (await drafter.step(asks(1))).rows[0].status == RowStatus.OK
        async with serving(late):
            await until(lambda: drafter.nodes[0].is_up, drafter)
            await drafter.step(asks(1, 2))
            assert sorted(late.drafter.held) == [2]


def too_many(message: np.ndarray) -> np.ndarray:
    return np.append(message, 5)


def strange_token(message: np.ndarray) -> np.ndarray:
    spoilt = message.copy()
    spoilt[spoilt == 21] = 5000
    return spoilt


def negative_dims(message: np.ndarray) -> np.ndarray:
    return np.full_like(message, -7)


def unknown_status(message: np.ndarray) -> np.ndarray:
    spoilt = message.copy()
    (begin,) = np.flatnonzero((message[:-3] == RowStatus.OK) & (message[1:-2] == 2) & (message[2:-1] == 2) & (message[3:] == 0))[:1]
    spoilt[begin] = 99
    return spoilt


def empty(message: np.ndarray) -> np.ndarray:
    return message[:0]


class Talkative(ScriptedDrafter):
    """Answers with more output nodes than were asked for."""

    extra: int = 0

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        return await super().step(replace(call, num_steps=call.num_steps + self.extra), release_uids)


class Slow(ScriptedDrafter):
    """Takes its time for calls with rows."""

    more_s: float = 0.3

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        await asyncio.sleep(self.more_s if call.rows else 0.0)
        return await super().step(call, release_uids)


@async_test
async def test_a_node_that_is_late_loses_its_requests_to_the_others_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tardiness, "PAUSE_PER_DELAY", 0)
    late, fine = FakeNode(slow := Slow("code", counts())), FakeNode()
    async with serving(late, fine), reaching(late, fine) as drafter:
        while drafter.nodes[0].is_up:
            result = await drafter.step(asks(1, 2))
            assert [row.status for row in result.rows] == [RowStatus.OK] * 2
        assert drafter.nodes[0].trouble == "answers late"
        slow.more_s = 0.0
        await drafter.step(asks(1, 2))
        assert sorted(fine.drafter.held) == [1, 2]
        await until(lambda: drafter.nodes[0].is_up, drafter)
        await drafter.step(asks(3))
        assert 3 in late.drafter.held


@async_test
async def test_without_patience_every_node_is_waited_for() -> None:
    late, fine = FakeNode(slow := Slow("code", counts())), FakeNode()
    slow.more_s = 0.1
    async with serving(late, fine), reaching(late, fine, contact=replace(CONTACT, patience_s=0.0)) as drafter:
        for _ in range(4):
            await drafter.step(asks(1, 2))
        assert all(node.is_up for node in drafter.nodes)


@async_test
async def test_more_output_nodes_than_were_asked_for_are_an_engine_error() -> None:
    node = FakeNode(drafter := Talkative("code", counts()))
    async with serving(node), reaching(node) as client:
        assert (await client.step(asks(1, num_steps=3))).rows[0].sampled.tolist() == [21, 22, 23]
        drafter.extra = 1
        with pytest.raises(EngineError, match="do not fit together"):
            await client.step(asks(1, num_steps=3))


@pytest.mark.parametrize("spoils", [too_many, strange_token, negative_dims, unknown_status, empty])
@async_test
async def test_nonsense_is_an_engine_error(spoils: Callable[[np.ndarray], np.ndarray]) -> None:
    node = FakeNode()
    async with serving(node), reaching(node) as drafter:
        await drafter.step(asks(2))
        node.spoils = spoils
        with pytest.raises(EngineError):
            await drafter.step(asks(1))


@async_test
async def test_a_row_too_few_is_an_engine_error() -> None:
    node = FakeNode(ScriptedDrafter("code", counts(), truncates=frozenset({1})))
    async with serving(node), reaching(node) as drafter:
        with pytest.raises(EngineError, match="0 rows instead of 1"):
            await drafter.step(asks(1))


@async_test
async def test_a_round_that_is_given_up_leaves_the_node_out() -> None:
    node = FakeNode()
    async with serving(node), reaching(node) as drafter:
        node.hangs = True
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(drafter.step(asks(1)), 0.1)
        assert not drafter.nodes[0].is_up
        node.resume()
        await until(lambda: drafter.nodes[0].is_up, drafter)


@async_test
async def test_a_release_that_was_lost_is_repeated_when_the_node_is_back() -> None:
    node = FakeNode()
    async with serving(node), reaching(node, contact=hasty(0.5)) as drafter:
        await drafter.step(asks(1))
        node.hangs = True
        with pytest.raises(EngineError):
            await drafter.step(StepCall(()), [1])
        node.resume()
        await until(lambda: drafter.nodes[0].is_up and not node.drafter.held, drafter)
        assert len(drafter.nodes[0].releases) == 0


@async_test
async def test_a_draft_round_finishes_without_the_node_and_takes_it_back() -> None:
    node, local = FakeNode(ScriptedDrafter("far", counts(2, 0.9))), ScriptedDrafter("near", counts(1, 0.2))
    async with serving(node), reaching(node, contact=hasty(0.5)) as far:
        fusion = CollaborativeFusion([local, far], [64, 64], FusionOptions(call_timeout_s=1.0))

        async def draft() -> tuple[list[int], list[int]]:
            (got,) = (await fusion.draft(DraftCall([row([1.0, 1.0])]))).rows
            return got.tree.tokens.tolist(), got.drafter_status.tolist()

        assert await draft() == ([22, 24, 26], [RowStatus.OK, RowStatus.OK])
        node.hangs = True
        assert await draft() == ([21, 22, 23], STATUSES)
        assert await draft() == ([21, 22, 23], STATUSES)
        node.resume()
        await until(lambda: far.nodes[0].is_up, far)
        assert await draft() == ([22, 24, 26], [RowStatus.OK, RowStatus.OK])
