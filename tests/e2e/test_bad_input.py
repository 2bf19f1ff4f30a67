"""Every kind of bad input, over HTTP and gRPC, against the running server; afterwards every slot is free."""

import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from drafthouse.engine.contract import StepCall, StepRow
from drafthouse.fusion.contract import DraftCall, DraftRow
from drafthouse.routing.contract import RouteRow, new_route_state
from drafthouse.triton.codec.engine import pack_step
from drafthouse.triton.codec.envelope import Envelope, Tensors
from drafthouse.triton.codec.fusion import pack_draft
from drafthouse.triton.codec.routing import pack_route
from drafthouse.triton.schema import ENGINE, LEASE_SECRET, MESSAGE, messages_of
from drafthouse_client import Client, GenerateOptions
from e2e.support import eventually
from e2e.wire import grpc_generate, http_generate, http_post

PROMPT = "def add(a, b):"
FORM = re.compile(r"\b(INVALID_ARG|UNSUPPORTED|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL) field=(\S+)( value=.+?)?( allowed=.+)?$", re.S)


@dataclass(frozen=True)
class Case:
    name: str
    fields: dict[str, Any]
    blamed: str  # the field the message must name
    code: str = "INVALID_ARG"
    over_http: bool = True  # some values cannot be written in JSON
    parameters: dict[str, Any] = field(default_factory=dict)


