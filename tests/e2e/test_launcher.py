"""The launcher against a real tritonserver: it starts, tells what is wrong, keeps others out and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from drafthouse.launcher import LaunchError, RunInfo, TritonServer, live_runs, sweep_stale_runs
from drafthouse.launcher.identity import RunId
from drafthouse.launcher.processes import group_members, run_members
from drafthouse.launcher.shared_memory import regions
from e2e.support import FIXTURES, free_port_config

MakeRepository = Callable[..., Path]
LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 as /proc/net/tcp and /proc/net/tcp6 write it."""
LOAD = "/v2/repository/models/echo/load"


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(FIXTURES / "echo", models / "echo")
    with TritonServer(free_port_config(models)) as running:
        yield running


def post(server: TritonServer, path: str, body: object, headers: dict[str, str] | None = None) -> int:
    request = urllib.request.Request(server.http_url + path, json.dumps(body).encode(), headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def ask(server: TritonServer) -> dict[str, Any]:
    request = urllib.request.Request(server.http_url + "/v2/models/echo/generate", b'{"text_input": "hello"}')
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.loads(json.load(response)["text_output"])
    return answer


def eventually(holds: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def run_of(server: TritonServer) -> RunId:
    run = RunId.parse(server.run_folder.name)
    assert run is not None
    return run


# --- what it starts


def test_a_model_is_served_and_knows_the_runs_lease(echo_server: TritonServer) -> None:
    answer = ask(echo_server)
    assert answer["heard"] == "hello"
    assert answer["lease_length"] == 64


def test_two_servers_run_side_by_side_with_keys_of_their_own(echo_server: TritonServer) -> None:
    with TritonServer(free_port_config(echo_server.config.model_repository)) as other:
        assert ask(other)["pid"] != ask(echo_server)["pid"]
        assert post(echo_server, LOAD, {}, other.control_headers) == 403
        assert {echo_server.ports.http, other.ports.http} <= {run.http_port for run in live_runs()}
    assert ask(echo_server)["heard"] == "hello", "stopping one sweeps nothing of the other"


def test_everything_listens_on_the_loopback_only(echo_server: TritonServer) -> None:
    listening = subprocess.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True, text=True, check=True).stdout
    for port in (echo_server.ports.http, echo_server.ports.grpc, echo_server.ports.metrics):
        local = [fields[1].split(":") for fields in map(str.split, listening.splitlines()) if fields[3] == LISTENING]
        assert {address for address, number in local if int(number, 16) == port} <= LOOPBACK, port
        assert port in {int(number, 16) for _, number in local}


# --- what it keeps out


@pytest.mark.parametrize(
    "path",
    [
        LOAD,
        "/v2/repository/models/echo/unload",
        "/v2/repository/index",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/echo/trace/setting",
    ],
)
@pytest.mark.parametrize("headers", [{}, {"drafthouse-control-key": "guess"}], ids=["no key", "wrong key"])
def test_control_calls_without_the_key_are_forbidden(echo_server: TritonServer, path: str, headers: dict[str, str]) -> None:
    assert post(echo_server, path, {}, headers) == 403
    assert ask(echo_server)["heard"] == "hello"


def test_a_forged_load_call_runs_no_foreign_code(echo_server: TritonServer, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    code = f"open({str(witness)!r}, 'w')"
    forged = {"parameters": {"config": '{"backend": "python"}', "file:1/model.py": code}}
    assert post(echo_server, "/v2/repository/models/foreign/load", forged) == 403
    assert not witness.exists()


def test_grpc_refuses_a_load_without_the_key_and_takes_it_with(echo_server: TritonServer) -> None:
    with grpcclient.InferenceServerClient(echo_server.grpc_address) as client:
        before = ask(echo_server)["pid"]
        for headers in (None, {"triton-grpc-protocol-drafthouse-control-key": "guess"}):
            with pytest.raises(InferenceServerException, match="restricted"):
                client.load_model("echo", headers=headers)
        assert ask(echo_server)["pid"] == before
        client.load_model("echo", headers=echo_server.grpc_control_headers)
    assert eventually(lambda: ask(echo_server)["heard"] == "hello")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.unload_model("echo"),
        lambda client: client.get_model_repository_index(),
        lambda client: client.register_system_shared_memory("x", "/x", 8),
        lambda client: client.get_log_settings(),
        lambda client: client.update_trace_settings(settings={"trace_file": "x"}),
    ],
    ids=["unload", "index", "shared memory", "logging", "trace"],
)
def test_grpc_control_calls_without_the_key_are_refused(
    echo_server: TritonServer, call: Callable[[grpcclient.InferenceServerClient], object]
) -> None:
    with grpcclient.InferenceServerClient(echo_server.grpc_address) as client, pytest.raises(InferenceServerException, match="restricted"):
        call(client)
    assert ask(echo_server)["heard"] == "hello"


