"""Where `drafthouse serve` lets its gateway listen, and how it keeps it up."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drafthouse.launcher import LaunchError, ServerConfig
from drafthouse.launcher import gateway as module
from drafthouse.launcher.config import GrpcTls
from drafthouse.launcher.gateway import GatewayConfig, GatewayProcess


@pytest.fixture
def server(tmp_path: Path) -> ServerConfig:
    return ServerConfig(tmp_path, http_port=0, grpc_port=0, metrics_port=0)


@pytest.mark.parametrize("written", ["off", "0"])
def test_off_and_0_are_no_gateway(written: str, server: ServerConfig) -> None:
    config = GatewayConfig.parse("nowhere", written)
    assert config.port == 0
    config.check(server)


@pytest.mark.parametrize("written", ["on", "-1", "65536", "9000.0", ""])
def test_other_ports_are_refused_by_name(written: str) -> None:
    with pytest.raises(LaunchError, match=r"^INVALID_ARG field=--gateway-port "):
        GatewayConfig.parse("127.0.0.1", written)


def test_a_port_in_use_is_refused_before_anything_starts(server: ServerConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        taken = held.getsockname()[1]
        with pytest.raises(LaunchError, match=r"^UNAVAILABLE field=--gateway-port value=.*in use"):
            GatewayConfig(port=taken).check(server)
    GatewayConfig(port=taken).check(server)


def test_an_address_of_another_machine_is_refused_by_its_own_option(server: ServerConfig) -> None:
    with pytest.raises(LaunchError, match=r"^INVALID_ARG field=--gateway-host "):
        GatewayConfig(host="192.0.2.1", port=9000).check(server)


def test_what_the_server_uses_itself_or_closes_is_refused(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    for server in (ServerConfig(tmp_path, http_port=9000), ServerConfig(tmp_path, grpc_tls=GrpcTls(pem, pem))):
        with pytest.raises(LaunchError, match=r"^INVALID_ARG field=--gateway-port "):
            GatewayConfig(port=9000).check(server)


@pytest.fixture
def announced() -> list[str]:
    return []


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, announced: list[str]) -> Iterator[GatewayProcess]:
    """A real gateway before a server that is not there: it runs all the same."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    process = GatewayProcess(GatewayConfig(port=port), "127.0.0.1:1", Path("nowhere"), announced.append)
    process.start()
    yield process
    process.stop()


def test_a_gateway_that_is_killed_is_started_again(gateway: GatewayProcess, announced: list[str]) -> None:
    first = gateway.pid
    assert first is not None
    gateway.check()
    assert gateway.pid == first
    os.kill(first, signal.SIGKILL)
    deadline_s = time.monotonic() + 60
    while gateway.pid in (first, None) and time.monotonic() < deadline_s:
        gateway.check()
        time.sleep(0.01)
    assert gateway.pid not in (first, None)
    assert announced == ["The gateway ended with status -9; it is started again in 0 s."]


def test_it_ends_when_stopped_and_stays_so(gateway: GatewayProcess, announced: list[str]) -> None:
    pid = gateway.pid
    gateway.stop()
    gateway.stop()
    gateway.check()
    assert gateway.pid is None
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert announced == []


def test_a_second_signal_kills_it(gateway: GatewayProcess) -> None:
    pid = gateway.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it will not end when asked
    gateway.kill_processes()
    gateway.stop()
    assert not Path(f"/proc/{pid}").exists()
