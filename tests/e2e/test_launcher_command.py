"""`drafthouse serve` as a process of its own: signals, kills and what it says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drafthouse.launcher import RunInfo, TritonServer, live_runs, sweep_stale_runs
from drafthouse.launcher.identity import RunId
from drafthouse.launcher.processes import run_members
from drafthouse.launcher.shared_memory import regions
from e2e.support import ask, eventually, free_port_config

MakeRepository = Callable[..., Path]


class Command:
    """A `drafthouse serve` of its own, found by its port."""

    def __init__(self, repository: Path, port: int) -> None:
        options = ["--model-repository", str(repository), "--http-port", str(port), "--grpc-port", "0", "--metrics-port", "0"]
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drafthouse_client.cli", "serve", *options, "--exit-timeout-s", "2"],
            stderr=subprocess.PIPE,
            text=True,
            # Under nohup, and on some build machines, SIGHUP is ignored and would stay so in the child.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def run(self) -> RunInfo | None:
        return next((run for run in live_runs() if run.http_port == self.port), None)

    def wait_ready(self) -> tuple[RunInfo, RunId]:
        stderr = self.process.stderr
        assert stderr is not None
        seen = []
        for line in stderr:
            seen.append(line)
            if "Ready after" in line:
                break
        info = self.run()
        assert info is not None, "".join(seen)
        run = RunId.parse(info.folder.name)
        assert run is not None
        return info, run

    def end(self) -> str:
        return self.process.communicate(timeout=30)[1]


@pytest.fixture
def command(make_repository: MakeRepository) -> Iterator[Command]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    started = Command(make_repository("echo"), port)
    yield started
    if started.process.poll() is None:
        started.process.terminate()
        started.process.communicate(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(command: Command, number: signal.Signals) -> None:
    info, run = command.wait_ready()
    assert regions(run)
    key = info.key_file.read_text()
    command.process.send_signal(number)
    said = command.end()
    assert command.process.returncode == 0
    assert run_members(run) == []
    assert regions(run) == []
    assert not info.folder.exists()
    assert key not in said


def test_a_signal_during_the_start_stops_everything(command: Command) -> None:
    assert eventually(lambda: command.run() is not None)
    info = command.run()
    assert info is not None
    command.process.send_signal(signal.SIGTERM)
    command.end()
    assert command.process.returncode == 0
    assert not info.folder.exists()


def test_a_second_signal_kills(command: Command) -> None:
    _, run = command.wait_ready()
    server = next(pid for pid in run_members(run) if os.getpgid(pid) == pid)
    os.kill(server, signal.SIGSTOP)  # it will not end when asked
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGINT)
    command.end()
    assert run_members(run) == []
    assert regions(run) == []


def test_a_server_that_ends_by_itself_is_told(command: Command) -> None:
    _, run = command.wait_ready()
    for pid in run_members(run):
        os.kill(pid, signal.SIGKILL)
    assert "ended by itself" in command.end()
    assert command.process.returncode == 1
    assert regions(run) == []


def test_a_killed_launcher_takes_its_server_along(command: Command) -> None:
    info, run = command.wait_ready()
    command.process.kill()
    command.end()
    assert eventually(lambda: run_members(run) == []), "the kernel ends the server, the server its stubs"
    sweep_stale_runs()
    assert regions(run) == []
    assert not info.folder.exists()


def test_a_later_start_ends_and_sweeps_what_a_killed_launcher_left(command: Command, echo_server: TritonServer) -> None:
    info, run = command.wait_ready()
    for pid in run_members(run):
        os.kill(pid, signal.SIGSTOP)  # the kernel's SIGTERM stays pending: nothing of it ends by itself
    command.process.kill()
    command.end()
    assert run_members(run)
    assert regions(run)
    assert info.key_file.exists()
    with TritonServer(free_port_config(echo_server.config.model_repository)):
        assert run_members(run) == []
        assert regions(run) == []
        assert not info.folder.exists()
    assert ask(echo_server)["heard"] == "hello", "a living run is not swept"


def test_the_commands_errors_are_one_readable_line_each(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drafthouse_client.cli", "serve", "--model-repository", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("INVALID_ARG field=--model-repository value=")
    assert len(done.stderr.splitlines()) == 1
