"""Locust itself, as a user starts it, against hand-written servers."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.locust_run import run_locust
from fakes.sse_server import SseAnswer, error_event, event, last_event, serving_sse
from fakes.triton_grpc import FakeTriton, scripted, serving, two_chunks

EXPIRED = "DEADLINE_EXCEEDED field=deadline_ms value=3 of at most 9 tokens allowed=a later deadline"
CUT = "DEADLINE_EXCEEDED field=--stop-timeout (cut by the end of the test)"
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:00.0000000,9,7\n2026-01-01 00:00:00.4000000,9,500\n"


def test_locust_sends_the_same_requests_in_every_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2026-01-01 00:00:00.{at:02d}00000,9,7\n" for at in range(0, 60, 5))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}", encoding="utf-8")
    runs = []
    for _ in range(2):
        with serving_sse(lambda _: SseAnswer([event(), last_event()])) as (url, seen):
            assert run_locust(tmp_path, "--host", url, "-u", "1", "--trace", str(trace), "--tags", "sse").status == 0
        runs.append(sorted((body["text_input"], body["seed"]) for _, body in seen))
    assert len(set(runs[0])) == 12
    assert runs[0] == runs[1]


@pytest.fixture
def two_servers() -> Iterator[tuple[str, ...]]:
    """SSE that breaks off everything but math with an error under status 200, gRPC that always answers."""

    def answer(body: dict[str, Any]) -> SseAnswer:
        time.sleep(0.01)
        return SseAnswer([event(), last_event() if "Question:" in body["text_input"] else error_event(EXPIRED)])

    with serving_sse(answer) as (url, _), serving(FakeTriton(scripted(*two_chunks()))) as grpc_address:
        yield "--host", url, "--grpc-url", grpc_address


def test_locust_in_a_closed_loop(two_servers: tuple[str, ...], tmp_path: Path) -> None:
    run = run_locust(tmp_path, *two_servers, "-u", "4", "-r", "4", "-t", "2s", "--slo-ttft-ms", "10000", "--tags", "code", "math")
    code, math = run.entries["E2E", "SSE code"], run.entries["E2E", "SSE math"]
    assert run.status == 1, run.output
    assert code["Failure Count"] == code["Request Count"] != "0", run.output
    assert math["Failure Count"] == run.entries["E2E", "gRPC code"]["Failure Count"] == "0", run.output
    assert {row["Error"] for row in run.failures} == {"StreamFailed('DEADLINE_EXCEEDED field=deadline_ms (HTTP 200)')"}
    assert ("E2E", "SSE drama") not in run.entries, "not among the tags"
    assert float(run.entries["acceptance %", "gRPC"]["Average Response Time"]) == 50.0
    assert float(run.entries["SLO met %", "SSE code"]["Average Response Time"]) == 0.0
    assert int(run.entries["goodput", "gRPC"]["Request Count"]) > 0


def test_locust_in_an_open_loop_ends_with_its_trace(two_servers: tuple[str, ...], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE, encoding="utf-8")
    run = run_locust(tmp_path, *two_servers, "-u", "2", "--trace", str(trace), "--tags", "grpc")
    assert run.status == 0, run.output
    requests = [row for (kind, _), row in run.entries.items() if kind == "E2E"]
    assert sum(int(row["Request Count"]) for row in requests) == 2
    assert int(run.entries["TTFT", "gRPC"]["Request Count"]) == 2


@pytest.mark.parametrize("loop", [(), ("--rate", "20")])
@pytest.mark.parametrize(("answer_s", "failures"), [(1.5, set()), (30.0, {f"StreamFailed('{CUT}')"})])
def test_what_is_under_way_at_the_end_is_waited_for_or_a_failure(
    loop: tuple[str, ...], answer_s: float, failures: set[str], tmp_path: Path
) -> None:
    """Every request that a server got is in the statistics, though none has an answer when the time is up."""
    over = threading.Event()
    num_grpc_requests = 0

    def answer(_: dict[str, Any]) -> SseAnswer:
        over.wait(answer_s)
        return SseAnswer([event(), last_event()])

    def answer_grpc(_: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        nonlocal num_grpc_requests
        num_grpc_requests += 1
        over.wait(answer_s)
        yield from two_chunks()

    limits = ("-u", "4", "-r", "4", "-t", "1s", "--slo-ttft-ms", "60000", *(("-s", "1") if failures else ()))
    with serving_sse(answer) as (url, seen), serving(FakeTriton(answer_grpc), num_workers=64) as grpc_address:
        run = run_locust(tmp_path, "--host", url, "--grpc-url", grpc_address, *loop, *limits)
        over.set()
    requests = {name: row for (kind, name), row in run.entries.items() if kind == "E2E"}
    assert len(seen) > 0 < num_grpc_requests, run.output
    assert sum(int(row["Request Count"]) for row in requests.values()) == len(seen) + num_grpc_requests, run.output
    assert sum(int(row["Failure Count"]) for row in requests.values()) == bool(failures) * (len(seen) + num_grpc_requests)
    assert {row["Error"] for row in run.failures} == failures
    kept = run.entries["SLO met %", "SSE"], run.entries["SLO met %", "gRPC"]
    assert [int(row["Request Count"]) for row in kept] == [len(seen), num_grpc_requests]
    assert {float(row["Average Response Time"]) for row in kept} == {0.0 if failures else 100.0}
    assert run.status == bool(failures)


def test_locust_refuses_a_bad_option_in_one_line(tmp_path: Path) -> None:
    run = run_locust(tmp_path, "--rate", "-3")
    assert run.status == 1
    assert "INVALID_ARG field=--rate value=-3.0 allowed=above 0" in run.output
    assert "Traceback" not in run.output
