"""What a Prometheus server would see at the metrics port of a real server, held against what the server says of itself."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from drafthouse.launcher import TritonServer
from drafthouse.triton.metrics_table import BY_NAME, METRICS, NUM_QUEUES
from drafthouse_client import Client, GenerateOptions, ServerSideError
from e2e.support import eventually

PERIOD_S = 1.0  # of the metrics
PROMPTS = ("def add(a, b):", "ROMEO: But soft,", "Theorem 1. Let x be", "The function returns")
_LINE = re.compile(r"^(drafthouse_\w+?)(_bucket|_sum|_count)?(?:\{(.*)\})? (\S+)$")
Labels = frozenset[tuple[str, str]]


class Scrape:
    """One reading of the metrics port; histograms under their name with `_sum` and `_count`."""

    def __init__(self, server: TritonServer) -> None:
        with urllib.request.urlopen(f"http://{server.config.host}:{server.ports.metrics}/metrics", timeout=10) as response:
            self.text = response.read().decode()
        self._values: dict[tuple[str, Labels], float] = {}
        for line in self.text.splitlines():
            if line.startswith("drafthouse_") and (found := _LINE.match(line)):
                family, part, labels, value = found.groups()
                name = family + (part or "")
                key = name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))
                assert key not in self._values, f"twice: {line}"
                assert family in BY_NAME, line
                self._values[key] = float(value)

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series that carry these labels."""
        wanted = set(labels.items())
        return sum(value for (series, own), value in self._values.items() if series == name and wanted <= own)

    def by(self, name: str, label: str) -> dict[str, float]:
        sums: dict[str, float] = {}
        for (series, own), value in self._values.items():
            if series == name:
                sums[dict(own)[label]] = sums.get(dict(own)[label], 0.0) + value
        return sums


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_address) as connection:
        yield connection


@pytest.fixture(scope="module")
def settle(server: TritonServer, client: Client) -> Callable[[], None]:
    """Waits until nothing runs and the metrics have caught up.

    The counters of a server go on where those of its last `cosine` ended: how far they are ahead is found out once, while nothing moves.
    """

    def ahead() -> dict[str, float]:
        return grown(reported(client.stats()), figures(Scrape(server)))

    def is_idle() -> bool:
        stats, scrape = client.stats(), Scrape(server)
        is_free = 0 < scrape.total("drafthouse_slots") == scrape.total("drafthouse_slots_free")
        return is_free and not (stats["running"] or stats["queue_len"] or stats["rehearsing"])

    def is_still() -> bool:
        first = ahead()
        time.sleep(2.5 * PERIOD_S)
        return is_idle() and ahead() == first

    assert eventually(is_still, 60.0), client.stats()
    offset = ahead()

    def wait() -> None:
        assert eventually(lambda: is_idle() and ahead() == offset, 60.0), (ahead(), offset, client.stats())

    wait()
    return wait


def figures(scrape: Scrape) -> dict[str, float]:
    """Counts of the metrics under the names that `stats_request` gives them."""
    spec = "drafthouse_spec_decode_num"
    return {
        "drafts": scrape.total(f"{spec}_drafts_total"),
        "drafted": scrape.total(f"{spec}_draft_tokens_total"),
        "accepted": scrape.total(f"{spec}_accepted_tokens_total"),
        "accepted_by_position": scrape.total(f"{spec}_accepted_tokens_per_pos_total"),
        "rounds": scrape.total("drafthouse_rounds_total"),
        "rounds_observed": scrape.total("drafthouse_round_seconds_count"),
        "verified_rows": scrape.total("drafthouse_verified_requests_total"),
        "emitted": scrape.total("drafthouse_generation_tokens_total"),
        "prefill_tokens": scrape.total("drafthouse_prefill_tokens_total"),
        "recomputed_tokens": scrape.total("drafthouse_recomputed_tokens_total"),
        "lost_caches": scrape.total("drafthouse_lost_caches_total"),
        "preemptions": scrape.total("drafthouse_num_preemptions_total"),
        "evictions": scrape.total("drafthouse_num_evictions_total"),
        "finished": scrape.total("drafthouse_request_success_total"),
        "latencies": scrape.total("drafthouse_e2e_request_latency_seconds_count"),
        "failed": scrape.total("drafthouse_request_failure_total"),
    }


