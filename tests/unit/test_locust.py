"""Locust users without a real server: events, figures, arrivals. Locust itself: test_locust_runs.py."""

import argparse
import itertools
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drafthouse.core.errors import ClientError, ErrorCode
from drafthouse_client import Client, GenerateOptions
from drafthouse_load.arrivals import from_trace, poisson, poisson_given_count
from drafthouse_load.locust_users.entries import log_failure, log_stream
from drafthouse_load.locust_users.grpc_stream import stream_events
from drafthouse_load.locust_users.http_stream import SseEndpoint, parse_event
from drafthouse_load.locust_users.observed import Slo, StreamEvent, StreamFailed, StreamRecord, observe
from drafthouse_load.locust_users.options import LoadOptions, add_options, read_options
from drafthouse_load.locust_users.session import LoadSession
from drafthouse_load.locust_users.sse import read_events
from drafthouse_load.simulate.trace import read_trace
from fakes.sse_server import SseAnswer, error_event, event, last_event, serving_sse
from fakes.triton_grpc import FakeTriton, error, response, scripted, serving, two_chunks

EXPIRED = "DEADLINE_EXCEEDED field=deadline_ms value=3 of at most 9 tokens allowed=a later deadline"
OPTIONS = GenerateOptions(max_tokens=9, temperature=0.0)
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:00.0000000,9,7\n2026-01-01 00:00:00.4000000,9,500\n"


def lines(text: str) -> list[bytes]:
    return text.encode().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("body", "events"),
    [
        ("data: a\n\ndata: b\n\n", ["a", "b"]),
        ("data:a\r\n\r\ndata:  b\r\n\r\n", ["a", " b"]),
        (": hello\nevent: x\nid: 4\ndata: a\ndata: b\n\n\n\n", ["a\nb"]),
        ("data: a\n\ndata: cut short", ["a"]),
        ("data\n\n", [""]),
        ("\n\n", []),
    ],
)
def test_events_are_read_as_the_standard_says(body: str, events: list[str]) -> None:
    assert list(read_events(lines(body))) == events


def test_one_event_of_the_server() -> None:
    text = last_event(text_output="é", num_output_tokens=3).decode().removeprefix("data: ")
    assert parse_event(text, "HTTP 200") == StreamEvent(3, 2, True, num_drafted=8, num_accepted=6)


@pytest.mark.parametrize("data", ["no JSON", "[]", "3", '{"text_output": "a"}', '{"text_output": null, "num_output_tokens": 1}'])
def test_what_is_no_event_is_a_failure(data: str) -> None:
    with pytest.raises(StreamFailed, match=r"INTERNAL field=event \(HTTP 200, not understood\)"):
        parse_event(data, "HTTP 200")


def record(*event_s: float, ended_s: float, tokens: tuple[int, ...], drafted: int = 0, accepted: int = 0) -> StreamRecord:
    return StreamRecord(10.0, ended_s, event_s, tokens, 5, drafted, accepted)


def test_figures_of_a_stream() -> None:
    ticks = iter((10.5, 10.6, 10.9, 11.0))
    stream = [StreamEvent(1, 3, False), StreamEvent(0, 0, False), StreamEvent(3, 5, False), StreamEvent(1, 2, True, 8, 6)]
    seen = observe(stream, 10.0, lambda: next(ticks), "SSE")
    assert seen == StreamRecord(10.0, 11.0, (10.5, 10.6, 10.9), (1, 3, 1), 10, 8, 6)
    assert (seen.num_tokens, seen.acceptance_percent) == (5, 75.0)
    assert (seen.e2e_ms, seen.ttft_ms, seen.tpot_ms) == pytest.approx((1000.0, 500.0, 125.0))
    assert seen.gaps_ms == pytest.approx((100.0, 300.0))


def test_a_text_of_one_token_has_no_time_per_token() -> None:
    seen = record(10.5, ended_s=11.0, tokens=(1,))
    assert (seen.tpot_ms, seen.gaps_ms, seen.acceptance_percent) == (None, (), None)
    assert Slo(tpot_ms=1.0).met_by(seen)


@pytest.mark.parametrize("events", [[], [StreamEvent(1, 3, False)], [StreamEvent(0, 0, True)]])
def test_a_stream_without_its_end_or_without_a_token_has_failed(events: list[StreamEvent]) -> None:
    with pytest.raises(StreamFailed, match="UNAVAILABLE field=stream"):
        observe(events, 0.0, time.perf_counter, "SSE")


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(), True),
        (Slo(ttft_ms=500.0), True),
        (Slo(ttft_ms=499.0), False),
        (Slo(tpot_ms=125.0), True),
        (Slo(ttft_ms=900.0, tpot_ms=124.0), False),
    ],
)
def test_an_slo_is_kept_when_every_limit_is(slo: Slo, met: bool) -> None:
    assert slo.met_by(record(10.5, 10.75, ended_s=11.0, tokens=(1, 4))) is met
    assert slo.is_set is (slo != Slo())


