"""What a client can ask for, through HTTP as curl would and through the stock gRPC client."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from drafthouse.launcher import TritonServer
from drafthouse_client import Client, GenerateOptions, ServerSideError
from e2e.support import free_port_config
from e2e.wire import grpc_generate, http_generate

PROMPT = "def add(a, b):"
BODY: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 24, "min_tokens": 24}
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_address) as connection:
        yield connection


@pytest.fixture(scope="module")
def full_text(client: Client) -> str:
    """The greedy continuation that the other tests cut and bend."""
    return client.generate(PROMPT, GenerateOptions(max_tokens=24, min_tokens=24)).text


def one(answer: tuple[int, Any]) -> dict[str, Any]:
    status, reply = answer
    assert (status, reply.errors, len(reply.outputs)) == (200, [], 1)
    outputs: dict[str, Any] = reply.outputs[0]
    return outputs


def wait_until_idle(client: Client) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        stats = client.stats()
        held = {name: e["slots_total"] - e["slots_free"] for name, e in stats["engines"].items()}
        if (stats["running"], stats["queue_len"]) == (0, 0) and not any(held.values()):
            return
        assert time.monotonic() < deadline_s, (stats, held)
        time.sleep(0.05)


def test_generate_answers_once_and_streams_add_up_to_the_same(server: TritonServer, full_text: str) -> None:
    assert one(http_generate(server.http_url, BODY))["text_output"] == full_text
    status, reply = http_generate(server.http_url, {**BODY, "stream": True, "return_num_output_tokens": True}, stream=True)
    assert status == 200
    assert len(reply.outputs) > 1
    assert "".join(event["text_output"] for event in reply.outputs) == full_text
    assert sum(event["num_output_tokens"] for event in reply.outputs) == 24


def test_the_stock_grpc_client_streams(server: TritonServer, full_text: str) -> None:
    answer = grpc_generate(server.grpc_address, {**BODY, "stream": True})
    assert (answer.errors, answer.num_finals) == ([], 1)
    assert b"".join(event["text_output"][0] for event in answer.outputs).decode() == full_text


def test_ids_instead_of_text(server: TritonServer, client: Client, full_text: str) -> None:
    first = client.generate(PROMPT, GenerateOptions(max_tokens=1))
    assert first.num_input_tokens is not None
    ids = one(http_generate(server.http_url, {**BODY, "max_tokens": 8, "min_tokens": 0}))["output_ids"]
    longer = one(http_generate(server.http_url, {"input_ids": ids, "max_tokens": 2, "return_num_input_tokens": True}))
    assert longer["num_input_tokens"] == len(ids)


def test_usage_reason_and_figures(server: TritonServer) -> None:
    flags = ("return_num_input_tokens", "return_num_output_tokens", "return_finish_reason", "return_perf_metrics", "return_log_probs")
    answer = one(http_generate(server.http_url, {**BODY, **dict.fromkeys(flags, True)}))
    assert answer["num_output_tokens"] == len(answer["output_ids"]) == len(answer["output_log_probs"]) == 24
    assert answer["num_input_tokens"] > 0
    assert answer["finish_reason"] == "length"
    assert all(value <= 0 for value in answer["output_log_probs"])
    times = [answer[f"{name}_time_ns"] for name in ("arrival", "first_scheduled", "first_token", "last_token")]
    assert times == sorted(times)
    assert 0 <= answer["total_accepted_draft_tokens"] <= answer["total_draft_tokens"]


def test_a_stop_word_across_token_borders_ends_the_text_before_it(server: TritonServer, full_text: str) -> None:
    middle = len(full_text) // 2
    word = full_text[middle - 3 : middle + 3]
    answer = one(http_generate(server.http_url, {**BODY, "min_tokens": 0, "stop_words": [word], "return_finish_reason": True}))
    assert answer["text_output"] == full_text[: full_text.index(word)]
    assert answer["finish_reason"] == "stop"
    events = http_generate(server.http_url, {**BODY, "min_tokens": 0, "stop_words": [word], "stream": True}, stream=True)[1].outputs
    assert "".join(event["text_output"] for event in events) == full_text[: full_text.index(word)]


def test_min_tokens_holds_a_stop_word_back(server: TritonServer, full_text: str) -> None:
    answer = one(http_generate(server.http_url, {**BODY, "stop_words": [full_text[2:5]]}))
    assert answer["text_output"] == full_text


def test_a_bad_word_never_appears(server: TritonServer, full_text: str) -> None:
    word = full_text[3:6]
    answer = one(http_generate(server.http_url, {**BODY, "bad_words": [word]}))
    assert word not in answer["text_output"]
    without = one(http_generate(server.http_url, {**BODY, "bad_words": [word], "num_draft_tokens": 0}))
    assert without["output_ids"] == answer["output_ids"]


def test_an_end_id_ends_the_text(server: TritonServer) -> None:
    ids = one(http_generate(server.http_url, BODY))["output_ids"]
    answer = one(http_generate(server.http_url, {**BODY, "min_tokens": 0, "end_id": ids[4], "return_finish_reason": True}))
    assert answer["finish_reason"] == "stop"
    assert answer["output_ids"] == ids[: ids.index(ids[4]) + 1]


def test_the_prompt_comes_back_when_asked_for(server: TritonServer, full_text: str) -> None:
    assert one(http_generate(server.http_url, {**BODY, "exclude_input_in_output": False}))["text_output"] == PROMPT + full_text


def test_neutral_values_of_unsupported_features_are_accepted(server: TritonServer, full_text: str) -> None:
    neutral = {
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "beam_width": 1,
        "num_return_sequences": 1,
        "pad_id": 0,
    }
    assert one(http_generate(server.http_url, {**BODY, **neutral}))["text_output"] == full_text


def test_a_pinned_drafter_is_the_only_source(server: TritonServer, client: Client) -> None:
    index = client.drafters().index("docs")
    answer = one(http_generate(server.http_url, {**BODY, "max_tokens": 64, "drafters": ["docs"]}))
    assert set(answer["token_sources"]) <= {-1, index}


def test_a_deadline_is_kept(server: TritonServer, client: Client) -> None:
    status, reply = http_generate(server.http_url, {**BODY, "max_tokens": 300, "min_tokens": 300, "deadline_ms": 1})
    assert status >= 400
    assert reply.errors[0].startswith("DEADLINE_EXCEEDED field=deadline_ms")
    wait_until_idle(client)


def test_a_browser_that_goes_away_frees_its_slot(server: TritonServer, client: Client) -> None:
    parts = urlsplit(server.http_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    body = json.dumps({**BODY, "max_tokens": 400, "min_tokens": 400, "stream": True})
    connection.request("POST", "/v2/models/cosine/generate_stream", body)
    stream = connection.getresponse()
    assert stream.readline().startswith(b"data:")
    before = client.stats()
    assert before["running"] == 1
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_until_idle(client)
    after = client.stats()
    assert after["failed"].get("CANCELLED", 0) == before["failed"].get("CANCELLED", 0) + 1
    assert after["finished"] == before["finished"], "it was cut short, it did not run to its end"


def test_a_full_queue_says_so_and_loses_nobody(repository_dir: Any, tmp_path: Any) -> None:  # noqa: ANN401
    with TritonServer(free_port_config(repository_dir, log_dir=tmp_path)) as server, Client(server.grpc_address) as client:
        server.load_model("cosine", {"parameters": {"slots": "1", "max_queue_size": "2"}})
        options = GenerateOptions(max_tokens=100, min_tokens=100)

        def ask(_: int) -> str:
            try:
                return client.generate(PROMPT, options).finish_reason or "nothing"
            except ServerSideError as error:
                return f"{error.code} {error.field}"

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(ask, range(12)))
        assert set(answers) == {"length", "UNAVAILABLE queue"}, answers
        assert answers.count("length") >= 3
        wait_until_idle(client)