def reported(stats: dict[str, Any]) -> dict[str, float]:
    """The same by `stats_request`."""
    counters, scheduling = stats["counters"], stats["scheduling"]
    same = ("drafts", "drafted", "accepted", "rounds", "verified_rows", "prefill_tokens", "recomputed_tokens", "lost_caches")
    return {
        **{name: counters[name] for name in same},
        "accepted_by_position": counters["accepted"],
        "rounds_observed": counters["rounds"],
        "emitted": counters["emitted_tokens"] + counters["prefill_emitted_tokens"],
        "preemptions": scheduling["preemptions"],
        "evictions": scheduling["evictions"],
        "finished": stats["finished"],
        "latencies": stats["finished"],
        "failed": sum(stats["failed"].values()),
    }


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def ask_everything(client: Client) -> None:
    """Requests of several fields at once, with and without drafts, and one that fails."""
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(client.generate, prompt, GenerateOptions(max_tokens=24, min_tokens=24)) for prompt in PROMPTS]
        plain = threads.submit(client.generate, PROMPTS[0], GenerateOptions(max_tokens=9, min_tokens=9, num_draft_tokens=0))
        for answer in (*answers, plain):
            answer.result()
    with pytest.raises(ServerSideError, match="DEADLINE_EXCEEDED"):
        client.generate(PROMPTS[0], GenerateOptions(max_tokens=400, min_tokens=400, deadline_ms=1))


def test_every_count_agrees_with_the_statistics(server: TritonServer, client: Client, settle: Callable[[], None]) -> None:
    settle()
    first, stats = Scrape(server), client.stats()
    num_asked = 0
    wanted = {"drafts": 0.0}
    while not wanted["drafts"]:  # on a busy machine it may take a while until drafts pay
        ask_everything(client)
        num_asked += 1
        assert num_asked <= 50, "nothing is ever drafted"
        after = client.stats()
        wanted = grown(reported(stats), reported(after))
    assert wanted["finished"] == 5 * num_asked
    assert wanted["failed"] == num_asked
    settle()
    second = Scrape(server)
    assert grown(figures(first), figures(second)) == wanted
    for stage in ("prefill", "draft", "verify"):
        for family, clock in (("stage", "wall"), ("session", "session")):
            name, key = f"drafthouse_{family}_seconds_total", f"{stage}_{clock}_ns"
            seconds = second.total(name, stage=stage) - first.total(name, stage=stage)
            assert seconds == pytest.approx((after["counters"][key] - stats["counters"][key]) / 1e9, rel=1e-6), (family, stage)
    observed = second.total("drafthouse_round_seconds_sum") - first.total("drafthouse_round_seconds_sum")
    assert observed == pytest.approx((after["counters"]["round_wall_ns"] - stats["counters"]["round_wall_ns"]) / 1e9, rel=1e-6)
    assert second.total("drafthouse_draft_depth") == after["speculation"]["depth"]
    length_error = second.total("drafthouse_estimation_error_ratio", estimate="length")
    assert length_error == pytest.approx(after["scheduling"]["length_error"]["relative"], rel=1e-5)


def test_drafts_are_told_apart_by_drafter_field_and_position(server: TritonServer, client: Client, settle: Callable[[], None]) -> None:
    names, spec = set(client.drafters()), "drafthouse_spec_decode_num"
    ask_everything(client)
    settle()
    scrape = Scrape(server)
    drafted, accepted = scrape.by(f"{spec}_draft_tokens_total", "drafter"), scrape.by(f"{spec}_accepted_tokens_total", "drafter")
    assert accepted.keys() <= drafted.keys() <= names
    assert all(accepted[name] <= drafted[name] for name in accepted)
    drafts, shares = scrape.by(f"{spec}_drafts_total", "domain"), scrape.by(f"{spec}_drafts_by_drafter_total", "domain")
    assert drafts.keys() <= names | {"unknown"}
    assert drafts.keys() == shares.keys()
    assert all(shares[domain] >= drafts[domain] for domain in drafts), "somebody works for every draft"
    by_position = scrape.by(f"{spec}_accepted_tokens_per_pos_total", "position")
    counts = [by_position[str(position)] for position in range(len(by_position))]
    assert counts == sorted(counts, reverse=True), "whoever accepts a position has accepted all before it"


