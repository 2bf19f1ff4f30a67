"""One generation request: asks Triton, counts, and answers as a stream or as a whole."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from drafthouse_client.aio import AsyncClient
from drafthouse_client.completion import Chunk
from drafthouse_client.errors import ServerSideError
from drafthouse_client.gateway.delivery import ClientGone, EventStream, nobody_there, unless_gone
from drafthouse_client.gateway.errors import JSON_TYPE, from_server, to_json
from drafthouse_client.gateway.metrics import GatewayMetrics, Stopwatch
from drafthouse_client.gateway.shapes import Dialect, Json
from drafthouse_client.gateway.translate import Plan
from drafthouse_client.gateway.upstream import Totals, chunks_of

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Generations:
    """What every generation of one gateway shares."""

    client: AsyncClient
    metrics: GatewayMetrics
    stall_s: float

    async def answer(self, request: Request, plan: Plan, dialect: Dialect) -> Response:
        """The answer to one request. Raises ApiError for what is refused before anything was sent."""
        try:
            if not plan.stream:
                return await unless_gone(request.receive, self._whole(plan, dialect))
            events = self._events(plan, dialect)
            try:
                # The status is only known when the server has taken the request.
                first = await unless_gone(request.receive, anext(events))
            except BaseException:
                await events.aclose()
                raise
            return EventStream(first, events, self.stall_s, self.metrics)
        except ClientGone:
            self.metrics.disconnects.inc()
            return nobody_there()

    async def _whole(self, plan: Plan, dialect: Dialect) -> Response:
        totals = Totals(plan.num_per_prompt)
        chunks: dict[int, list[Chunk]] = {ask.index: [] for ask in plan.asks}
        async with self._counted(plan, totals) as arriving:
            try:
                async for index, chunk in arriving:
                    chunks[index].append(chunk)
            except ServerSideError as error:
                raise from_server(error, plan.server_names) from error
        choices = [dialect.whole(index, own) for index, own in chunks.items()]
        return Response(to_json(dialect.answer.wrap(choices, totals.usage())), media_type=JSON_TYPE)

    async def _events(self, plan: Plan, dialect: Dialect) -> AsyncGenerator[bytes, None]:
        totals, begun = Totals(plan.num_per_prompt), False
        try:
            async with self._counted(plan, totals) as arriving:
                async for index, chunk in arriving:
                    choice = dialect.chunk(index, chunk)
                    if choice is not None:
                        begun = True
                        yield _event(dialect.streamed.wrap([choice], with_usage=plan.include_usage))
            if plan.include_usage:
                yield _event(dialect.streamed.wrap([], totals.usage()))
            yield DONE
        except ServerSideError as error:
            refusal = from_server(error, plan.server_names)
            if not begun:
                raise refusal from error
            # The status is sent: clients of OpenAI's API look for an error in every event.
            yield _event(refusal.body())

    @asynccontextmanager
    async def _counted(self, plan: Plan, totals: Totals) -> AsyncIterator[AsyncIterator[tuple[int, Chunk]]]:
        """The chunks of a request, counted as they pass; its streams are closed at the end of the block."""
        watch = Stopwatch(self.metrics)

        async def counted() -> AsyncGenerator[tuple[int, Chunk], None]:
            async with aclosing(chunks_of(self.client, plan)) as arriving:
                async for index, chunk in arriving:
                    watch.saw_chunk()
                    totals.add(index, chunk)
                    yield index, chunk
            watch.ended()

        with self.metrics.open_requests.track_inprogress():
            try:
                async with aclosing(counted()) as chunks:
                    yield chunks
            finally:
                self.metrics.count_usage(totals)


def _event(value: Json) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
