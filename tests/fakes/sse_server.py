"""An HTTP server in this process that speaks the events of Triton's `generate_stream` and answers from a script."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEAD: dict[str, Any] = {"model_name": "cosine", "model_version": "1"}


@dataclass(frozen=True)
class SseAnswer:
    """What one request gets: the status, and the body in pieces as they are sent."""

    pieces: Sequence[bytes]
    status: int = 200


Script = Callable[[dict[str, Any]], SseAnswer]


def event(**outputs: object) -> bytes:
    """One increment, as Triton writes it: scalars for tensors of one element."""
    return b"data: " + json.dumps(HEAD | {"text_output": "ab", "num_output_tokens": 1} | outputs).encode() + b"\n\n"


def last_event(**outputs: object) -> bytes:
    """The increment that ends a text."""
    return event(finish_reason="stop", **{"total_draft_tokens": 8, "total_accepted_draft_tokens": 6, **outputs})


def error_event(message: str) -> bytes:
    """An error that arrives after the status was sent."""
    return b"data: " + json.dumps({"error": message}).encode() + b"\n\n"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script
    seen: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body))
        answer = type(self).script(body)
        self.send_response(answer.status)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in answer.pieces:
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the test's own output is enough."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients that give up are part of the tests."""


@contextmanager
def serving_sse(script: Script) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Serves on a free loopback port; yields its URL and the list of (path, body) it saw."""
    seen: list[tuple[str, dict[str, Any]]] = []
    handler = type("Handler", (_Handler,), {"script": staticmethod(script), "seen": seen})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
