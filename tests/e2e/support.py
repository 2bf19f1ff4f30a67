"""What the servers of the end-to-end tests have in common."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drafthouse.launcher import ServerConfig, TritonServer
from drafthouse.launcher.identity import RunId

FIXTURES = Path(__file__).parent / "fixtures"
"""Models small enough to test the launcher with."""


def free_port_config(repository: Path, **changed: object) -> ServerConfig:
    """A configuration for a test: any free ports, a short exit."""
    defaults: dict[str, object] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "exit_timeout_s": 2}
    return ServerConfig(repository, **{**defaults, **changed})  # type: ignore[arg-type]


def post(server: TritonServer, path: str, body: object, headers: dict[str, str] | None = None) -> int:
    """The status of a POST with a JSON body."""
    request = urllib.request.Request(server.http_url + path, json.dumps(body).encode(), headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def ask(server: TritonServer) -> dict[str, Any]:
    """What the echo model answers."""
    request = urllib.request.Request(server.http_url + "/v2/models/echo/generate", b'{"text_input": "hello"}')
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.loads(json.load(response)["text_output"])
    return answer


def eventually(holds: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Does it hold before the time is up?"""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def run_of(server: TritonServer) -> RunId:
    """The identity of a running server."""
    run = RunId.parse(server.run_folder.name)
    assert run is not None
    return run
