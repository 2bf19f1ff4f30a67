"""What of OpenAI's API reaches Triton, and what is refused, by which name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from drafthouse.core.errors import DrafthouseError, invalid
from drafthouse_client.gateway.settings import GatewaySettings
from drafthouse_client.gateway.translate import choice_seed
from drafthouse_client.gateway.unsupported import UNSUPPORTED
from fakes.gateway_server import TOKENIZER, Answer, call, gateway
from fakes.triton_grpc import FakeTriton, error, scripted, serving, two_chunks

COMPLETION: dict[str, Any] = {"model": "cosine", "prompt": "hello"}
CHAT: dict[str, Any] = {"model": "cosine", "messages": [{"role": "user", "content": "hello"}]}
PATHS = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}


@dataclass
class Served:
    """A gateway before a Triton that answers every request with two chunks."""

    fake: FakeTriton
    url: str

    def ask(self, body: dict[str, Any]) -> Answer:
        return call(self.url, PATHS["prompt" if "prompt" in body else "messages"], body)

    def sent(self, body: dict[str, Any]) -> dict[str, list[object]]:
        """What Triton is asked for one choice."""
        self.fake.seen.clear()
        answer = self.ask(body)
        assert answer.status == 200, answer.body
        (seen,) = self.fake.seen
        return seen


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    fake = FakeTriton(scripted(*two_chunks()))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url, tokenizer_dir=TOKENIZER)) as url:
        yield Served(fake, url)


def test_a_completion_becomes_a_stream_with_openais_defaults(served: Served) -> None:
    sent = served.sent(COMPLETION)
    assert sent["text_input"] == ["hello"]
    assert (sent["stream"], sent["max_tokens"], sent["temperature"]) == ([True], [16], [1.0])
    assert sent["exclude_input_in_output"] == [True]
    assert "seed" not in sent
    assert "num_draft_tokens" not in sent


def test_every_parameter_reaches_the_input_it_stands_for(served: Served) -> None:
    own = {"num_draft_tokens": 0, "drafters": ["code", "math"], "priority": 7, "deadline_ms": 900, "top_k": 5, "min_tokens": 2}
    body = (
        COMPLETION
        | own
        | {"max_tokens": 9, "temperature": 0, "top_p": 0.5, "seed": 3, "stop": ["a", "b"], "user": "me", "ignore_eos": True}
    )
    sent = served.sent(body)
    assert {name: sent[name] for name in own if name != "priority"} == {
        name: value if isinstance(value, list) else [value] for name, value in own.items() if name != "priority"
    }
    assert sent["request_priority"] == [7]
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["seed"]) == ([9], [0.0], [0.5], [3])
    assert (sent["stop_words"], sent["end_id"]) == (["a", "b"], [-1])


def test_a_chat_has_no_limit_of_tokens_of_its_own(served: Served) -> None:
    sent = served.sent(CHAT)
    assert "max_tokens" not in sent
    assert served.sent(CHAT | {"max_completion_tokens": 5})["max_tokens"] == [5]
    assert served.sent(CHAT | {"max_tokens": 6})["max_tokens"] == [6]


def test_messages_are_joined_where_the_target_has_no_template(served: Served) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "one"}, {"role": "user", "content": parts}]
    assert served.sent({"model": "cosine", "messages": messages})["text_input"] == ["one\nab"]


def test_prompts_may_be_ids_and_several(served: Served) -> None:
    assert served.sent(COMPLETION | {"prompt": [3, 1, 4]})["input_ids"] == [3, 1, 4]
    served.fake.seen.clear()
    served.ask(COMPLETION | {"prompt": [[1], [2, 3]]})
    assert sorted(tuple(seen["input_ids"]) for seen in served.fake.seen) == [(1,), (2, 3)]


def test_a_whole_number_may_be_written_with_a_point(served: Served) -> None:
    sent = served.sent(COMPLETION | {"prompt": [3.0, 1.0], "max_tokens": 5.0, "temperature": 1.0})
    assert (sent["input_ids"], sent["max_tokens"]) == ([3, 1], [5])
    assert served.ask(COMPLETION | {"max_tokens": 5.5}).json["error"]["param"] == "max_tokens"


def test_a_negative_seed_is_a_seed(served: Served) -> None:
    assert served.sent(COMPLETION | {"seed": -1})["seed"] == [2**64 - 1]


def test_choices_have_seeds_of_their_own_and_the_first_has_the_requests(served: Served) -> None:
    served.fake.seen.clear()
    served.ask(COMPLETION | {"seed": 5, "n": 3})
    seeds = {seen["seed"][0] for seen in served.fake.seen}
    assert seeds == {5, choice_seed(5, 1), choice_seed(5, 2)}
    assert len(seeds) == 3


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_an_unsupported_parameter_is_refused_by_name_and_accepted_where_it_asks_for_nothing(served: Served, name: str) -> None:
    refused = served.ask(CHAT | {name: "something"})
    assert refused.status == 400
    details = refused.json["error"]
    assert (details["param"], details["code"], details["type"]) == (name, "unsupported_parameter", "invalid_request_error")
    assert details["message"].startswith(f"UNSUPPORTED field={name}")
    for neutral in (*UNSUPPORTED[name], None):
        assert served.ask(CHAT | {name: neutral}).status == 200


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"seed": 10**21}, "seed", "invalid_value"),
        ({"drafter": "code"}, "drafter", "unknown_parameter"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"include_usages": True}}, "stream_options.include_usages", "unknown_parameter"),
        ({"frequency_penalty": False}, "frequency_penalty", "unsupported_parameter"),
    ],
)
@pytest.mark.parametrize("body", [COMPLETION, CHAT], ids=["completion", "chat"])
def test_what_is_wrong_is_named(served: Served, body: dict[str, Any], changed: dict[str, Any], param: str, code: str) -> None:
    answer = served.ask(body | changed)
    assert answer.status == 400
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (param, code)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (COMPLETION | {"logprobs": 2}, "logprobs", "unsupported_parameter"),
        (COMPLETION | {"logprobs": 0, "echo": True}, "echo", "unsupported_parameter"),
        (COMPLETION | {"prompt": ["a"] * 9}, "prompt", "invalid_value"),
        (COMPLETION | {"prompt": ""}, "prompt", "invalid_value"),
        (COMPLETION | {"prompt": {"a": 1}}, "prompt", "invalid_value"),
        ({"prompt": "x"}, "model", "missing_required_parameter"),
        (CHAT | {"top_logprobs": 1, "logprobs": True}, "top_logprobs", "unsupported_parameter"),
        (CHAT | {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        (CHAT | {"messages": []}, "messages", "invalid_value"),
        (CHAT | {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "invalid_value"),
        (CHAT | {"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        (
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages.0.content",
            "invalid_value",
        ),
    ],
)
def test_what_is_wrong_with_one_kind_of_request_is_named(served: Served, body: dict[str, Any], param: str, code: str) -> None:
    answer = served.ask(body)
    assert answer.status == 400, answer.body
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (param, code)


def test_another_model_is_not_found(served: Served) -> None:
    answer = served.ask(COMPLETION | {"model": "gpt"})
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert call(served.url, "/v1/models/gpt").status == 404
    assert call(served.url, "/v1/models/cosine").json["id"] == "cosine"
    assert [model["id"] for model in call(served.url, "/v1/models").json["data"]] == ["cosine"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model": NaN}', b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"\\ud800": 1}'],
)
def test_what_is_no_request_is_a_400_in_openais_shape(served: Served, body: bytes) -> None:
    answer = call(served.url, "/v1/completions", body)
    assert answer.status == 400
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_a_page_cannot_send_json_as_plain_text(served: Served) -> None:
    """Browsers send text/plain to other origins without asking first."""
    assert call(served.url, "/v1/completions", COMPLETION, headers={"content-type": "text/plain"}).status == 400


def test_other_paths_and_methods_answer_in_openais_shape(served: Served) -> None:
    assert (call(served.url, "/v2").status, call(served.url, "/v2").json["error"]["code"]) == (404, "not_found")
    assert call(served.url, "/v1/completions").json["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("refusal", "status", "param", "code"),
    [
        (invalid("text_input", "900 tokens", "1 to 447 tokens"), 400, "prompt", "context_length_exceeded"),
        (invalid("stop_words", "x", "words of 1 to 128 bytes"), 400, "stop", "invalid_value"),
        (invalid("request_priority", -1, "0 to 9"), 400, "priority", "invalid_value"),
        ("UNAVAILABLE field=queue value=128 allowed=fewer", 503, None, "unavailable"),
        ("DEADLINE_EXCEEDED field=deadline_ms value=3 allowed=later", 504, None, "deadline_exceeded"),
        ("INTERNAL field=request value=incident 12", 500, None, "internal"),
        ("Traceback: something at 10.0.0.1", 500, None, "internal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_servers_refusals_are_translated(
    refusal: DrafthouseError | str, status: int, param: str | None, code: str, stream: bool
) -> None:
    fake = FakeTriton(scripted(error(str(refusal))))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url:
        answer = call(url, "/v1/completions", COMPLETION | {"stream": stream})
    assert answer.status == status
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (param, code)
    assert "text_input" not in answer.json["error"]["message"]
    assert "10.0.0.1" not in answer.json["error"]["message"]
    assert (answer.headers.get("x-should-retry") == "false") == (status == 504)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_a_server_that_is_not_there_is_503_and_not_ready() -> None:
    with serving(FakeTriton(scripted())) as gone:
        pass
    with gateway(GatewaySettings(grpc_url=gone)) as url:
        answer = call(url, "/v1/completions", COMPLETION)
        assert (answer.status, answer.json["error"]["code"]) == (503, "unavailable")
        assert gone not in answer.json["error"]["message"]
        assert (call(url, "/ready").status, call(url, "/health").status) == (503, 200)


def test_without_a_tokenizer_log_probabilities_are_refused_by_name() -> None:
    with serving(FakeTriton(scripted())) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url:
        answer = call(url, "/v1/chat/completions", CHAT | {"logprobs": True})
    assert (answer.status, answer.json["error"]["param"]) == (400, "logprobs")
