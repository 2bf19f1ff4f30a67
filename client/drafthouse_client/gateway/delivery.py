"""Answers that watch their client: what it no longer waits for is cancelled at once, what it does not read is not produced."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from drafthouse_client.gateway.metrics import GatewayMetrics

_T = TypeVar("_T")
CLIENT_CLOSED = 499
"""The status, known from nginx, under which the metrics count an answer that nobody waited for."""
SSE_TYPE = "text/event-stream"
# Proxies are told not to collect events before they pass them on (nginx's header).
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class ClientGone(Exception):
    """The client has closed its connection."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`; when the client closes its connection first, `work` is cancelled and `ClientGone` raised."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for future in (task, watch):
            future.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def nobody_there() -> Response:
    """What a route returns after `ClientGone`; no byte of it is sent."""
    return Response(status_code=CLIENT_CLOSED)


class EventStream(Response):
    """Server-sent events, each sent before the next is asked for.

    Args:
        first: the events that are there already; whoever made them knows by now that the status is 200.
        rest: the others. It is closed when the client goes away, or leaves an event unread for `stall_s`.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], stall_s: float, metrics: GatewayMetrics) -> None:
        super().__init__(headers=_HEADERS, media_type=SSE_TYPE)
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._stall_s = stall_s
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await unless_gone(receive, self._send_all(send))
        except ClientGone:
            self._metrics.disconnects.inc()
        except TimeoutError:
            self._metrics.stalls.inc()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._rest) as rest:
            await self._send(send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, {"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in rest:
                await self._send(send, {"type": "http.response.body", "body": event, "more_body": True})
            await self._send(send, {"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(self._stall_s):
            await send(message)
