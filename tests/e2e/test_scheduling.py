"""More requests than slots on a real server: the same texts under every policy, priorities, deadlines, evictions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from drafthouse.launcher import TritonServer
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse_client import Client, GenerateOptions
from drafthouse_load.stats import read_when_idle
from e2e.support import eventually
from e2e.test_modes import domain_prompts
from e2e.wire import grpc_generate

Output = tuple[tuple[int, ...], str, str | None]  # ids, text, why it ended
NUM_REQUESTS = 12
PREEMPTIVE = "las"
AS_SHIPPED = {"policy": "fcfs", "length_predictor": "histogram", "slots": "8", "max_batch": "0"}
CROWDED = {"slots": "2", "max_batch": "1"}
LONG = GenerateOptions(max_tokens=200, min_tokens=200, num_draft_tokens=0)
PROMPT = "def read_lines(path):\n    "


def switch_to(server: TritonServer, **parameters: str) -> None:
    """Loads `cosine` with these parameters; an override stays until the next one, so every one is named."""
    server.load_model("cosine", {"parameters": {"rehearsal": "off", **AS_SHIPPED, **parameters}})


@pytest.fixture(scope="module", autouse=True)
def _as_it_was(server: TritonServer) -> Iterator[None]:
    yield
    server.load_model("cosine")


def ask(client: Client, index: int, prompt: str) -> Output:
    """One answer: every second one as a stream, every third one sampled, of very unequal lengths."""
    options = GenerateOptions(max_tokens=(4, 10, 30)[index % 3], **({"temperature": 0.8, "seed": index} if index % 3 == 1 else {}))
    if index % 2:
        answer = client.generate(prompt, options)
        return answer.output_ids, answer.text, answer.finish_reason
    chunks = list(client.stream(prompt, options))
    ids = tuple(token for chunk in chunks for token in chunk.output_ids)
    return ids, "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason


def outputs(server: TritonServer) -> list[Output]:
    """What the server says to many requests at once."""
    prompts = domain_prompts(NUM_REQUESTS // 4)
    with Client(server.grpc_address) as client, ThreadPoolExecutor(NUM_REQUESTS) as pool:
        return list(pool.map(lambda job: ask(client, *job), enumerate(prompts)))


def scheduling(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.stats()["scheduling"]
    return found


@pytest.fixture(scope="module")
def expected(server: TritonServer) -> list[Output]:
    """The answers where everybody has a slot."""
    switch_to(server)
    return outputs(server)


@pytest.mark.parametrize("policy", POLICIES.names)
def test_texts_do_not_depend_on_the_policy(server: TritonServer, expected: list[Output], policy: str) -> None:
    switch_to(server, policy=policy, **CROWDED)
    assert outputs(server) == expected
    with Client(server.grpc_address) as client:
        assert read_when_idle(client).idle
        stats = client.stats()
        assert (stats["policy"], stats["finished"], stats["failed"]) == (policy, NUM_REQUESTS, {})
        figures = stats["scheduling"]
        assert (figures["slots"], figures["max_batch"], figures["queue_lengths"], figures["preempted"]) == (2, 1, {}, 0)
        estimated = figures["estimation_error"]
        assert estimated["at_perceptible"]["num_requests"] + estimated["num_never_perceptible"] == NUM_REQUESTS
        assert figures["length_error"]["num_requests"] == NUM_REQUESTS
        assert set(stats["rounds_by_batch_size"]) == {"1"}
        assert (stats["counters"]["recomputed_tokens"] > 0) == (figures["evictions"] > 0)
        assert eventually(lambda: read_when_idle(client).leaked_slots == {})


def test_a_stream_goes_on_where_a_more_urgent_request_broke_it_off(server: TritonServer) -> None:
    switch_to(server, policy=PREEMPTIVE, slots="1")
    with Client(server.grpc_address) as client:
        alone = client.generate(PROMPT, LONG).output_ids
        assert scheduling(client)["preemptions"] == 0
        with closing(client.stream(PROMPT, LONG)) as stream:
            ids = list(next(stream).output_ids)
            urgent = client.generate("A", GenerateOptions(max_tokens=8, request_priority=9))
            assert urgent.num_output_tokens >= 1
            stats = client.stats()
            assert (stats["running"], stats["scheduling"]["evictions"]) == (1, 1)  # the stream is still under way
            ids += [token for chunk in stream for token in chunk.output_ids]
        assert tuple(ids) == alone
        stats = client.stats()
        assert stats["scheduling"]["preemptions"] == stats["scheduling"]["evictions"] == 1
        assert stats["counters"]["recomputed_tokens"] > 0
        assert eventually(lambda: read_when_idle(client).leaked_slots == {})


def test_a_preempted_request_that_is_late_is_told_so_once(server: TritonServer) -> None:
    switch_to(server, policy=PREEMPTIVE, max_batch="1")
    fields = {"text_input": PROMPT, "max_tokens": 300, "min_tokens": 300, "num_draft_tokens": 0}
    answers = []
    late = threading.Thread(
        target=lambda: answers.append(grpc_generate(server.grpc_address, {**fields, "deadline_ms": 700, "stream": True}))
    )
    with Client(server.grpc_address) as client:
        late.start()
        assert eventually(lambda: client.stats()["running"] == 1)
        urgent = grpc_generate(server.grpc_address, {**fields, "request_priority": 1})
        late.join()
        (answer,) = answers
        assert answer.num_finals == len(answer.errors) == 1
        assert answer.errors[0].startswith("DEADLINE_EXCEEDED field=deadline_ms")
        assert (urgent.errors, urgent.num_finals) == ([], 1)
        stats = client.stats()
        assert (stats["finished"], stats["failed"], stats["scheduling"]["preempted"]) == (1, {"DEADLINE_EXCEEDED": 1}, 0)
        assert stats["scheduling"]["preemptions"] >= 1
        assert eventually(lambda: read_when_idle(client).leaked_slots == {})
