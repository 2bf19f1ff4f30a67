"""More requests than slots, under every policy: the same texts, every request answered once, every slot given back."""

import asyncio
import time
from collections import Counter

import pytest

from drafthouse.core.errors import ErrorCode
from drafthouse.engine.contract import EngineLimits, RowStatus, StepRow
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import GenerationRequest
from drafthouse.scheduling import tenure
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse.scheduling.policy import Rank, Schedulable
from fakes.pipeline_crowd import Impatient, a_crowd, register_impatient
from fakes.pipeline_harness import Rig, async_test, expect_reference, make_request, running
from fakes.pipeline_model import VOCAB_SIZE
from fakes.pipeline_sink import FakeSink, error_of
from fakes.pipeline_target import FakeTarget

SHIPPED = tuple(name for name in POLICIES.names if not name.startswith("test-"))
MANY_SLOTS = EngineLimits(max_step_tokens=32, usable_context=200, vocab_size=VOCAB_SIZE, slots=64)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many evictions as possible: a slot is earned with the first token."""
    register_impatient()
    monkeypatch.setattr(tenure, "TENURE", 0.0)


def text_of(sink: FakeSink) -> tuple[str, tuple[int, ...]]:
    return sink.text, tuple(sink.output_ids)


@pytest.fixture(scope="module")
def in_64_slots() -> list[tuple[str, tuple[int, ...]]]:
    """The crowd's answers where nobody has to wait for a slot."""
    answers = []

    @async_test
    async def serve() -> None:
        async with running(target=FakeTarget(MANY_SLOTS)) as rig:
            answers.extend(map(text_of, await rig.generate(*a_crowd(64))))
            assert max(len(call.rows) for call in rig.target.calls) > 30
            assert rig.pipeline.snapshot().scheduling.num_preemptions == 0

    serve()
    return answers


@pytest.mark.parametrize(("policy", "overlap"), [*((name, "auto") for name in SHIPPED), (Impatient.name, "on"), (Impatient.name, "off")])
@async_test
async def test_64_requests_share_4_slots(policy: str, overlap: str, in_64_slots: list[tuple[str, tuple[int, ...]]]) -> None:
    async with running(PipelineConfig(policy=policy, overlap=overlap)) as rig:
        requests = a_crowd(64)
        sinks = await rig.generate(*requests)
        for request, sink in zip(requests, sinks, strict=True):
            expect_reference(request, sink)
        assert [text_of(sink) for sink in sinks] == in_64_slots
        assert max(len(call.rows) for call in rig.target.calls) == 4
        assert (rig.pipeline.snapshot().scheduling.num_evictions > 50) or policy != Impatient.name


