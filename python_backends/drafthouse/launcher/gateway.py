"""The OpenAI gateway as a child of `drafthouse serve`: started beside the server, started again when it dies, ended before it.

The launcher knows of it only how to call it; it imports nothing of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drafthouse.launcher import exec_guard
from drafthouse.launcher.config import MAX_PORT, ServerConfig
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.ports import require_free

OFF = "off"
EXIT_TIMEOUT_S = 6.0
"""More than the gateway gives its open answers to end."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
_HEALTHY_S = 60.0
"""Who ran this long starts again after the first pause."""


@dataclass(frozen=True)
class GatewayConfig:
    """Where the gateway listens. Errors: LaunchError (INVALID_ARG) naming the option, raised by `parse` and `check`."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 is no gateway."""

    @classmethod
    def parse(cls, host: str, port: str) -> GatewayConfig:
        """From the options of `drafthouse serve`."""
        if port == OFF:
            return cls(host)
        if not (port.isdecimal() and int(port) <= MAX_PORT):
            raise LaunchError("INVALID_ARG", field="--gateway-port", value=port, allowed=f"0..{MAX_PORT}, or {OFF}")
        return cls(host, int(port))

    def check(self, server: ServerConfig) -> None:
        """Refuses, before anything is started, what could not work beside this server; UNAVAILABLE for a port in use."""
        if not self.port:
            return
        if server.grpc_tls is not None:
            allowed = f"{OFF} where --grpc-tls-cert closes the gRPC port: the gateway speaks to it without TLS"
            raise LaunchError("INVALID_ARG", field="--gateway-port", value=self.port, allowed=allowed)
        if self.port in (server.http_port, server.grpc_port, server.metrics_port):
            raise LaunchError("INVALID_ARG", field="--gateway-port", value=self.port, allowed="a port that the server does not use itself")
        require_free(self.host, self.port, "--gateway-port", "--gateway-host")


class GatewayProcess:
    """One gateway and its successors. `check` is called often; it never blocks and never raises.

    Args:
        config: where it listens.
        grpc_address: of the server, HOST:PORT.
        model_repository: holds the target's tokenizer.
        announce: told when the gateway ended and when it is started again.
    """

    def __init__(self, config: GatewayConfig, grpc_address: str, model_repository: Path, announce: Callable[[str], None]) -> None:
        self._arguments = ["--host", config.host, "--port", str(config.port), "--url", grpc_address]
        self._arguments += ["--model-repository", str(model_repository)]
        self._announce = announce
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._start_again_s: float | None = None
        self.url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"

    @property
    def pid(self) -> int | None:
        """The process of the gateway; None while there is none."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Starts it and returns at once. What it has to say goes to the launcher's standard error."""
        self._started_s, self._start_again_s = time.monotonic(), None
        command = [sys.executable, "-m", "drafthouse_client.cli", "gateway", *self._arguments]
        # As for the server: it cannot outlive the launcher, and Ctrl-C reaches the launcher only.
        guard = [sys.executable, "-I", "-S", exec_guard.__file__, str(os.getpid())]
        self._process = subprocess.Popen([*guard, *command], stdin=subprocess.DEVNULL, start_new_session=True)

    def check(self) -> None:
        """Starts a gateway that ended again, after pauses that grow while it does not stay up."""
        if self._process is None:
            return
        now_s = time.monotonic()
        if self._start_again_s is None and self._process.poll() is not None:
            self._pause_s = FIRST_PAUSE_S if now_s - self._started_s > _HEALTHY_S else self._pause_s
            self._start_again_s = now_s + self._pause_s
            self._announce(f"The gateway ended with status {self._process.returncode}; it is started again in {self._pause_s:g} s.")
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if self._start_again_s is not None and now_s >= self._start_again_s:
            self.start()

    def stop(self) -> None:
        """Asks it to end, then kills it. Safe to repeat."""
        if self._process is None:
            return
        try:
            self._process.terminate()
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._announce("The gateway did not end by itself; ending it.")
        finally:
            self.kill_processes()
            self._process.wait()
            self._process = None

    def kill_processes(self) -> None:
        """SIGKILLs it and does nothing else, for a signal handler."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
