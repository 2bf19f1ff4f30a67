"""Around every call, as plain ASGI: who may call, how much may be sent, what is counted."""

import hmac
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drafthouse.core.errors import invalid
from drafthouse_client.gateway.errors import ApiError
from drafthouse_client.gateway.metrics import GatewayMetrics

GUARDED = "/v1/"
_BEARER = "bearer "


class Guard:
    """Answers calls below `/v1/` that do not carry the token. The comparison takes as long for every wrong token of a length."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self._expected and scope["path"].startswith(GUARDED) and not self._knows(scope):
            refusal = ApiError(401, "invalid_request_error", str(invalid("authorization", None, "Bearer TOKEN")), None, "invalid_api_key")
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        token = given[len(_BEARER) :] if given.lower().startswith(_BEARER) else ""
        return hmac.compare_digest(token.encode("latin-1"), self._expected)


class BodyLimit:
    """Refuses bodies over a limit: by their announced length before a byte is read, else while they arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await _too_large(self._max_bytes).response()(scope, receive, send)
            return
        await self._app(scope, _limited(receive, self._max_bytes), send)


def _limited(receive: Receive, max_bytes: int) -> Callable[[], Awaitable[Message]]:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _too_large(max_bytes)
        return message

    return limited


def _too_large(max_bytes: int) -> ApiError:
    message = str(invalid("body", None, f"at most {max_bytes} bytes"))
    return ApiError(413, "invalid_request_error", message, None, "request_too_large")


class Counting:
    """Counts every answer by endpoint and status."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_answer(scope["path"], message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