def test_entries_of_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCUST_SKIP_MONKEY_PATCH", "1")  # the standard library of the other tests stays as it is
    stats: Any = import_module("locust.stats").RequestStats()
    slo = Slo(ttft_ms=500.0)
    log_stream(stats, "SSE", "code", record(10.5, 10.75, ended_s=11.0, tokens=(1, 4), drafted=8, accepted=6), slo)
    log_stream(stats, "SSE", "math", record(10.75, ended_s=11.0, tokens=(1,)), slo)
    log_failure(stats, "SSE", "math", slo)
    own = {key: (entry.num_requests, entry.avg_response_time) for key, entry in stats.entries.items()}
    assert own["SSE code", "TTFT"] == (1, 500.0)
    assert own["SSE", "TTFT"] == (2, 625.0)
    assert own["SSE", "TPOT"] == (1, 125.0)
    assert own["SSE", "ITL"] == (1, 250.0)
    assert own["SSE", "tokens/event"] == (3, 2.0)
    assert own["SSE", "acceptance %"] == (1, 75.0)
    assert own["SSE", "goodput"] == (1, 1000.0)
    assert own["SSE", "SLO met %"] == (3, pytest.approx(100 / 3))
    assert ("SSE math", "goodput") not in own
    assert stats.num_requests == 0, "the total is about requests, which locust books itself"


def test_without_an_slo_there_is_no_goodput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCUST_SKIP_MONKEY_PATCH", "1")
    stats: Any = import_module("locust.stats").RequestStats()
    log_stream(stats, "SSE", "code", record(10.5, ended_s=11.0, tokens=(1,)), Slo())
    log_failure(stats, "SSE", "code", Slo())
    assert {kind for _, kind in stats.entries} == {"TTFT", "tokens/event"}


def test_sse_requests_ask_for_what_is_counted() -> None:
    with serving_sse(lambda _: SseAnswer([event(), last_event(num_output_tokens=3)])) as (url, seen):
        events = list(SseEndpoint(url, "cosine", 5.0).stream("hi", OPTIONS))
    assert [(one.num_tokens, one.is_last) for one in events] == [(1, False), (3, True)]
    ((path, body),) = seen
    assert path == "/v2/models/cosine/generate_stream"
    assert body.items() >= {"text_input": "hi", "stream": True, "max_tokens": 9, "return_num_output_tokens": True}.items()


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (SseAnswer([event(), error_event(EXPIRED)]), ErrorCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED field=deadline_ms (HTTP 200)"),
        (SseAnswer([b'{"error": "INVALID_ARG field=seed value=-1"}'], 400), ErrorCode.INVALID_ARG, "INVALID_ARG field=seed (HTTP 400)"),
        (SseAnswer([b"not found"], 404), ErrorCode.INTERNAL, "INTERNAL (HTTP 404: not found)"),
        (SseAnswer([b"data: 7\n\n"]), ErrorCode.INTERNAL, "INTERNAL field=event (HTTP 200, not understood)"),
    ],
)  # fmt: skip
def test_an_error_is_a_failure_under_whatever_status(answer: SseAnswer, code: ErrorCode, message: str) -> None:
    with serving_sse(lambda _: answer) as (url, _), pytest.raises(StreamFailed) as failure:
        list(SseEndpoint(url, "cosine", 5.0).stream("hi", OPTIONS))
    assert failure.value.code == code
    assert str(failure.value) == message


def test_a_server_that_is_not_there_is_a_failure() -> None:
    with serving_sse(lambda _: SseAnswer([])) as (url, _):
        gone = url
    with pytest.raises(StreamFailed, match=r"UNAVAILABLE field=connection \(HTTP, ConnectionRefusedError\)"):
        list(SseEndpoint(gone, "cosine", 5.0).stream("hi", OPTIONS))


def test_a_server_that_says_nothing_is_a_failure() -> None:
    def silent(_: dict[str, Any]) -> SseAnswer:
        time.sleep(0.3)
        return SseAnswer([])

    with serving_sse(silent) as (url, _), pytest.raises(StreamFailed, match="DEADLINE_EXCEEDED field=timeout"):
        list(SseEndpoint(url, "cosine", 0.05).stream("hi", OPTIONS))


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ClientError, match="INVALID_ARG field=--host value='https://x'"):
        SseEndpoint("https://x", "cosine", 1.0)


