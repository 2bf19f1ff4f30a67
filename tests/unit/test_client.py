"""The Python client against an in-process server that speaks Triton's stream protocol."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing, closing

import pytest

from drafthouse.core.errors import ErrorCode, invalid
from drafthouse_client import AsyncClient, Chunk, Client, Completion, GenerateOptions, ServerSideError
from drafthouse_client.completion import join_chunks
from drafthouse_client.errors import parse_error
from fakes.triton_grpc import FakeTriton, endless, error, final, response, scripted, serving, two_chunks

Generate = Callable[[str, str, GenerateOptions], Completion]
Stream = Callable[[str, str, GenerateOptions], list[Chunk]]


def _generate(url: str, prompt: str, options: GenerateOptions) -> Completion:
    with Client(url) as client:
        return client.generate(prompt, options)


def _generate_async(url: str, prompt: str, options: GenerateOptions) -> Completion:
    async def run() -> Completion:
        async with AsyncClient(url) as client:
            return await client.generate(prompt, options)

    return asyncio.run(run())


def _stream(url: str, prompt: str, options: GenerateOptions) -> list[Chunk]:
    with Client(url) as client:
        return list(client.stream(prompt, options))


def _stream_async(url: str, prompt: str, options: GenerateOptions) -> list[Chunk]:
    async def run() -> list[Chunk]:
        async with AsyncClient(url) as client:
            return [chunk async for chunk in client.stream(prompt, options)]

    return asyncio.run(run())


BOTH_GENERATE = pytest.mark.parametrize("generate", [_generate, _generate_async])
BOTH_STREAM = pytest.mark.parametrize("stream", [_stream, _stream_async])


@BOTH_GENERATE
def test_a_completion_joins_its_chunks(generate: Generate) -> None:
    with serving(FakeTriton(scripted(*two_chunks()))) as url:
        completion = generate(url, "hello", GenerateOptions())
    assert completion.text == "abc"
    assert completion.output_ids == (5, 6, 7, 8)
    assert completion.token_sources == (-1, 0, -1, -1)
    assert (completion.num_input_tokens, completion.num_output_tokens) == (3, 4)
    assert completion.log_probs == (-0.5, -0.25)
    assert completion.finish_reason == "length"
    assert completion.perf is not None
    assert (completion.perf.acceptance_rate, completion.perf.total_draft_tokens) == (0.5, 4)
    assert completion.perf.server_ttft_s == pytest.approx(0.02)
    assert completion.perf.queued_s == pytest.approx(0.001)


@BOTH_STREAM
def test_a_stream_yields_chunks_in_order(stream: Stream) -> None:
    with serving(FakeTriton(scripted(*two_chunks()))) as url:
        chunks = stream(url, "hello", GenerateOptions())
    assert [chunk.text for chunk in chunks] == ["ab", "c"]
    assert [chunk.finish_reason for chunk in chunks] == [None, "length"]
    assert chunks[0].perf is None
    assert chunks[1].perf is not None


@BOTH_GENERATE
def test_only_what_was_set_is_sent(generate: Generate) -> None:
    fake = FakeTriton(scripted(*two_chunks()))
    always = {
        "max_tokens": [64],
        "stream": [False],
        "return_log_probs": [False],
        "return_num_input_tokens": [True],
        "return_num_output_tokens": [True],
        "return_finish_reason": [True],
        "return_perf_metrics": [True],
    }
    options = GenerateOptions(
        temperature=0.0, seed=2**64 - 1, num_draft_tokens=0, drafters=("code", "math"), stop_words=("é\n",), timeout_s=9.0
    )
    with serving(fake) as url:
        generate(url, "hé", GenerateOptions())
        generate(url, "", options)
    assert fake.seen[0] == {"text_input": ["hé"]} | always
    set_ones = {"temperature": [0.0], "seed": [2**64 - 1], "num_draft_tokens": [0], "drafters": ["code", "math"], "stop_words": ["é\n"]}
    assert fake.seen[1] == {"text_input": [""]} | always | set_ones


def test_token_ids_are_sent_instead_of_text() -> None:
    fake = FakeTriton(scripted(*two_chunks()))
    with serving(fake) as url, Client(url) as client:
        client.generate([3, 1, 4])
    assert fake.seen[0]["input_ids"] == [3, 1, 4]
    assert "text_input" not in fake.seen[0]


@BOTH_GENERATE
def test_the_servers_refusal_keeps_code_and_field(generate: Generate) -> None:
    refusal = str(invalid("temperature", -1.0, "finite number >= 0"))
    with serving(FakeTriton(scripted(error(refusal)))) as url, pytest.raises(ServerSideError) as caught:
        generate(url, "x", GenerateOptions())
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID_ARG, "temperature")
    assert caught.value.message == refusal


@BOTH_GENERATE
def test_an_unreachable_server_is_unavailable(generate: Generate) -> None:
    with serving(FakeTriton(scripted())) as url:
        pass
    with pytest.raises(ServerSideError) as caught:
        generate(url, "x", GenerateOptions(timeout_s=5.0))
    assert caught.value.code is ErrorCode.UNAVAILABLE


@BOTH_GENERATE
def test_a_number_that_does_not_fit_is_refused_before_sending(generate: Generate) -> None:
    fake = FakeTriton(scripted(*two_chunks()))
    with serving(fake) as url, pytest.raises(ServerSideError) as caught:
        generate(url, "x", GenerateOptions(seed=-1))
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID_ARG, "seed")
    assert fake.seen == []


@BOTH_STREAM
def test_a_slow_answer_ends_in_deadline_exceeded(stream: Stream) -> None:
    with serving(FakeTriton(endless(response(text_output="x")))) as url, pytest.raises(ServerSideError) as caught:
        stream(url, "x", GenerateOptions(timeout_s=0.2))
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED


@BOTH_STREAM
def test_a_stream_without_its_final_response_is_an_error(stream: Stream) -> None:
    with serving(FakeTriton(scripted(response(text_output="x")))) as url, pytest.raises(ServerSideError) as caught:
        stream(url, "x", GenerateOptions())
    assert caught.value.code is ErrorCode.UNAVAILABLE


def test_closing_the_generator_cancels_the_request() -> None:
    fake = FakeTriton(endless(response(text_output="x")))
    with serving(fake) as url, Client(url) as client:
        with closing(client.stream("x")) as stream:
            assert next(stream).text == "x"
        assert fake.cancelled.wait(timeout=10)


def test_closing_the_async_generator_cancels_the_request() -> None:
    fake = FakeTriton(endless(response(text_output="x")))

    async def run(url: str) -> bool:
        async with AsyncClient(url) as client:
            async with aclosing(client.stream("x")) as stream:
                assert (await anext(stream)).text == "x"
            return await asyncio.to_thread(fake.cancelled.wait, 10)

    with serving(fake) as url:
        assert asyncio.run(run(url))


def test_one_client_carries_streams_at_once() -> None:
    with serving(FakeTriton(scripted(*two_chunks()))) as url, Client(url) as client:
        first, second = client.stream("x"), client.stream("y")
        texts = [next(first).text, next(second).text, next(first).text, next(second).text]
        assert list(first) == []
        assert list(second) == []
    assert texts == ["ab", "ab", "c", "c"]


def test_stats_and_drafters() -> None:
    with serving(FakeTriton(scripted(response(stats='{"mode": "cosine", "rounds": 3}'), final()))) as url:
        with Client(url) as client:
            assert client.stats() == {"mode": "cosine", "rounds": 3}
            assert client.drafters() == ("code", "math")
            assert client.ready()
            assert client.server_version() == "0.0.1"

        async def run() -> tuple[dict[str, object], tuple[str, ...], bool]:
            async with AsyncClient(url) as client:
                return await client.stats(), await client.drafters(), await client.ready()

        assert asyncio.run(run()) == ({"mode": "cosine", "rounds": 3}, ("code", "math"), True)


def test_a_model_without_statistics_is_named() -> None:
    with serving(FakeTriton(scripted(final()))) as url, Client(url) as client, pytest.raises(ServerSideError) as caught:
        client.stats()
    assert caught.value.field == "stats_request"


def test_a_server_that_is_gone_is_not_ready() -> None:
    with serving(FakeTriton(scripted())) as url:
        pass
    with Client(url, timeout_s=2.0) as client:
        assert not client.ready()


@pytest.mark.parametrize(
    ("sources", "verifications", "tokens_each"),
    [
        ((), 0, 0.0),
        ((-1,), 0, 0.0),  # the prefill's token alone
        ((-1, 0, 0, -1, -1), 2, 2.0),
        ((-1, 0, -1, 1, 1), 2, 2.0),  # cut short among accepted draft tokens
    ],
)
def test_verifications_are_read_off_the_sources(sources: tuple[int, ...], verifications: int, tokens_each: float) -> None:
    completion = join_chunks([Chunk(text="", output_ids=sources, token_sources=sources)], duration_s=1.0)
    assert (completion.num_verifications, completion.tokens_per_verification) == (verifications, tokens_each)


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        ("INVALID_ARG field=top_p value=2.0 allowed=(0, 1]", ErrorCode.INVALID_ARG, "top_p"),
        ("in request 7: UNAVAILABLE field=queue value=64 allowed=< 64", ErrorCode.UNAVAILABLE, "queue"),
        ("INVALID_ARG field=drafters value='UNSUPPORTED field=x' allowed=code", ErrorCode.INVALID_ARG, "drafters"),
        ("Request for unknown model: 'cosine' is not found", ErrorCode.INTERNAL, ""),
        ("", ErrorCode.INTERNAL, ""),
    ],
)
def test_error_messages_are_read(message: str, code: ErrorCode, field: str) -> None:
    parsed = parse_error(message)
    assert (parsed.code, parsed.field, parsed.message) == (code, field, message)
