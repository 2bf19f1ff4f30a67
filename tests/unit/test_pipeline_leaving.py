"""Requests that end before their text does: cancelled, late, refused or stopped, with one answer each and no slot kept."""

import asyncio
import time

import pytest

from drafthouse.core.errors import ErrorCode
from drafthouse.engine.contract import RowStatus
from drafthouse.pipeline.config import PipelineConfig
from fakes.pipeline_harness import async_test, make_request, reference_text, running
from fakes.pipeline_sink import error_of


@async_test
async def test_a_cancelled_stream_frees_its_slot_within_a_round() -> None:
    async with running() as rig:
        leaver, stayer = make_request((1, 2), 150, end_ids=(), stream=True), make_request((3, 4), 60, end_ids=())
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
        requests = [make_request((1, item), 190, end_ids=(), deadline_ns=soon_ns) for item in (1, 2)]
        rig.target.row_status = lambda row: RowStatus.NO_SLOT if row.prefix_len > 0 else None  # keeps the first one from ending
        for sink in await rig.generate(*requests):
            assert error_of(sink) == (ErrorCode.DEADLINE_EXCEEDED, "deadline_ms")


@pytest.mark.parametrize("num_calls_before", [0, 3])
@async_test
async def test_deadlines_and_cancels_count_while_the_target_hangs(num_calls_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse.pipeline.loop.SWEEP_PERIOD_S", 0.002)
    async with running(PipelineConfig(slots=2)) as rig:
        leaver, patient = make_request((1, 2), 150, end_ids=(), stream=True), make_request((3, 4), 40, end_ids=())
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
async def test_stop_answers_everyone_and_refuses_the_late() -> None:
    async with running(PipelineConfig(slots=1)) as rig:
        sinks = [rig.submit(make_request((1, item), 190, end_ids=())) for item in (1, 2, 3)]
        while len(rig.target.calls) < 3:
            await asyncio.sleep(0)
        sinks.append(rig.submit(make_request()))  # still in the inbox
        rig.pipeline.stop()
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        late = rig.submit(make_request())
        assert late.done.is_set()
        assert {error_of(sink) for sink in [*sinks, late]} == {(ErrorCode.UNAVAILABLE, "server")}
