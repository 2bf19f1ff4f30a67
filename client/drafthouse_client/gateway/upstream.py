"""The streams from Triton behind one request: always streams, so that a client that goes away frees its slot whatever it asked for."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from drafthouse_client.aio import AsyncClient
from drafthouse_client.completion import Chunk
from drafthouse_client.gateway.translate import Ask, Plan


@dataclass
class Totals:
    """What a request has used so far; `add` is called with every chunk."""

    num_per_prompt: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    accepted_tokens: int = 0
    drafted_tokens: int = 0
    _counted_prompts: set[int] = field(default_factory=set)

    def add(self, index: int, chunk: Chunk) -> None:
        """Count a chunk of choice `index`."""
        self.completion_tokens += chunk.num_output_tokens
        prompt = index // self.num_per_prompt
        if chunk.num_input_tokens is not None and prompt not in self._counted_prompts:
            self._counted_prompts.add(prompt)
            self.prompt_tokens += chunk.num_input_tokens
        if chunk.perf is not None:
            self.accepted_tokens += chunk.perf.total_accepted_draft_tokens
            self.drafted_tokens += chunk.perf.total_draft_tokens

    def usage(self) -> dict[str, object]:
        """OpenAI's object. The target's own token that ends a verification is neither accepted nor rejected."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens_details": {
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.drafted_tokens - self.accepted_tokens,
            },
        }


async def chunks_of(client: AsyncClient, plan: Plan) -> AsyncGenerator[tuple[int, Chunk], None]:
    """The chunks of all choices as they come, each with its choice's index.

    Closing the generator cancels every stream. Nothing is read from Triton before its last chunk was taken: a client that
    reads slowly is waited for, through gRPC's flow control, and not buffered for. Raises ServerSideError.
    """
    if len(plan.asks) == 1:
        ask = plan.asks[0]
        async with aclosing(client.stream(ask.prompt, ask.options)) as stream:
            async for chunk in stream:
                yield ask.index, chunk
        return
    async with aclosing(_merged(client, plan.asks)) as merged:
        async for item in merged:
            yield item


async def _merged(client: AsyncClient, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, Chunk], None]:
    arrived: asyncio.Queue[tuple[int, Chunk] | Exception | None] = asyncio.Queue(maxsize=1)

    async def pump(ask: Ask) -> None:
        try:
            async with aclosing(client.stream(ask.prompt, ask.options)) as stream:
                async for chunk in stream:
                    await arrived.put((ask.index, chunk))
            await arrived.put(None)
        except Exception as error:  # noqa: BLE001 - raised again by the reader
            await arrived.put(error)

    pumps = [asyncio.create_task(pump(ask)) for ask in asks]
    try:
        async for item in _until_all_ended(arrived, len(pumps)):
            yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _until_all_ended(arrived: asyncio.Queue[tuple[int, Chunk] | Exception | None], num_open: int) -> AsyncIterator[tuple[int, Chunk]]:
    while num_open:
        item = await arrived.get()
        if item is None:
            num_open -= 1
        elif isinstance(item, Exception):
            raise item
        else:
            yield item