def test_with_the_key_a_load_is_done(echo_server: TritonServer) -> None:
    assert post(echo_server, LOAD, {}, echo_server.control_headers) == 200


def test_the_key_is_in_its_file_and_nowhere_else(echo_server: TritonServer) -> None:
    key_file = echo_server.run_folder / "control.key"
    key = key_file.read_text()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert echo_server.control_headers == {"drafthouse-control-key": key}
    assert key not in echo_server.log_file.read_text()
    assert key not in repr(echo_server)
    others = [path for path in echo_server.run_folder.rglob("*") if path.is_file() and not path.is_symlink() and path != key_file]
    assert others
    assert all(key.encode() not in path.read_bytes() for path in others)


# --- switching models


def test_an_override_changes_one_parameter_and_a_plain_load_restores_the_file(echo_server: TritonServer) -> None:
    echo_server.load_model("echo", {"parameters": {"greeting": "warm"}})
    assert ask(echo_server)["greeting"] == "warm"
    echo_server.load_model("echo")
    assert ask(echo_server)["greeting"] == "plain"


def test_a_model_that_cannot_be_loaded_says_why(echo_server: TritonServer) -> None:
    with pytest.raises(LaunchError, match="UNAVAILABLE field=model value=unheard-of"):
        echo_server.load_model("unheard-of")
    assert ask(echo_server)["heard"] == "hello"


# --- what goes wrong at the start


def test_a_model_that_fails_is_named_with_its_reason(make_repository: MakeRepository) -> None:
    server = TritonServer(free_port_config(make_repository("echo", "broken")))
    with pytest.raises(LaunchError) as failed, server:
        pytest.fail("a server with a broken model must not come up")
    text = str(failed.value)
    assert text.startswith("UNAVAILABLE field=server value=ended with status 1")
    assert "failed to load 'broken'" in text
    assert "the engine file is not there" in text
    assert len(text.splitlines()) <= 20
    assert not server.is_running()
    assert server.shared_memory_regions() == []


def test_a_start_that_takes_too_long_ends_with_nothing_left(make_repository: MakeRepository) -> None:
    server = TritonServer(free_port_config(make_repository("echo"), startup_timeout_s=0.05))
    with pytest.raises(LaunchError, match=r"not ready after 0\.05 s"), server:
        pytest.fail("nothing starts that fast")
    assert group_members(server.pid) == []
    assert server.shared_memory_regions() == []


def test_a_port_in_use_is_refused_before_anything_starts(make_repository: MakeRepository) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = TritonServer(free_port_config(make_repository("echo"), grpc_port=taken.getsockname()[1]))
        with pytest.raises(LaunchError, match=r"UNAVAILABLE field=--grpc-port value=\d+ \(in use"):
            server.start()
    assert not server.is_running()


# --- what it leaves behind


def test_stop_leaves_no_process_no_region_and_no_key(make_repository: MakeRepository) -> None:
    with TritonServer(free_port_config(make_repository("echo"))) as server:
        group, folder, run = server.pid, server.run_folder, run_of(server)
        assert regions(run)
        assert len(group_members(group)) >= 2
    assert group_members(group) == []
    assert regions(run) == []
    assert not folder.exists()
    server.stop()


def test_a_killed_stub_is_no_hindrance(make_repository: MakeRepository) -> None:
    with TritonServer(free_port_config(make_repository("echo"), exit_timeout_s=1)) as server:
        run, group = run_of(server), server.pid
        os.kill(ask(server)["pid"], signal.SIGKILL)
        with pytest.raises(urllib.error.HTTPError):
            ask(server)
        server.load_model("echo")
        assert ask(server)["heard"] == "hello", "unload and load bring a dead model back"
        os.kill(ask(server)["pid"], signal.SIGKILL)
    assert group_members(group) == []
    assert regions(run) == []


def test_a_killed_server_is_no_hindrance(make_repository: MakeRepository) -> None:
    with TritonServer(free_port_config(make_repository("echo"))) as server:
        run, group = run_of(server), server.pid
        assert regions(run)
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: not server.is_running())
    assert group_members(group) == []
    assert regions(run) == []


# --- the command


class Command:
    """A `drafthouse serve` of its own, found by its port."""

    def __init__(self, repository: Path, port: int) -> None:
        options = ["--model-repository", str(repository), "--http-port", str(port), "--grpc-port", "0", "--metrics-port", "0"]
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drafthouse_client.cli", "serve", *options, "--exit-timeout-s", "2"],
            stderr=subprocess.PIPE,
            text=True,
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
