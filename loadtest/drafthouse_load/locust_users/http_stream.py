"""One request to `/v2/models/<model>/generate_stream`; only the standard library, which locust makes cooperative."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

from drafthouse.core.errors import ErrorCode, invalid
from drafthouse_client import GenerateOptions
from drafthouse_client.errors import parse_error
from drafthouse_client.wire import generation_inputs
from drafthouse_load.locust_users.observed import StreamEvent, StreamFailed, failed
from drafthouse_load.locust_users.sse import read_events

_OK = 200


class SseEndpoint:
    """Where requests go. One connection per request: a stream occupies it to its end, and an error leaves it in no known state."""

    def __init__(self, base_url: str, model: str, timeout_s: float) -> None:
        """``timeout_s``: longest silence. Raises ClientError for a URL that is not http://HOST[:PORT]."""
        parts = urlsplit(base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise invalid("--host", base_url, "http://HOST:PORT")
        self._address = (parts.hostname, parts.port or http.client.HTTP_PORT)
        self._path = f"{parts.path.rstrip('/')}/v2/models/{model}/generate_stream"
        self._timeout_s = timeout_s

    def stream(self, prompt: str, options: GenerateOptions) -> Iterator[StreamEvent]:
        """Send a request; its increments.

        Raises:
            StreamFailed: an error event under whatever status, another status than 200, a connection that fails.
        """
        body = json.dumps(generation_inputs(prompt, options, stream=True))
        host, port = self._address
        try:
            with closing(http.client.HTTPConnection(host, port, timeout=self._timeout_s)) as connection:
                connection.request("POST", self._path, body, {"Content-Type": "application/json"})
                yield from _read(connection.getresponse())
        except TimeoutError as error:
            raise StreamFailed(ErrorCode.DEADLINE_EXCEEDED, "timeout", "HTTP") from error
        except (OSError, http.client.HTTPException) as error:
            raise StreamFailed(ErrorCode.UNAVAILABLE, "connection", f"HTTP, {type(error).__name__}") from error


def _read(response: http.client.HTTPResponse) -> Iterator[StreamEvent]:
    where = f"HTTP {response.status}"
    if response.status != _OK:
        raise _failed(response.read().decode("utf-8", errors="replace"), where)
    for data in read_events(response):
        yield parse_event(data, where)


def parse_event(data: str, where: str) -> StreamEvent:
    """One event of `generate_stream`. Raises StreamFailed for an error event and for what is no event of this server."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise _failed(data, where)
        return StreamEvent(
            num_tokens=int(event["num_output_tokens"]),
            num_text_bytes=len(event["text_output"].encode()),
            is_last=bool(event.get("finish_reason")),
            num_drafted=int(event.get("total_draft_tokens", 0)),
            num_accepted=int(event.get("total_accepted_draft_tokens", 0)),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StreamFailed(ErrorCode.INTERNAL, "event", f"{where}, not understood") from error


def _failed(message: str, where: str) -> StreamFailed:
    return failed(parse_error(message), where)
