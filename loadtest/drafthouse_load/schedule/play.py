"""Sends requests when they are due, whatever became of the ones before, and notes when their answers arrive."""

import asyncio
import time
from collections.abc import Callable, Sequence

from drafthouse_client import AsyncClient, GenerateOptions
from drafthouse_client.completion import Chunk, join_chunks
from drafthouse_load.schedule.requests import PlannedRequest, ServedRequest

_TIMEOUT_S = 3600.0
_DEADLINE_MS = 3_600_000  # of the server: nobody is refused for waiting long
Options = Callable[[PlannedRequest], GenerateOptions]


def sampled(max_tokens: int, temperature: float) -> Options:
    """Options that let a text end by itself, with the request's own seed."""
    return lambda planned: GenerateOptions(
        max_tokens=max_tokens, temperature=temperature, seed=planned.seed, exclude_input_in_output=True, deadline_ms=_DEADLINE_MS
    )


def play_open(
    url: str, planned: Sequence[PlannedRequest], due_s: Sequence[float], options: Options, advance: Callable[[], None]
) -> list[ServedRequest]:
    """Open loop: each request at its time. ``advance`` hears of each answer. Raises ServerSideError when one fails."""
    return asyncio.run(_open(url, planned, due_s, options, advance))


def play_closed(url: str, planned: Sequence[PlannedRequest], concurrency: int, options: Options) -> list[ServedRequest]:
    """Closed loop: as many clients, each of which sends the next request when it has an answer. Raises ServerSideError."""
    return asyncio.run(_closed(url, planned, concurrency, options))


async def _open(
    url: str, planned: Sequence[PlannedRequest], due_s: Sequence[float], options: Options, advance: Callable[[], None]
) -> list[ServedRequest]:
    async with AsyncClient(url, timeout_s=_TIMEOUT_S) as client:
        began_s = time.perf_counter()

        async def one(request: PlannedRequest, at_s: float) -> ServedRequest:
            await asyncio.sleep(began_s + at_s - time.perf_counter())
            served = await _serve(client, request, options(request), began_s, at_s)
            advance()
            return served

        return list(await asyncio.gather(*(one(request, at_s) for request, at_s in zip(planned, due_s, strict=True))))


async def _closed(url: str, planned: Sequence[PlannedRequest], concurrency: int, options: Options) -> list[ServedRequest]:
    remaining = iter(planned)
    served: list[ServedRequest] = []
    async with AsyncClient(url, timeout_s=_TIMEOUT_S) as client:
        began_s = time.perf_counter()

        async def worker() -> None:
            for request in remaining:
                served.append(await _serve(client, request, options(request), began_s, time.perf_counter() - began_s))

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return served


async def _serve(client: AsyncClient, planned: PlannedRequest, options: GenerateOptions, began_s: float, due_s: float) -> ServedRequest:
    sent_s = time.perf_counter() - began_s
    chunks, event_s = list[Chunk](), list[float]()
    async for chunk in client.stream(planned.prompt, options):
        chunks.append(chunk)
        if chunk.num_output_tokens:
            event_s.append(time.perf_counter() - began_s)
    counts = tuple(chunk.num_output_tokens for chunk in chunks if chunk.num_output_tokens)
    completion = join_chunks(chunks, time.perf_counter() - began_s - sent_s)
    return ServedRequest(planned, due_s, sent_s, tuple(event_s), counts, completion)