@pytest.mark.parametrize("starvation_limit_ms", [1, 30_000])
@pytest.mark.parametrize("policy", [*SHIPPED, Impatient.name])
@async_test
async def test_as_many_places_as_slots_and_too_many_requests_waste_little(
    policy: str, starvation_limit_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where everybody is overdue all the time: a slot has to be earned before somebody else can have it."""
    monkeypatch.setattr(tenure, "TENURE", 4.0)
    async with running(PipelineConfig(policy=policy, starvation_limit_ms=starvation_limit_ms, adaptation="off", num_draft_tokens=0)) as rig:
        requests = [make_request([item] * 60, 40, end_ids=(), num_draft_tokens=0) for item in range(1, 17)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)
        # Here a round takes as long with a prompt as without: one in five may compute something anew, beside every prompt once.
        assert rig.pipeline.snapshot().num_rounds <= (16 * 40 / 4 + 2 * 16) * 5 / 4


@pytest.mark.parametrize("max_batch", [1, 3])
@pytest.mark.parametrize("policy", [*SHIPPED, Impatient.name])
@async_test
async def test_while_slots_are_free_preemption_costs_no_cache(policy: str, max_batch: int) -> None:
    async with running(PipelineConfig(policy=policy, max_batch=max_batch)) as rig:
        requests = [make_request([item] * 40, 30, end_ids=(), stream=True) for item in range(1, 5)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)
        snapshot = rig.pipeline.snapshot()
        assert max(len(call.rows) for call in rig.target.calls) == snapshot.max_batch == max_batch
        assert snapshot.scheduling.num_evictions == snapshot.sums.num_recomputed_tokens == 0
        if policy == Impatient.name:
            assert snapshot.scheduling.num_preemptions > 5
        if policy == "fcfs":
            assert snapshot.scheduling.num_preemptions == 0


@async_test
async def test_what_is_computed_again_is_counted_to_the_token() -> None:
    target, num_computed, longest = FakeTarget(), 0, Counter[int]()

    def count(row: StepRow) -> RowStatus | None:
        nonlocal num_computed
        end = row.prefix_len + row.num_committed
        num_computed += max(end - len(target.held.get(row.request_uid, ())), 0)
        longest[row.request_uid] = max(longest[row.request_uid], end)
        return None

    target.row_status = count
    async with running(PipelineConfig(policy=Impatient.name, slots=2), target) as rig:
        requests = [make_request([item] * 40, 30, end_ids=(), stream=True) for item in range(1, 7)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)
        snapshot = rig.pipeline.snapshot()
        assert snapshot.scheduling.num_evictions > 5
        assert snapshot.sums.num_recomputed_tokens == num_computed - longest.total() > 0
        assert snapshot.sums.num_lost_caches == 0


@async_test
async def test_whoever_got_a_slot_gets_a_token_out_of_it() -> None:
    """Two prompts of several chunks and one slot, under a policy that always prefers the other one."""
    async with running(PipelineConfig(policy=Impatient.name, slots=1, adaptation="off")) as rig:
        requests = [make_request([item] * 150, 10, end_ids=(), num_draft_tokens=0) for item in (1, 2)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)
        assert 1 < rig.pipeline.snapshot().scheduling.num_evictions <= 20  # at most one per token


@async_test
async def test_a_cache_that_expired_while_its_request_was_preempted_heals() -> None:
    async with running(PipelineConfig(policy=Impatient.name, max_batch=1)) as rig:
        requests = [make_request([item] * 40, 30, end_ids=(), stream=True) for item in range(1, 5)]
        sinks = [rig.submit(request) for request in requests]
        while len(rig.target.calls) < 20:
            await asyncio.sleep(0)
        preempted = [uid for uid in rig.target.held if uid != rig.target.calls[-1].rows[0].request_uid]
        for uid in preempted:
            del rig.target.held[uid]
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        for request, sink in zip(requests, sinks, strict=True):
            expect_reference(request, sink)
        sums = rig.pipeline.snapshot().sums
        assert 1 <= sums.num_lost_caches <= len(preempted) + 1  # the round under way may know of one only afterwards
        assert sums.num_recomputed_tokens >= 40 * (len(preempted) - 1)


@pytest.mark.parametrize("policy", [*SHIPPED, Impatient.name])
@async_test
async def test_drafters_with_fewer_slots_hold_nobody_up(policy: str) -> None:
    async with running(PipelineConfig(policy=policy, max_batch=2, overlap="on")) as rig:
        rig.fusion.slots = 1
        requests = [make_request([item] * 40, 30, end_ids=()) for item in range(1, 9)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)


async def _with_one_preempted(rig: Rig, deadline_ns: int) -> tuple[FakeSink, GenerationRequest, FakeSink]:
    """A request that was preempted in mid-stream by a more urgent one, under whose verification the target hangs."""
    low = rig.submit(make_request((1, 2), 150, end_ids=(), stream=True, deadline_ns=deadline_ns))
    while len(low.chunks) < 3:
        await asyncio.sleep(0)
    urgent = make_request((3, 4), 40, end_ids=(), stream=True, priority=5)
    high = rig.submit(urgent)
    while len(high.chunks) < 2:
        await asyncio.sleep(0)
    rig.target.gate.clear()
    return low, urgent, high


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("ends_by", ["deadline", "cancel"])
@async_test
async def test_a_preempted_request_is_answered_once_and_gives_up_its_slot(
    ends_by: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafthouse.pipeline.loop.SWEEP_PERIOD_S", 0.002)
    async with running(PipelineConfig(policy=Impatient.name, slots=slots, max_batch=1)) as rig:
        low, urgent, high = await _with_one_preempted(rig, deadline_ns=(an_hour_later := time.monotonic_ns() + 3_600_000_000_000))
        snapshot = rig.pipeline.snapshot()
        assert (snapshot.num_running, snapshot.scheduling.num_preempted, snapshot.num_waiting) == (1, slots - 1, 2 - slots)
        if ends_by == "cancel":
            low.cancelled = True
        else:
            monkeypatch.setattr(time, "monotonic_ns", lambda: an_hour_later)
        await low.done.wait()
        codes = {"deadline": (ErrorCode.DEADLINE_EXCEEDED, "deadline_ms"), "cancel": (ErrorCode.CANCELLED, "request")}
        assert error_of(low) == codes[ends_by]
        snapshot = rig.pipeline.snapshot()
        assert (snapshot.num_running, snapshot.scheduling.num_preempted, snapshot.num_waiting) == (1, 0, 0)
        rig.target.gate.set()
        await high.done.wait()
        expect_reference(urgent, high)


@pytest.mark.parametrize("policy", SHIPPED)
@async_test
async def test_higher_priorities_go_first_under_every_policy(policy: str) -> None:
    async with running(PipelineConfig(policy=policy, slots=1)) as rig:
        requests = [make_request((1, 2, item), 20, end_ids=(), priority=priority) for item, priority in enumerate((0, 1, 0, 7, 3, 7), 1)]
        sinks = await rig.generate(*requests)
        order: list[int] = []
        for call in rig.target.calls:
            order += [row.request_uid for row in call.rows if row.request_uid not in order]
        assert order == [requests[index].request_uid for index in (3, 5, 4, 1, 0, 2)]
        assert all(sink.error is None for sink in sinks)


@pytest.mark.parametrize("policy", SHIPPED)
@async_test
async def test_who_waits_and_who_has_a_place_is_told_by_queue(policy: str) -> None:
    async with running(PipelineConfig(policy=policy, max_batch=2)) as rig:
        sinks = [rig.submit(request) for request in a_crowd(12)]
        while not any(sink.done.is_set() for sink in sinks):
            await asyncio.sleep(0)
            snapshot = rig.pipeline.snapshot()
            num_open = sum(not sink.done.is_set() for sink in sinks)
            assert snapshot.num_waiting + snapshot.num_running + snapshot.scheduling.num_preempted == num_open
            assert sum(snapshot.scheduling.queue_lengths.values()) in (num_open, 0)  # 0 while all are in the inbox
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert rig.pipeline.snapshot().scheduling.queue_lengths == {}


class _Broken(Impatient):
    """Cannot rank what has a prompt of 13 tokens, after its tenth token what has one of 14, or what had a cache and lost it."""

    name = "test-broken"

    def rank(self, request: Schedulable) -> Rank:
        if request.prompt_len == 13 or (request.prompt_len == 14 and request.num_output_tokens > 10):
            raise ArithmeticError("made up")
        if request.num_output_tokens and request.num_uncached > 1 and not request.is_running:
            raise ArithmeticError("made up")
        return super().rank(request)


@async_test
async def test_a_policy_with_a_bug_harms_those_it_was_to_rank() -> None:
    if _Broken.name not in POLICIES.names:
        POLICIES.register(_Broken.name, lambda estimator: _Broken())
    async with running(PipelineConfig(policy=_Broken.name, slots=2, max_batch=1)) as rig:
        requests = [make_request([item] * length, 20, end_ids=()) for item, length in enumerate((12, 13, 14, 15, 13, 16), 1)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            if len(request.prompt_ids) in (13, 14):
                assert error_of(sink) == (ErrorCode.INTERNAL, "request")
            else:
                expect_reference(request, sink)
