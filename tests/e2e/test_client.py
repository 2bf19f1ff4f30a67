"""The Python client against a real server."""

import asyncio
import time
from contextlib import aclosing, closing

import pytest

from drafthouse.core.errors import ErrorCode
from drafthouse.launcher import TritonServer
from drafthouse_client import AsyncClient, Client, GenerateOptions, ServerSideError
from drafthouse_load.stats import ServerStats, parse_stats, read_when_idle

PROMPT = "def add(a, b):"
GREEDY = GenerateOptions(max_tokens=12, temperature=0.0)
LONG = GenerateOptions(max_tokens=400, min_tokens=400, temperature=0.0)
UNTIL_FREE_S = 20.0


def settled(client: Client) -> ServerStats:
    """The statistics once nothing runs and every slot is free, or as they are when that does not come about."""
    deadline_s = time.monotonic() + UNTIL_FREE_S
    stats = read_when_idle(client)
    while stats.leaked_slots and time.monotonic() < deadline_s:
        time.sleep(0.05)
        stats = parse_stats(client.stats())
    return stats


def finished_and_cancelled(client: Client) -> tuple[int, int]:
    """How many requests ended by themselves so far, and how many because their client went away."""
    stats = client.stats()
    return stats["finished"], stats["failed"].get("CANCELLED", 0)


def test_generate_and_stream_give_the_same_answer(server: TritonServer) -> None:
    with Client(server.grpc_address) as client:
        whole = client.generate(PROMPT, GREEDY)
        chunks = list(client.stream(PROMPT, GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.output_ids) == whole.output_ids
    assert 1 <= whole.num_output_tokens <= 12
    assert whole.num_output_tokens == len(whole.output_ids) == len(whole.token_sources)
    assert whole.finish_reason in ("stop", "length")
    assert whole.num_input_tokens is not None
    assert whole.num_input_tokens > 0
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert whole.perf is not None
    assert (
        whole.perf.arrival_time_ns <= whole.perf.first_scheduled_time_ns <= whole.perf.first_token_time_ns <= whole.perf.last_token_time_ns
    )
    assert whole.perf.total_accepted_draft_tokens == sum(source >= 0 for source in whole.token_sources)


def test_the_async_client_gives_the_same_answer_for_many_at_once(server: TritonServer) -> None:
    async def run() -> list[str]:
        async with AsyncClient(server.grpc_address) as client:
            completions = await asyncio.gather(*(client.generate(PROMPT, GREEDY) for _ in range(4)))
            return [completion.text for completion in completions]

    with Client(server.grpc_address) as client:
        assert set(asyncio.run(run())) == {client.generate(PROMPT, GREEDY).text}


def test_speculation_can_be_switched_off_and_changes_no_text(server: TritonServer) -> None:
    with Client(server.grpc_address) as client:
        on = client.generate(PROMPT, GREEDY)
        off = client.generate(PROMPT, GenerateOptions(max_tokens=12, temperature=0.0, num_draft_tokens=0))
    assert off.output_ids == on.output_ids
    assert set(off.token_sources) == {-1}
    assert off.perf is not None
    assert off.perf.total_draft_tokens == 0


def test_log_probabilities_come_one_per_token(server: TritonServer) -> None:
    with Client(server.grpc_address) as client:
        completion = client.generate(PROMPT, GenerateOptions(max_tokens=6, temperature=0.0, return_log_probs=True))
    assert len(completion.log_probs) == completion.num_output_tokens
    assert all(value <= 0 for value in completion.log_probs)


def test_sources_count_the_drafters_that_the_server_names(server: TritonServer) -> None:
    with Client(server.grpc_address) as client:
        drafters = client.drafters()
        completion = client.generate(PROMPT, GenerateOptions(max_tokens=12, temperature=0.0, drafters=(drafters[0],)))
    assert len(drafters) > 1
    assert set(completion.token_sources) <= {-1, 0}


def test_a_refusal_carries_code_and_field(server: TritonServer) -> None:
    with Client(server.grpc_address) as client, pytest.raises(ServerSideError) as caught:
        client.generate(PROMPT, GenerateOptions(max_tokens=4, drafters=("nobody",)))
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID_ARG, "drafters")


def test_closing_a_stream_frees_its_slots(server: TritonServer) -> None:
    with Client(server.grpc_address) as client:
        finished, cancelled = finished_and_cancelled(client)
        with closing(client.stream(PROMPT, LONG)) as stream:
            next(stream)
        stats = settled(client)
        assert finished_and_cancelled(client) == (finished, cancelled + 1), "it was cut short, it did not run to its end"
    assert stats.idle
    assert stats.leaked_slots == {}


def test_closing_an_async_stream_frees_its_slots(server: TritonServer) -> None:
    async def run() -> None:
        async with AsyncClient(server.grpc_address) as client, aclosing(client.stream(PROMPT, LONG)) as stream:
            await anext(stream)

    with Client(server.grpc_address) as client:
        finished, cancelled = finished_and_cancelled(client)
        asyncio.run(run())
        stats = settled(client)
        assert finished_and_cancelled(client) == (finished, cancelled + 1), "it was cut short, it did not run to its end"
    assert stats.idle
    assert stats.leaked_slots == {}


def test_the_server_says_what_it_is(server: TritonServer) -> None:
    with Client(server.grpc_address) as client:
        assert client.ready()
        assert client.server_version().startswith("2.")
        stats = parse_stats(client.stats())
    assert stats.mode == "cosine"
    assert stats.precision in ("fp32", "int8")
    assert "target" in stats.slots_total