def with_prompt(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - a request body
    return {"text_input": PROMPT, "max_tokens": 4, **fields}


CASES = [
    Case("neither text nor ids", {"max_tokens": 4}, "text_input"),
    Case("both text and ids", with_prompt(input_ids=[5, 6]), "text_input"),
    Case("empty prompt", with_prompt(text_input=""), "text_input"),
    Case("prompt too long", with_prompt(text_input="word " * 3000), "text_input"),
    Case("ids too long", {"input_ids": [7] * 600, "max_tokens": 4}, "input_ids"),
    Case("id outside the vocabulary", {"input_ids": [5, 1_000_000], "max_tokens": 4}, "input_ids"),
    Case("negative id", {"input_ids": [-1], "max_tokens": 4}, "input_ids"),
    Case("max_tokens 0", with_prompt(max_tokens=0), "max_tokens"),
    Case("max_tokens negative", with_prompt(max_tokens=-5), "max_tokens"),
    Case("max_tokens beyond the context", with_prompt(max_tokens=100_000), "max_tokens"),
    Case("min_tokens negative", with_prompt(min_tokens=-1), "min_tokens"),
    Case("min_tokens above max_tokens", with_prompt(min_tokens=5), "min_tokens"),
    Case("temperature NaN", with_prompt(temperature=float("nan")), "temperature"),
    Case("temperature infinite", with_prompt(temperature=float("inf")), "temperature"),
    Case("temperature negative", with_prompt(temperature=-0.5), "temperature"),
    Case("top_p 0", with_prompt(top_p=0.0), "top_p"),
    Case("top_p above 1", with_prompt(top_p=1.5), "top_p"),
    Case("top_p NaN", with_prompt(top_p=float("nan")), "top_p"),
    Case("top_k negative", with_prompt(top_k=-1), "top_k"),
    Case("unknown drafter", with_prompt(drafters=["code", "poetry"]), "drafters"),
    Case("num_draft_tokens negative", with_prompt(num_draft_tokens=-1), "num_draft_tokens"),
    Case("num_draft_tokens too many", with_prompt(num_draft_tokens=1000), "num_draft_tokens"),
    Case("deadline 0", with_prompt(deadline_ms=0), "deadline_ms"),
    Case("priority below 0", with_prompt(request_priority=-1), "request_priority"),
    Case("empty stop word", with_prompt(stop_words=["ok", ""]), "stop_words"),
    Case("empty bad word", with_prompt(bad_words=[""]), "bad_words"),
    Case("end_id outside the vocabulary", with_prompt(end_id=1_000_000), "end_id"),
    Case("repetition penalty", with_prompt(repetition_penalty=1.2), "repetition_penalty", "UNSUPPORTED"),
    Case("frequency penalty", with_prompt(frequency_penalty=0.1), "frequency_penalty", "UNSUPPORTED"),
    Case("presence penalty", with_prompt(presence_penalty=0.1), "presence_penalty", "UNSUPPORTED"),
    Case("length penalty", with_prompt(length_penalty=2.0), "length_penalty", "UNSUPPORTED"),
    Case("beam search", with_prompt(beam_width=4), "beam_width", "UNSUPPORTED"),
    Case("several sequences", with_prompt(num_return_sequences=2), "num_return_sequences", "UNSUPPORTED"),
    Case("guided decoding", with_prompt(guided_decoding_guide_type="json"), "guided_decoding_guide_type", "UNSUPPORTED"),
    Case("invalid UTF-8 prompt", with_prompt(text_input=b"ab\xff\xfe"), "text_input", over_http=False),
    Case("invalid UTF-8 stop word", with_prompt(stop_words=[b"\xc3("]), "stop_words", over_http=False),
    Case("misspelt input", with_prompt(), "temprature", "INVALID_ARG", parameters={"temprature": 1}),
]


@pytest.fixture(scope="module")
def client(server: Any) -> Any:  # noqa: ANN401
    with Client(server.grpc_address) as connection:
        yield connection


def assert_refused(errors: list[str], case: Case) -> None:
    assert len(errors) == 1, errors
    found = FORM.search(errors[0])
    assert found, errors[0]
    assert (found.group(1), found.group(2)) == (case.code, case.blamed)
    assert found.group(4), f"no allowed range: {errors[0]}"
    assert "Traceback" not in errors[0]
    assert '.py"' not in errors[0]


def engine_epochs(client: Client) -> dict[str, int]:
    return {name: engine["engine_epoch"] for name, engine in client.stats()["engines"].items()}


def assert_all_free(client: Client) -> None:
    """Soon: a rehearsal holds slots of its own, and a client has its answer before the engines hear of it."""

    def held() -> dict[str, int]:
        stats = client.stats()
        engines = {name: engine["slots_total"] - engine["slots_free"] for name, engine in stats["engines"].items()}
        return {**engines, **{name: int(stats[name]) for name in ("rehearsing", "running", "queue_len")}}

    assert eventually(lambda: not any(held().values())), held()


@pytest.mark.parametrize("case", [case for case in CASES if case.over_http], ids=lambda case: case.name)
@pytest.mark.parametrize("stream", [False, True], ids=["generate", "generate_stream"])
def test_http_refuses(server: Any, case: Case, stream: bool) -> None:  # noqa: ANN401
    status, answer = http_generate(server.http_url, {**case.fields, **case.parameters}, stream=stream)
    assert status >= 400
    assert answer.outputs == []
    assert_refused(answer.errors, case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_grpc_refuses(server: Any, case: Case) -> None:  # noqa: ANN401
    answer = grpc_generate(server.grpc_address, case.fields, case.parameters)
    assert answer.outputs == []
    assert answer.num_finals == 1
    assert_refused(answer.errors, case)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"text_input": 5, "max_tokens": 4}', b'{"text_input": "x", "max_tokens": "four"}', b'{"text_input": {"a": 1}}'],
    ids=["nothing", "cut off", "number as text", "text as number", "object as text"],
)
def test_what_triton_itself_rejects_leaks_nothing(server: Any, body: bytes) -> None:  # noqa: ANN401
    status, answer = http_generate(server.http_url, body)
    assert status >= 400
    assert "Traceback" not in answer.errors[0]


def test_others_in_the_batch_are_unharmed_and_every_slot_is_free(server: Any, client: Client) -> None:  # noqa: ANN401
    body = {"text_input": PROMPT, "max_tokens": 48, "return_num_output_tokens": True}
    _, alone = http_generate(server.http_url, body)
    texts: list[str] = []

    def work() -> None:
        texts.append(http_generate(server.http_url, body)[1].outputs[0]["text_output"])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for case in CASES[:12]:
        http_generate(server.http_url, {**case.fields, **case.parameters})
    for thread in threads:
        thread.join()
    assert texts == [alone.outputs[0]["text_output"]] * 3
    assert_all_free(client)


