"""Drafts made while others are verified: used when the verdict is as expected, thrown away when not, and nobody's once it is too late."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from drafthouse.core.errors import ErrorCode
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import GenerationRequest
from drafthouse.pipeline.modes import Mode
from drafthouse.routing.contract import RouteResult, RouteRow
from fakes.pipeline_fusion import DRAFTERS, DraftCall, FakeFusion, FakeRouter
from fakes.pipeline_harness import async_test, expect_reference, make_request, reference_ids, running
from fakes.pipeline_sink import error_of

AHEAD = PipelineConfig(overlap="on", adaptation="off", num_draft_tokens=4, target_retry_delay_ms=1)
CHAIN = PipelineConfig(mode=Mode.PIPELINE_ONLY, num_draft_tokens=4)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse.pipeline.loop.SWEEP_PERIOD_S", 0.002)


def endless(*prompt: int, num_tokens: int = 60) -> GenerationRequest:
    return make_request(prompt, num_tokens, end_ids=(), stream=True)


def is_ahead(call: DraftCall) -> bool:
    return any(len(row.base) for row in call.rows)


@asynccontextmanager
async def held_while_ahead(fusion: FakeFusion) -> AsyncIterator[None]:
    """Inside, drafting ahead is under way and does not come back."""
    begun = asyncio.Event()

    def hold(call: DraftCall) -> None:
        if is_ahead(call):
            fusion.gate.clear()
            begun.set()

    fusion.before_draft = hold
    await begun.wait()
    fusion.before_draft = lambda call: None
    yield
    fusion.gate.set()


@async_test
async def test_perfect_drafters_never_keep_the_target_waiting() -> None:
    async with running(CHAIN) as rig:
        rig.fusion.is_right, rig.fusion.confidence = lambda *_: True, 0.9
        (sink,) = await rig.generate(request := endless(1, 2, 3))
        expect_reference(request, sink)
        decoding = [stats for stats in rig.rounds if stats.num_verified_rows]
        assert all(stats.num_ready_ahead for stats in decoding[1:-1])  # of the last token nothing can be drafted
        assert sum(stats.draft_wall_ns > 0 for stats in decoding) <= 2  # the first draft, and perhaps one at the very end
        sums = rig.pipeline.snapshot().sums
        assert sums.num_accepted == sums.num_drafted


@pytest.mark.parametrize("config", [AHEAD, CHAIN, PipelineConfig(mode=Mode.SPECINFER, overlap="on")])
@async_test
async def test_what_was_drafted_for_another_verdict_is_thrown_away(config: PipelineConfig) -> None:
    async with running(config) as rig:
        rig.fusion.confidence = 0.9
        rig.fusion.is_right = lambda path, drafter, row: len(row.base) == 0  # a good draft, gone on with in a wrong direction
        requests = [endless(1, item) for item in range(1, 7)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)
        sums = rig.pipeline.snapshot().sums
        assert sums.num_drafted_ahead > 0
        assert 0 < sums.num_accepted == sums.num_drafted  # the wrong continuation was not even verified


@async_test
async def test_drafters_that_are_always_wrong_cost_no_text() -> None:
    async with running(AHEAD) as rig:
        rig.fusion.is_right = lambda *_: False
        requests = [endless(1, item) for item in range(1, 7)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)
        assert rig.pipeline.snapshot().sums.num_accepted == 0


@async_test
async def test_a_cancel_while_drafting_ahead_is_under_way_leaves_nothing_behind() -> None:
    async with running(AHEAD) as rig:
        leaver, stayer = endless(1, 2, num_tokens=150), endless(3, 4)
        leaving, staying = rig.submit(leaver), rig.submit(stayer)
        async with held_while_ahead(rig.fusion):
            leaving.cancelled = True
            await leaving.done.wait()  # answered although the round hangs
        assert error_of(leaving)[0] is ErrorCode.CANCELLED
        await staying.done.wait()
        expect_reference(stayer, staying)


@async_test
async def test_cancelling_everyone_while_drafting_ahead_is_under_way_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with running(AHEAD) as rig:
        with caplog.at_level(logging.ERROR):
            sinks = [rig.submit(endless(1, item, num_tokens=150)) for item in (1, 2, 3)]
            async with held_while_ahead(rig.fusion):
                for sink in sinks:
                    sink.cancelled = True
                await asyncio.gather(*(sink.done.wait() for sink in sinks))
            (later,) = await rig.generate(request := endless(5, 6))
            expect_reference(request, later)
        assert caplog.records == []


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("adaptation", ["on", "off"])
@pytest.mark.parametrize("tetris", ["on", "off"])
@async_test
async def test_cancelling_everyone_while_they_are_drafted_for_is_no_error(
    overlap: str, adaptation: str, tetris: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(PipelineConfig(overlap=overlap, adaptation=adaptation, tetris=tetris)) as rig:
        begun = asyncio.Event()

        def hold(call: DraftCall) -> None:
            if any(row.num_draft_tokens for row in call.rows):
                rig.fusion.gate.clear()
                begun.set()

        rig.fusion.before_draft = hold
        with caplog.at_level(logging.ERROR):
            sinks = [rig.submit(endless(1, item, num_tokens=150)) for item in (1, 2, 3)]
            await begun.wait()
            for sink in sinks:
                sink.cancelled = True
            await asyncio.gather(*(sink.done.wait() for sink in sinks))
            rig.fusion.before_draft = lambda call: None
            rig.fusion.gate.set()
            (later,) = await rig.generate(request := endless(5, 6))
            expect_reference(request, later)
        assert caplog.records == []


@async_test
async def test_a_target_that_is_lost_while_drafting_ahead_is_under_way() -> None:
    async with running(AHEAD) as rig:
        requests = [endless(1, item) for item in range(1, 7)]
        sinks = [rig.submit(request) for request in requests]
        for _ in range(3):
            async with held_while_ahead(rig.fusion):
                rig.target.down = True
            while not rig.target.num_failed_calls:
                await asyncio.sleep(0)
            rig.target.num_failed_calls = 0
            rig.target.reload()
            rig.target.down = False
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        for request, sink in zip(requests, sinks, strict=True):
            expect_reference(request, sink)


@async_test
async def test_after_a_lost_cache_drafts_go_on_from_where_the_text_is() -> None:
    async with running(CHAIN) as rig:
        rig.fusion.is_right, rig.fusion.confidence = lambda *_: True, 0.9

        def reload_now_and_then(number: int) -> None:
            if number % 5 == 4:
                rig.target.reload()

        rig.target.before_call = reload_now_and_then
        (sink,) = await rig.generate(request := endless(1, 2, 3, num_tokens=100))
        expect_reference(request, sink)
        sums = rig.pipeline.snapshot().sums
        assert sums.num_prefill_rows > 2
        assert sums.num_accepted == sums.num_drafted  # a perfect draft at the wrong place would be refused


@async_test
async def test_fusion_that_is_lost_while_drafting_ahead_is_under_way() -> None:
    async with running(AHEAD) as rig:
        requests = [endless(1, item) for item in range(1, 7)]
        sinks = [rig.submit(request) for request in requests]
        async with held_while_ahead(rig.fusion):
            rig.fusion.failing = True
        while not sinks[0].done.is_set():
            await asyncio.sleep(0)
        rig.fusion.failing = False
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        for request, sink in zip(requests, sinks, strict=True):
            expect_reference(request, sink)


@async_test
async def test_stopping_while_drafting_ahead_is_under_way_answers_everyone() -> None:
    async with running(AHEAD) as rig:
        sinks = [rig.submit(endless(1, item, num_tokens=150)) for item in (1, 2, 3)]
        async with held_while_ahead(rig.fusion):
            rig.pipeline.stop()
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert {error_of(sink) for sink in sinks} == {(ErrorCode.UNAVAILABLE, "server")}


@async_test
async def test_requests_that_leave_while_one_is_routed_are_not_drafted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse.pipeline.speculation.Speculation.goes_without", lambda _, num_ready, num_lacking: num_ready > 0)
    router = _SlowRouter()
    async with running(replace(AHEAD, route_every=1_000), router=router) as rig:
        rig.fusion.is_right, rig.fusion.confidence = lambda *_: True, 0.9
        first = rig.submit(endless(1, 2, num_tokens=150))
        while len(first.chunks) < 3:
            await asyncio.sleep(0)
        router.gate.clear()
        second = rig.submit(endless(3, 4, num_tokens=150))
        await router.begun.wait()  # beside a verification of the first request
        first.cancelled = second.cancelled = True
        await asyncio.gather(first.done.wait(), second.done.wait())
        num_calls = len(rig.fusion.calls)
        router.gate.set()
        assert (error_of(first)[0], error_of(second)[0]) == (ErrorCode.CANCELLED, ErrorCode.CANCELLED)
    assert len(rig.fusion.calls) == num_calls


class _SlowRouter(FakeRouter):
    """Does not come back while ``gate`` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()

    async def route(self, rows: list[RouteRow]) -> list[RouteResult]:  # type: ignore[override]
        if not self.gate.is_set():
            self.begun.set()
        await self.gate.wait()
        return list(await super().route(rows))


@async_test
async def test_a_request_that_nobody_drafts_for_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse.pipeline.speculation.Speculation.goes_without", lambda _, num_ready, num_lacking: num_ready > 0)
    async with running(AHEAD) as rig:
        rig.fusion.is_right, rig.fusion.confidence = lambda *_: True, 0.9
        rig.fusion.alive[1] = False
        others = [rig.submit(endless(1, item, num_tokens=150)) for item in (2, 3, 4)]
        while any(len(other.chunks) < 2 for other in others):
            await asyncio.sleep(0)
        lonely = rig.submit(request := make_request((9, 9), 6, end_ids=(), drafters=(DRAFTERS[1],)))
        await lonely.done.wait()
        assert lonely.output_ids == reference_ids(request)
        assert not any(other.done.is_set() for other in others)
        await asyncio.gather(*(other.done.wait() for other in others))


@async_test
async def test_what_cannot_be_learned_from_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("not a number")

    monkeypatch.setattr("drafthouse.pipeline.speculation.Speculation.learn", broken)
    async with running(AHEAD) as rig:
        (sink,) = await rig.generate(request := make_request((4, 2), 30))
        assert sink.output_ids == reference_ids(request)
