"""Engines and rounds that fail: exactly one answer each, slots freed, the loop alive, the books balanced."""

import asyncio
import logging
from dataclasses import replace

import pytest

from drafthouse.core.errors import ErrorCode
from drafthouse.engine.contract import RowStatus, StepRow
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.stats import RoundStats
from fakes.pipeline_harness import async_test, make_request, reference_text, running, until_idle
from fakes.pipeline_sink import error_of
from fakes.pipeline_target import FakeTarget

FAST_RETRY = PipelineConfig(target_retry_attempts=3, target_retry_delay_ms=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse.pipeline.loop.IDLE_RETRY_S", 0.005)


@async_test
async def test_first_come_first_served() -> None:
    async with running(PipelineConfig(slots=1)) as rig:
        order: list[int] = []
        requests = [make_request((1, item), 5) for item in range(1, 6)]
        await rig.generate(*requests)
        for call in rig.target.calls:
            for row in call.rows:
                if row.request_uid not in order:
                    order.append(row.request_uid)
        assert order == [request.request_uid for request in requests]


@async_test
async def test_requests_survive_a_target_that_is_down_for_a_while() -> None:
    target = FakeTarget()

    def crash(call_number: int) -> None:
        if call_number == 4:
            target.down = True
            asyncio.get_running_loop().call_later(0.01, bring_back)

    def bring_back() -> None:
        target.reload()
        target.down = False

    target.before_call = crash
    async with running(PipelineConfig(target_retry_delay_ms=1), target) as rig:
        requests = [make_request((1, item), 40, end_ids=()) for item in range(1, 4)]
        sinks = await rig.generate(*requests)
        assert [sink.text for sink in sinks] == [reference_text(request) for request in requests]
        assert target.num_failed_calls >= 1


@async_test
async def test_a_target_that_stays_down_is_given_up_and_comes_back_later() -> None:
    target, batches = FakeTarget(), list[int]()
    target.before_call = batches.append
    async with running(FAST_RETRY, target) as rig:
        target.down = True
        for sink in await rig.generate(make_request(), make_request()):
            assert error_of(sink) == (ErrorCode.UNAVAILABLE, "target")
        assert target.num_failed_calls >= 4
        (late,) = await rig.generate(make_request())  # now known to be down: one probe decides
        assert error_of(late) == (ErrorCode.UNAVAILABLE, "target")
        assert len(batches) == 1
        target.down = False
        (sink,) = await rig.generate(request := make_request())
        assert sink.text == reference_text(request)


@async_test
async def test_a_batch_that_always_fails_is_given_up_though_the_target_answers_probes() -> None:
    target = FakeTarget()

    def refuse_batches(call_number: int) -> None:
        target.down = True
        asyncio.get_running_loop().call_later(0, setattr, target, "down", False)

    target.before_call = refuse_batches
    async with running(FAST_RETRY, target) as rig:
        (sink,) = await rig.generate(make_request())
        assert error_of(sink) == (ErrorCode.UNAVAILABLE, "target")
        target.before_call = None
        (sink,) = await rig.generate(request := make_request())
        assert sink.text == reference_text(request)


@async_test
async def test_drafting_pauses_while_the_target_is_down() -> None:
    target, batches = FakeTarget(), list[int]()
    target.before_call = batches.append
    async with running(replace(FAST_RETRY, overlap="off"), target) as rig:
        target.before_call = lambda number: setattr(target, "down", number == 3)
        (sink,) = await rig.generate(make_request(max_tokens=100, end_ids=()))
        assert error_of(sink)[0] is ErrorCode.UNAVAILABLE
        num_good = len(target.calls)
        assert len(rig.fusion.calls) == num_good + 1  # the draft that the crash left unverified, and none for the probes


@pytest.mark.parametrize("status", [RowStatus.NO_SLOT, RowStatus.NEEDS_PREFILL])
@async_test
async def test_a_row_that_never_gets_on_is_given_up_and_harms_no_other(status: RowStatus) -> None:
    stuck, fine = make_request((1, 2)), make_request((3, 4), 30)
    async with running(PipelineConfig(max_stalled_rounds=5)) as rig:
        rig.target.row_status = lambda row: status if row.request_uid == stuck.request_uid else None
        stuck_sink, fine_sink = await rig.generate(stuck, fine)
        assert error_of(stuck_sink) == (ErrorCode.UNAVAILABLE, "target")
        assert fine_sink.text == reference_text(fine)


@async_test
async def test_a_refused_row_is_an_internal_error_of_that_request_only(caplog: pytest.LogCaptureFixture) -> None:
    bad, fine = make_request((1, 2), 30, end_ids=()), make_request((3, 4), 30)

    def refuse_decode(row: StepRow) -> RowStatus | None:
        return RowStatus.ERROR if row.request_uid == bad.request_uid and row.prefix_len > 0 else None

    async with running() as rig:
        rig.target.row_status = refuse_decode
        bad_sink, fine_sink = await rig.generate(bad, fine)
        code, _ = error_of(bad_sink)
        assert code is ErrorCode.INTERNAL
        assert "injected" not in str(bad_sink.error)
        error_id = str(bad_sink.error).split("value='")[1].split("'")[0]
        assert any(error_id in record.getMessage() and "injected" in record.getMessage() for record in caplog.records)
        assert fine_sink.text == reference_text(fine)


@async_test
async def test_a_bug_in_a_round_fails_its_requests_and_not_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    target = FakeTarget()

    def explode(call_number: int) -> None:
        if call_number == 3:
            raise ZeroDivisionError("a bug")

    target.before_call = explode
    async with running(target=target) as rig:
        with caplog.at_level(logging.ERROR):
            hit = await rig.generate(make_request((1, 2), 60, end_ids=()), make_request((1, 3), 60, end_ids=()))
        for sink in hit:
            assert error_of(sink)[0] is ErrorCode.INTERNAL
            assert "bug" not in str(sink.error)
        assert any(record.exc_info for record in caplog.records)
        target.before_call = None
        (sink,) = await rig.generate(request := make_request())
        assert sink.text == reference_text(request)


@async_test
async def test_a_failing_observer_harms_nobody() -> None:
    def observe(stats: RoundStats) -> None:
        raise RuntimeError(f"metrics are gone after {stats.wall_ns} ns")

    async with running(on_round=observe) as rig:
        (sink,) = await rig.generate(request := make_request())
        assert sink.text == reference_text(request)


@async_test
async def test_submit_from_another_thread_wakes_the_loop() -> None:
    async with running() as rig:
        await until_idle(rig)
        await asyncio.sleep(0.01)  # asleep for good
        sink = await asyncio.to_thread(rig.submit, request := make_request())
        await asyncio.wait_for(sink.done.wait(), 10)
        assert sink.text == reference_text(request)


@async_test
async def test_releases_are_delivered_when_the_engines_come_back() -> None:
    async with running() as rig:
        sink = rig.submit(make_request(max_tokens=2))
        while not sink.done.is_set():
            await asyncio.sleep(0)
        rig.fusion.failing = rig.target.down = True
        await asyncio.sleep(0.02)
        assert rig.target.held  # nobody could be told
        rig.fusion.failing = rig.target.down = False
        await until_idle(rig)
        assert not rig.target.held


@async_test
async def test_integrity_notices_a_slot_that_nobody_owns(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as rig:
        rig.target.held[99] = [1, 2]
        await rig.generate(make_request())
        for _ in range(50):
            await asyncio.sleep(0)
        assert rig.pipeline.check_integrity() == ["nothing runs, and the target has 3 of 4 slots free"]
        assert any("do not balance" in record.getMessage() for record in caplog.records)
        del rig.target.held[99]
        await rig.generate(make_request())
