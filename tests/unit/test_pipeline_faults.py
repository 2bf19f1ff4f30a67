"""Unhappy paths: exactly one answer each, slots freed, the loop alive, the books balanced."""

import asyncio
import logging
import time

import pytest

from drafthouse.core.errors import ErrorCode
from drafthouse.engine.contract import RowStatus, StepRow
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.stats import RoundStats
from fakes.pipeline_harness import async_test, make_request, reference_text, running, until_idle
from fakes.pipeline_sink import FakeSink
from fakes.pipeline_target import FakeTarget

FAST_RETRY = PipelineConfig(target_retry_attempts=3, target_retry_delay_ms=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse.pipeline.loop.IDLE_RETRY_S", 0.005)


def error_of(sink: FakeSink) -> tuple[ErrorCode, str]:
    assert sink.num_finals == 1
    assert sink.error is not None
    assert str(sink.error).startswith(f"{sink.error.code} field={sink.error.field}")
    return sink.error.code, sink.error.field


@async_test
async def test_a_cancelled_stream_frees_its_slot_within_a_round() -> None:
    async with running() as rig:
        leaver, stayer = make_request((1, 2), 150, end_id=-1, stream=True), make_request((3, 4), 60, end_id=-1)
        leaving, staying = rig.submit(leaver), rig.submit(stayer)
        leaving.cancel_after_chunks = 2
        await leaving.done.wait()
        assert error_of(leaving)[0] is ErrorCode.CANCELLED
        num_chunks, num_calls = len(leaving.chunks), len(rig.target.calls)
        await staying.done.wait()
        assert len(leaving.chunks) == num_chunks
        assert num_chunks <= 3  # the round that was under way when it left
        later = rig.target.calls[num_calls:]
        assert all(row.request_uid != leaver.request_uid for call in later for row in call.rows)
        assert staying.text == reference_text(stayer)
        assert rig.pipeline.snapshot().num_failed == {"CANCELLED": 1}


@async_test
async def test_a_request_cancelled_while_it_waits_never_reaches_an_engine() -> None:
    async with running(PipelineConfig(slots=1)) as rig:
        running_sink, waiting = rig.submit(make_request(max_tokens=30)), rig.submit(request := make_request())
        waiting.cancelled = True
        await asyncio.gather(running_sink.done.wait(), waiting.done.wait())
        assert error_of(waiting)[0] is ErrorCode.CANCELLED
        assert all(row.request_uid != request.request_uid for call in rig.target.calls for row in call.rows)


@async_test
async def test_a_deadline_ends_running_and_waiting_requests() -> None:
    async with running(PipelineConfig(slots=1)) as rig:
        soon_ns = time.monotonic_ns() + 20_000_000
        requests = [make_request((1, item), 190, end_id=-1, deadline_ns=soon_ns) for item in (1, 2)]
        rig.target.row_status = lambda row: RowStatus.NO_SLOT if row.prefix_len > 0 else None  # keeps the first one from ending
        for sink in await rig.generate(*requests):
            assert error_of(sink) == (ErrorCode.DEADLINE_EXCEEDED, "deadline_ms")


@pytest.mark.parametrize("num_calls_before", [0, 3])
@async_test
async def test_deadlines_and_cancels_count_while_the_target_hangs(num_calls_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse.pipeline.loop.SWEEP_PERIOD_S", 0.002)
    async with running(PipelineConfig(slots=2)) as rig:
        leaver, patient = make_request((1, 2), 150, end_id=-1, stream=True), make_request((3, 4), 40, end_id=-1)
        leaving, waiting = rig.submit(leaver), rig.submit(patient)
        while len(rig.target.calls) < num_calls_before:
            await asyncio.sleep(0)
        rig.target.gate.clear()
        soon_ns = time.monotonic_ns() + 10_000_000
        late = rig.submit(make_request((5, 6), deadline_ns=soon_ns))  # has not even left the inbox
        await late.done.wait()
        assert error_of(late)[0] is ErrorCode.DEADLINE_EXCEEDED
        leaving.cancelled = True
        await leaving.done.wait()
        assert error_of(leaving)[0] is ErrorCode.CANCELLED
        num_tokens = len(leaving.output_ids)
        rig.target.gate.set()
        await waiting.done.wait()
        assert waiting.text == reference_text(patient)
        assert len(leaving.output_ids) == num_tokens


@async_test
async def test_a_full_queue_refuses_at_once_and_keeps_its_promises_to_the_others() -> None:
    async with running(PipelineConfig(slots=2, max_queue_size=3)) as rig:
        requests = [make_request((1, item), 10) for item in range(1, 9)]
        sinks = [rig.submit(request) for request in requests]
        refused = [sink for sink in sinks if sink.done.is_set()]  # before the loop ran at all
        assert refused == sinks[5:]
        assert {error_of(sink) for sink in refused} == {(ErrorCode.UNAVAILABLE, "queue")}
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert [sink.text for sink in sinks[:5]] == [reference_text(request) for request in requests[:5]]
        (again,) = await rig.generate(requests[5])
        assert again.error is None


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
    target, asked = FakeTarget(), []

    def crash(call_number: int) -> None:
        if call_number == 4:
            target.down = True

    async def bring_back() -> None:
        asked.append(len(target.calls))
        await asyncio.sleep(0.01)
        target.reload()
        target.down = False

    target.before_call = crash
    async with running(PipelineConfig(target_retry_delay_ms=1), target, on_target_lost=bring_back) as rig:
        requests = [make_request((1, item), 40, end_id=-1) for item in range(1, 4)]
        sinks = await rig.generate(*requests)
        assert [sink.text for sink in sinks] == [reference_text(request) for request in requests]
        assert len(asked) == 1
        assert target.num_failed_calls >= 1


@async_test
async def test_a_target_that_stays_down_is_given_up_and_comes_back_later() -> None:
    target = FakeTarget()
    asked: list[int] = []

    async def in_vain() -> None:
        asked.append(target.num_failed_calls)
        raise RuntimeError("load failed")

    async with running(FAST_RETRY, target, on_target_lost=in_vain) as rig:
        target.down = True
        for sink in await rig.generate(make_request(), make_request()):
            assert error_of(sink) == (ErrorCode.UNAVAILABLE, "target")
        assert asked == [1]
        assert target.num_failed_calls >= 4
        (late,) = await rig.generate(make_request())  # now known to be down: one probe decides
        assert error_of(late) == (ErrorCode.UNAVAILABLE, "target")
        assert len(asked) == 2
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
    target = FakeTarget()
    async with running(FAST_RETRY, target) as rig:
        target.before_call = lambda number: setattr(target, "down", number == 3)
        (sink,) = await rig.generate(make_request(max_tokens=100, end_id=-1))
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
    bad, fine = make_request((1, 2), 30, end_id=-1), make_request((3, 4), 30)

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
            hit = await rig.generate(make_request((1, 2), 60, end_id=-1), make_request((1, 3), 60, end_id=-1))
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
async def test_stop_answers_everyone_and_refuses_the_late() -> None:
    async with running(PipelineConfig(slots=1)) as rig:
        sinks = [rig.submit(make_request((1, item), 190, end_id=-1)) for item in (1, 2, 3)]
        while len(rig.target.calls) < 3:
            await asyncio.sleep(0)
        sinks.append(rig.submit(make_request()))  # still in the inbox
        rig.pipeline.stop()
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        late = rig.submit(make_request())
        assert late.done.is_set()
        assert {error_of(sink) for sink in [*sinks, late]} == {(ErrorCode.UNAVAILABLE, "server")}


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
        rig.fusion.failing = rig.target.down = False
        await until_idle(rig)


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
