"""A gateway served by uvicorn on a thread of this process, on a free loopback port, and plain HTTP to call it with."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from tritonclient.grpc import service_pb2 as pb

from drafthouse_client.gateway.app import create_app
from drafthouse_client.gateway.settings import GatewaySettings
from fakes.triton_grpc import PERF, final, response

TOKENIZER = Path(__file__).resolve().parents[2] / "build" / "demo_models" / "target"
TIMEOUT_S = 60.0


@contextmanager
def gateway(settings: GatewaySettings) -> Iterator[str]:
    """Serves until the end of the block; yields `http://HOST:PORT`."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "it could not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(TIMEOUT_S)
        listener.close()


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    json: Any = field(default=None)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, decoded; the closing [DONE] is checked and left out, unless an error came last."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == ""
        lines = [part.removeprefix("data: ") for part in parts]
        if lines[-1] != "[DONE]":
            return [json.loads(line) for line in lines]
        return [json.loads(line) for line in lines[:-1]]


def connect(url: str) -> http.client.HTTPConnection:
    """A connection with a limit, so that no test hangs."""
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


def call(url: str, path: str, body: object = None, method: str | None = None, headers: dict[str, str] | None = None) -> Answer:
    """One call; a body that is no bytes is sent as JSON."""
    connection = connect(url)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})} if data is not None else headers or {}
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent, encode_chunked="transfer-encoding" in sent)
        response = connection.getresponse()
        read = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, read, json.loads(read) if found.get("content-type") == "application/json" else None)
    finally:
        connection.close()


def metric(url: str, name: str) -> float:
    """A metric of the gateway by its name, with its labels as they are written."""
    for line in call(url, "/metrics").body.decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    return 0.0


def logged_chunks() -> Sequence[pb.ModelStreamInferResponse]:
    """A completion with the log probability of every token; the target's own first, then one of each drafter."""
    return (
        response(
            text_output="é",
            output_ids=(5, 6),
            token_sources=(-1, 1),
            num_output_tokens=2,
            num_input_tokens=3,
            output_log_probs=(-0.5, -1.0),
        ),
        response(
            text_output="c",
            output_ids=(7,),
            token_sources=(0,),
            num_output_tokens=1,
            finish_reason="stop",
            output_log_probs=(-2.0,),
            **PERF,
        ),
        final(),
    )
