"""One completion as a list of timed events, through the gateway and straight from Triton."""

import http.client
import json
import time
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse_client import Client, GenerateOptions
from drafthouse_load.locust_users.sse import read_events

DONE = "[DONE]"
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    """What both ways are asked for."""

    prompt: str
    seed: int
    max_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Stream:
    """What came back.

    Attributes:
        times_s: when each event with text arrived, from sending the request on.
        num_ends: how often an end was told; anything but 1 is a fault.
    """

    text: str
    times_s: tuple[float, ...]
    num_ends: int

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Times between events."""
        return tuple(later - earlier for earlier, later in zip(self.times_s, self.times_s[1:], strict=False))


def direct(client: Client, request: Request) -> Stream:
    """From Triton's gRPC stream."""
    options = GenerateOptions(
        max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed, exclude_input_in_output=True, timeout_s=TIMEOUT_S
    )
    began_s = time.perf_counter()
    texts, times_s, num_ends = [], [], 0
    with closing(client.stream(request.prompt, options)) as chunks:
        for chunk in chunks:
            if chunk.text:
                times_s.append(time.perf_counter() - began_s)
                texts.append(chunk.text)
            num_ends += chunk.finish_reason is not None
    return Stream("".join(texts), tuple(times_s), num_ends)


def through_gateway(url: str, model: str, request: Request, api_key: str = "") -> Stream:
    """From the gateway's server-sent events. Raises OSError when the gateway is gone, ServerError for a refusal."""
    body = {
        "model": model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "stream": True,
    }
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    with closing(connection):
        # Connected beforehand, as the gRPC channel is.
        connection.connect()
        began_s = time.perf_counter()
        headers = {"content-type": "application/json", "authorization": f"Bearer {api_key}"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return _read(connection.getresponse(), began_s)


def _read(response: http.client.HTTPResponse, began_s: float) -> Stream:
    if response.status != http.client.OK:
        raise ServerError(ErrorCode.INTERNAL, "gateway", f"{response.status}: {response.read().decode(errors='replace')}", "status 200")
    texts: list[str] = []
    times_s: list[float] = []
    num_ends, is_done = 0, False
    for data in read_events(response):
        is_done = data == DONE
        choices = () if is_done else json.loads(data).get("choices", ())  # an error in mid-stream has none, and no DONE follows
        if not choices:
            continue
        (choice,) = choices
        if choice["text"]:
            times_s.append(time.perf_counter() - began_s)
            texts.append(choice["text"])
        num_ends += choice["finish_reason"] is not None
    return Stream("".join(texts), tuple(times_s), num_ends if is_done else 0)
