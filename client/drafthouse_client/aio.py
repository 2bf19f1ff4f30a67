"""The asyncio client: the same calls as `drafthouse_client.client.Client`, awaited."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from drafthouse_client import wire
from drafthouse_client.client import (
    CHANNEL_OPTIONS,
    DEFAULT_MODEL,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    drafters_of,
    parse_stats,
    stream_cut_short,
)
from drafthouse_client.completion import Chunk, Completion, GenerateOptions, Prompt, join_chunks
from drafthouse_client.errors import ServerSideError, from_rpc_error
from drafthouse_client.events import Event, EventMaker
from drafthouse_client.retry import Attempts, Retry

_DEFAULT_OPTIONS = GenerateOptions()


class AsyncClient:
    """A connection to one server inside a running event loop; any number of streams at once.

    Arguments and errors are those of `drafthouse_client.client.Client`.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, model: str = DEFAULT_MODEL, timeout_s: float = DEFAULT_TIMEOUT_S, retry: Retry | None = None
    ) -> None:
        self._channel = grpc.aio.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._model = model
        self._timeout_s = timeout_s
        self._retry = retry

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; streams still open are cancelled."""
        await self._channel.close()

    async def generate(self, prompt: Prompt, options: GenerateOptions = _DEFAULT_OPTIONS) -> Completion:
        """The whole completion of ``prompt`` (text, or token ids) in one answer."""
        started = time.perf_counter()
        chunks = self._chunks(wire.generation_inputs(prompt, options, stream=False), options.timeout_s)
        return join_chunks([chunk async for chunk in chunks], time.perf_counter() - started)

    def stream(self, prompt: Prompt, options: GenerateOptions = _DEFAULT_OPTIONS) -> AsyncGenerator[Chunk, None]:
        """The completion in increments. Closing the generator (``contextlib.aclosing``) cancels the request."""
        return self._chunks(wire.generation_inputs(prompt, options, stream=True), options.timeout_s)

    async def events(self, prompt: Prompt, options: GenerateOptions = _DEFAULT_OPTIONS) -> AsyncGenerator[Event, None]:
        """The completion token by token, as `drafthouse_client.client.Client.events`."""
        maker = EventMaker()
        async with aclosing(self.stream(prompt, options)) as chunks:
            async for chunk in chunks:
                if maker.drafters is None:
                    maker.drafters = await self.drafters()
                yield maker.tokens(chunk)
        yield maker.finished()

    async def stats(self) -> dict[str, Any]:
        """The server's counters since it loaded the model (`drafthouse.triton.statistics`), as decoded JSON."""
        request = wire.encode_request(self._model, {"stats_request": True})
        async with aclosing(self._responses(request, None)) as responses:
            return parse_stats([wire.decode_outputs(response) async for response in responses])

    async def drafters(self) -> tuple[str, ...]:
        """The drafters' names in the order that `Chunk.token_sources` counts them."""
        request = pb.ModelConfigRequest(name=self._model)
        return drafters_of(await _translated(self._stub.ModelConfig(request, timeout=self._timeout_s)))

    async def ready(self) -> bool:
        """True when the model answers; False (never an exception) while it does not."""
        request = pb.ModelReadyRequest(name=self._model)
        try:
            answer = await _translated(self._stub.ModelReady(request, timeout=self._timeout_s))
        except ServerSideError:
            return False
        return bool(answer.ready)

    async def _chunks(self, inputs: dict[str, wire.Value], timeout_s: float | None) -> AsyncGenerator[Chunk, None]:
        request = wire.encode_request(self._model, inputs)
        attempts = Attempts(self._retry, self._timeout_s if timeout_s is None else timeout_s)
        while attempts.open:
            try:
                async with aclosing(self._responses(request, attempts.remaining_s())) as responses:
                    async for response in responses:
                        chunk = wire.decode_chunk(response)
                        if chunk is not None:
                            attempts.saw_chunk()
                            yield chunk
                attempts.ended()
            except ServerSideError as error:
                await asyncio.sleep(attempts.pause_after(error))

    async def _responses(self, request: pb.ModelInferRequest, timeout_s: float | None) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        call = self._stub.ModelStreamInfer(_once(request), timeout=limit_s)
        final = False
        try:
            async for response in call:
                yield response
                final = final or wire.is_final(response)
            if not final:
                raise stream_cut_short()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()  # does nothing once the stream has ended by itself


async def _once(request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    yield request


async def _translated(call: Awaitable[Any]) -> Any:  # noqa: ANN401 - generated protobuf
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