@pytest.mark.parametrize("path", ["/v2/repository/models/cosine/load", "/v2/repository/models/target/unload"])
def test_a_forged_control_call_is_forbidden(server: Any, path: str) -> None:  # noqa: ANN401
    status, _ = http_post(server.http_url, path, b"{}")
    assert status == 403


TOKENS = np.array([5], np.int32)
DRAFT_ROW = DraftRow(1, 0, TOKENS, 1, np.ones(5, np.float32))
NO_ROUNDS = np.zeros((5, 0), np.int32)
ROUTE_ROW = RouteRow(
    1, np.zeros(5, np.float32), new_route_state(5), NO_ROUNDS, NO_ROUNDS.astype(np.float32), NO_ROUNDS[0], np.ones(5, np.bool_)
)
FORGED: dict[str, Tensors] = {
    "target": pack_step(StepCall([StepRow(1, 0, TOKENS, 1)])),
    "drafter_code": pack_step(StepCall([StepRow(1, 0, TOKENS, 1)])),
    "fusion": pack_draft(DraftCall([DRAFT_ROW])),
    "router": pack_route([ROUTE_ROW]),
}
"""What each inner model would take if it came with the secret."""


@pytest.mark.parametrize("model", FORGED)
@pytest.mark.parametrize("secret", [b"", bytes(64), b"guess" * 13], ids=["none", "zeros", "guess"])
def test_a_forged_engine_call_changes_nothing(server: Any, client: Client, model: str, secret: bytes) -> None:  # noqa: ANN401
    epochs = engine_epochs(client)
    sections = {**FORGED[model], LEASE_SECRET.name: np.frombuffer(secret, np.uint8)}
    status, reply = post_message(server.http_url, model, Envelope(messages_of(model).call).seal(sections).tolist())
    assert status >= 400
    assert "field=lease_secret" in json.loads(reply)["error"]
    assert_all_free(client)
    assert engine_epochs(client) == epochs, "no engine died of it or started anew"


def test_forged_releases_do_not_touch_a_running_stream(server: Any, client: Client) -> None:  # noqa: ANN401
    """Uids are random, so these name no request; that each call is refused for its secret is what keeps a right guess out."""
    options = GenerateOptions(max_tokens=200, min_tokens=200)
    undisturbed = client.generate(PROMPT, options).output_ids
    epochs = engine_epochs(client)
    sections = {**pack_step(StepCall(()), range(1000)), LEASE_SECRET.name: np.zeros(64, np.uint8)}
    forged = Envelope(ENGINE.call).seal(sections).tolist()
    ids: list[int] = []
    num_forged = 0
    for chunk in client.stream(PROMPT, options):
        ids.extend(chunk.output_ids)
        if num_forged < 10:
            status, reply = post_message(server.http_url, "target", forged)
            assert status >= 400
            assert "field=lease_secret" in json.loads(reply)["error"]
            num_forged += 1
    assert num_forged == 10
    assert tuple(ids) == undisturbed
    assert engine_epochs(client) == epochs
    assert_all_free(client)


@pytest.mark.parametrize("message", [[], [0], [2**62] * 20, [-7] * 40], ids=["empty", "short", "huge", "negative"])
def test_nonsense_for_an_engine_is_refused(server: Any, client: Client, message: list[int]) -> None:  # noqa: ANN401
    status, reply = post_message(server.http_url, "target", message)
    assert status >= 400
    assert "Traceback" not in json.loads(reply)["error"]
    assert_all_free(client)


def post_message(http_url: str, model: str, message: list[int]) -> tuple[int, bytes]:
    tensor = {"name": MESSAGE.name, "shape": [len(message)], "datatype": "INT64", "data": message}
    return http_post(http_url, f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode())