def test_grpc_streams_bring_the_same_events() -> None:
    with serving(FakeTriton(scripted(*two_chunks()))) as address, Client(address) as client:
        events = list(stream_events(client, "hi", OPTIONS))
    assert events == [StreamEvent(2, 2, False), StreamEvent(2, 1, True, num_drafted=4, num_accepted=2)]


def test_an_error_in_a_grpc_stream_is_a_failure() -> None:
    script = scripted(response(text_output="a", num_output_tokens=1), error(EXPIRED))
    with (
        serving(FakeTriton(script)) as address,
        Client(address) as client,
        pytest.raises(StreamFailed, match=r"DEADLINE_EXCEEDED field=deadline_ms \(gRPC stream\)"),
    ):
        list(stream_events(client, "hi", OPTIONS))


def test_poisson_arrivals_have_their_rate() -> None:
    times = [arrival.at_s for arrival in itertools.islice(poisson(20.0, seed=3), 4000)]
    gaps = np.diff([0.0, *times])
    assert np.mean(gaps) == pytest.approx(0.05, rel=0.05)
    assert np.std(gaps) == pytest.approx(0.05, rel=0.1), "exponential: as wide as its mean"
    assert [arrival.at_s for arrival in itertools.islice(poisson(20.0, seed=3), 9)] == times[:9]


def test_arrivals_of_a_given_number_fill_their_time() -> None:
    times = poisson_given_count(500, 60.0, np.random.default_rng(1))
    assert len(times) == 500
    assert np.all(np.diff(times) >= 0)
    assert 0 <= times[0] < 1
    assert 59 < times[-1] <= 60


def test_a_trace_sets_times_and_lengths(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    arrivals = list(from_trace(read_trace(tmp_path / "trace.csv"), speed=2.0))
    assert [arrival.num_output_tokens for arrival in arrivals] == [7, 500]
    assert [arrival.at_s for arrival in arrivals] == pytest.approx([0.0, 0.2], abs=1e-6)


def options(*arguments: str) -> LoadOptions:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_options(parser.parse_args(arguments), "http://10.0.0.1:9000")


def test_what_the_options_ask_for(tmp_path: Path) -> None:
    plain = options()
    assert (plain.arrivals, plain.slo, plain.grpc_url) == (None, Slo(), "10.0.0.1:8001")
    assert {prompt.domain for prompt in plain.prompts} == {"code", "math", "drama", "docs", "mixed"}
    file = tmp_path / "own.jsonl"
    file.write_text('{"domain": "law", "prompt": "Whereas"}\n', encoding="utf-8")
    chosen = options("--prompts", str(file), "--slo-ttft-ms", "200", "--rate", "4", "--min-tokens", "3", "--deadline-ms", "50")
    assert [prompt.domain for prompt in chosen.prompts] == ["law"]
    assert chosen.slo == Slo(ttft_ms=200.0)
    assert chosen.arrivals is not None
    assert (chosen.generate.min_tokens, chosen.generate.deadline_ms) == (3, 50)


@pytest.mark.parametrize(
    "arguments",
    [("--rate", "0"), ("--slo-tpot-ms", "-1"), ("--rate", "1", "--trace", "x.csv"), ("--trace", "no.csv"), ("--prompts", "no.jsonl")],
)
def test_bad_options_are_refused_by_name(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ClientError, match=f"INVALID_ARG field={arguments[-2]} "):
        options(*arguments)


def test_a_session_hands_out_prompts_seeds_and_lengths(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    session = LoadSession(options("--trace", str(tmp_path / "trace.csv"), "--max-tokens", "64"))
    assert dict(session.domains)["mixed"] == 20
    assert session.prompt("math").domain == "math"
    first, second = session.next_arrival(), session.next_arrival()
    assert first is not None
    assert second is not None
    assert second[1] - first[1] == pytest.approx(0.4)
    assert session.next_arrival() is None
    own = [session.generate_options(arrival) for arrival in (None, first[0], second[0])]
    assert [(one.min_tokens, one.max_tokens) for one in own] == [(None, 64), (7, 7), (64, 64)]
    assert len({one.seed for one in own}) == 3


def test_what_a_session_draws_depends_on_its_seed_and_its_process_alone() -> None:
    def drawn(session: LoadSession) -> list[tuple[str, int | None]]:
        return [(session.prompt("mixed").prompt, session.generate_options(None).seed) for _ in range(9)]

    first, again = (drawn(LoadSession(options("--arrival-seed", "5"))) for _ in range(2))
    assert first == again
    others = [drawn(LoadSession(options("--arrival-seed", "6"))), drawn(LoadSession(options("--arrival-seed", "5"), worker_index=1))]
    assert all(one[1] not in {seed for _, seed in first} for other in others for one in other)