def test_the_exposition_is_what_the_table_says(server: TritonServer, client: Client, settle: Callable[[], None]) -> None:
    ask_everything(client)
    settle()
    scrape = Scrape(server)
    kinds = dict(re.findall(r"^# TYPE (drafthouse_\w+) (\w+)$", scrape.text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (drafthouse_\w+) (.+)$", scrape.text, re.MULTILINE))
    table = {spec.name: spec for spec in METRICS}
    assert {name: table[name].kind for name in kinds} == kinds
    assert {name: table[name].help for name in helps} == helps
    rare = {f"drafthouse_{name}_total" for name in ("recomputed_tokens", "num_preemptions", "num_evictions")}
    assert table.keys() - kinds.keys() <= rare, "these have no series before the first event"
    assert scrape.by("drafthouse_num_requests_waiting", "queue") == {str(queue): 0.0 for queue in range(NUM_QUEUES)}
    assert scrape.total("drafthouse_info", mode="cosine", policy="fcfs") == 1.0


def leave_http(server: TritonServer, client: Client, body: dict[str, Any]) -> int:
    parts = urlsplit(server.http_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request("POST", "/v2/models/cosine/generate_stream", json.dumps(body))
    stream, num_tokens = connection.getresponse(), 0
    while num_tokens < 8:
        line = stream.readline()
        num_tokens += json.loads(line[5:])["num_output_tokens"] if line.startswith(b"data:") else 0
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    return num_tokens


def leave_grpc(server: TritonServer, client: Client, body: dict[str, Any]) -> int:
    stream = client.stream(
        body["text_input"], GenerateOptions(max_tokens=body["max_tokens"], min_tokens=body["min_tokens"], num_draft_tokens=0)
    )
    num_tokens = 0
    for chunk in stream:
        num_tokens += len(chunk.output_ids)
        if num_tokens >= 8:
            break
    stream.close()
    return num_tokens


@pytest.mark.parametrize("leave", [leave_http, leave_grpc])
def test_a_stream_that_disappears_frees_its_slot(server: TritonServer, client: Client, settle: Callable[[], None], leave: Any) -> None:  # noqa: ANN401
    settle()
    before, num_asked = Scrape(server), 400
    body = {"text_input": PROMPTS[0], "max_tokens": num_asked, "min_tokens": num_asked, "stream": True, "num_draft_tokens": 0}
    body["return_num_output_tokens"] = True
    num_read = leave(server, client, body)

    def is_free() -> bool:
        scrape = Scrape(server)
        cancelled = scrape.total("drafthouse_request_failure_total", code="CANCELLED")
        is_gone = cancelled == before.total("drafthouse_request_failure_total", code="CANCELLED") + 1
        return is_gone and scrape.total("drafthouse_num_requests_running") == 0 < scrape.total("drafthouse_slots_free")

    assert eventually(lambda: is_free() and Scrape(server).total("drafthouse_slots_free") == Scrape(server).total("drafthouse_slots"))
    after = Scrape(server)
    name = "drafthouse_generation_tokens_total"
    # One token per round without drafts. What is beyond those read are the rounds in which the client's last words were on their way.
    num_rounds_late = after.total(name) - before.total(name) - num_read
    assert num_rounds_late < num_asked / 10, "it ran on after its client had gone"
    assert figures(after)["finished"] == figures(before)["finished"]


def test_loading_cosine_anew_keeps_the_counters_and_one_of_each(server: TritonServer, client: Client, settle: Callable[[], None]) -> None:
    ask_everything(client)
    settle()
    before = figures(Scrape(server))
    try:
        server.load_model("cosine", {"parameters": {"rehearsal": "off", "max_queue_size": "100"}})  # old and new overlap
        client.generate(PROMPTS[0], GenerateOptions(max_tokens=8, min_tokens=8))
        assert eventually(lambda: grown(before, figures(Scrape(server)))["emitted"] == 8.0)
        assert eventually(lambda: Scrape(server).total("drafthouse_slots") == client.stats()["scheduling"]["slots"])

        server.load_model("cosine", {"parameters": {"metrics": "off"}})
        client.generate(PROMPTS[0], GenerateOptions(max_tokens=8, min_tokens=8))
        assert client.stats()["counters"]["prefill_emitted_tokens"] == 1
        assert eventually(lambda: Scrape(server).total("drafthouse_slots") == 0.0), "gauges are 0 when nobody writes them"
        assert grown(before, figures(Scrape(server)))["emitted"] == 8.0, "turned off"
    finally:
        server.load_model("cosine")
    client.generate(PROMPTS[0], GenerateOptions(max_tokens=8, min_tokens=8))
    assert eventually(lambda: grown(before, figures(Scrape(server)))["emitted"] == 16.0)
    assert Scrape(server).total("drafthouse_info") == 1.0
