"""The answers: both dialects, streamed and whole, in the shapes that the OpenAPI description promises."""

from collections.abc import Iterator
from typing import Any

import pytest

from drafthouse_client.gateway import answers
from drafthouse_client.gateway.settings import GatewaySettings
from fakes.gateway_server import TOKENIZER, call, gateway, logged_chunks, metric
from fakes.triton_grpc import FakeTriton, error, final, response, scripted, serving, two_chunks

COMPLETION: dict[str, Any] = {"model": "cosine", "prompt": "hello"}
CHAT: dict[str, Any] = {"model": "cosine", "messages": [{"role": "user", "content": "hello"}]}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "completion_tokens_details": {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 2},
}


def settings(grpc_url: str) -> GatewaySettings:
    return GatewaySettings(grpc_url=grpc_url, tokenizer_dir=TOKENIZER)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeTriton(scripted(*two_chunks()))) as grpc_url, gateway(settings(grpc_url)) as found:
        yield found


@pytest.fixture(scope="module")
def logged_url() -> Iterator[str]:
    with serving(FakeTriton(scripted(*logged_chunks()))) as grpc_url, gateway(settings(grpc_url)) as found:
        yield found


def test_a_whole_completion(url: str) -> None:
    answer = call(url, "/v1/completions", COMPLETION).json
    assert answer["choices"] == [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == USAGE
    assert (answer["object"], answer["model"]) == ("text_completion", "cosine")
    answers.CompletionAnswer.model_validate(answer)


def test_a_streamed_completion_is_the_same_in_parts(url: str) -> None:
    answer = call(url, "/v1/completions", COMPLETION | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert [event["choices"][0]["text"] for event in answer.events] == ["ab", "c"]
    assert [event["choices"][0]["finish_reason"] for event in answer.events] == [None, "length"]
    assert len({event["id"] for event in answer.events}) == 1
    for event in answer.events:
        answers.CompletionAnswer.model_validate(event)


def test_a_whole_chat(url: str) -> None:
    answer = call(url, "/v1/chat/completions", CHAT).json
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "abc", "refusal": None}
    assert (choice["finish_reason"], answer["usage"], answer["object"]) == ("length", USAGE, "chat.completion")
    answers.ChatAnswer.model_validate(answer)


def test_a_streamed_chat_says_first_whose_words_they_are(url: str) -> None:
    events = call(url, "/v1/chat/completions", CHAT | {"stream": True}).events
    assert [event["choices"][0]["delta"] for event in events] == [{"role": "assistant", "content": "ab"}, {"content": "c"}]
    for event in events:
        answers.ChatChunk.model_validate(event)


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_usage_comes_last_where_it_is_asked_for(url: str, path: str, body: dict[str, Any]) -> None:
    events = call(url, path, body | {"stream": True, "stream_options": {"include_usage": True}}).events
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], USAGE)
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert "usage" not in call(url, path, body | {"stream": True}).events[0]


def test_several_choices_share_one_prompt_in_the_usage(url: str) -> None:
    answer = call(url, "/v1/completions", COMPLETION | {"n": 2, "prompt": ["a", "b"]}).json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (6, 16)


def test_streamed_choices_are_told_apart(url: str) -> None:
    events = call(url, "/v1/chat/completions", CHAT | {"n": 3, "stream": True}).events
    texts = {index: "" for index in range(3)}
    for event in events:
        (choice,) = event["choices"]
        assert ("role" in choice["delta"]) == (texts[choice["index"]] == "")
        texts[choice["index"]] += choice["delta"]["content"]
    assert set(texts.values()) == {"abc"}


def test_log_probabilities_of_a_chat(logged_url: str) -> None:
    answer = call(logged_url, "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 0}).json
    content = answer["choices"][0]["logprobs"]["content"]
    assert [token["logprob"] for token in content] == [-0.5, -1.0, -2.0]
    assert all(bytes(token["bytes"]).decode(errors="replace") == token["token"] for token in content)
    answers.ChatAnswer.model_validate(answer)


def test_log_probabilities_of_a_completion_are_the_same_streamed(logged_url: str) -> None:
    whole = call(logged_url, "/v1/completions", COMPLETION | {"logprobs": 0}).json["choices"][0]["logprobs"]
    events = call(logged_url, "/v1/completions", COMPLETION | {"logprobs": 0, "stream": True}).events
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [item for event in events for item in event["choices"][0]["logprobs"][name]] == whole[name]
    assert whole["text_offset"] == [sum(map(len, whole["tokens"][:count])) for count in range(3)]


def test_provenance_names_the_drafter_behind_each_token(logged_url: str) -> None:
    answer = call(logged_url, "/v1/completions", COMPLETION | {"provenance": True}).json
    provenance = answer["choices"][0]["provenance"]
    assert (provenance["token_ids"], provenance["sources"]) == ([5, 6, 7], [None, "math", "code"])
    assert len(provenance["tokens"]) == 3
    answers.CompletionAnswer.model_validate(answer)


def test_an_error_in_mid_stream_is_an_event_and_no_done_follows() -> None:
    fake = FakeTriton(scripted(two_chunks()[0], error("UNAVAILABLE field=server value=gone")))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url:
        answer = call(url, "/v1/completions", COMPLETION | {"stream": True})
        first, second = answer.events
        assert answer.status == 200
        assert first["choices"][0]["text"] == "ab"
        assert second["error"]["code"] == "unavailable"
        assert b"[DONE]" not in answer.body
        assert call(url, "/v1/completions", COMPLETION).status == 503, "a whole answer is not cut short in silence"


def test_a_chunk_without_anything_to_tell_is_not_sent() -> None:
    fake = FakeTriton(scripted(response(text_output="", output_ids=(1,)), response(text_output="x", finish_reason="stop"), final()))
    with serving(fake) as grpc_url, gateway(GatewaySettings(grpc_url=grpc_url)) as url:
        events = call(url, "/v1/completions", COMPLETION | {"stream": True}).events
    assert [event["choices"][0]["text"] for event in events] == ["x"]


def test_what_was_used_is_counted(url: str) -> None:
    before = {name: metric(url, f"drafthouse_gateway_{name}_total") for name in ("generation_tokens", "prompt_tokens")}
    requests = 'drafthouse_gateway_requests_total{endpoint="/v1/completions",status="200"}'
    answered = metric(url, requests)
    call(url, "/v1/completions", COMPLETION)
    assert metric(url, "drafthouse_gateway_generation_tokens_total") == before["generation_tokens"] + 4
    assert metric(url, "drafthouse_gateway_prompt_tokens_total") == before["prompt_tokens"] + 3
    assert metric(url, requests) == answered + 1
    assert metric(url, "drafthouse_gateway_open_requests") == 0
