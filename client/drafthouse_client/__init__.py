"""Python client and command line of Drafthouse.

`Client` and `AsyncClient` are imported on first use, so that the command line starts without loading gRPC.
"""

from typing import TYPE_CHECKING

from drafthouse_client.completion import Chunk, Completion, GenerateOptions, Perf
from drafthouse_client.errors import ServerSideError
from drafthouse_client.events import Event, Finished, Token, Tokens
from drafthouse_client.retry import Retry

if TYPE_CHECKING:
    from drafthouse_client.aio import AsyncClient
    from drafthouse_client.client import Client

__all__ = [
    "AsyncClient",
    "Chunk",
    "Client",
    "Completion",
    "Event",
    "Finished",
    "GenerateOptions",
    "Perf",
    "Retry",
    "ServerSideError",
    "Token",
    "Tokens",
]


def __getattr__(name: str) -> object:
    if name == "Client":
        from drafthouse_client.client import Client

        return Client
    if name == "AsyncClient":
        from drafthouse_client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
