"""The launcher against a real tritonserver: what it serves, what it keeps out, how it switches models."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from drafthouse.launcher import LaunchError, TritonServer, live_runs
from e2e.support import ask, eventually, free_port_config, post

LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 as /proc/net/tcp and /proc/net/tcp6 write it."""
LOAD = "/v2/repository/models/echo/load"


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


def test_nobody_else_may_read_the_shared_memory(echo_server: TritonServer) -> None:
    """Prompts pass through it, and the lease secret."""
    ask(echo_server)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in echo_server.shared_memory_regions()}
    assert modes
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}


def test_the_key_is_in_its_file_and_on_the_servers_command_line_and_nowhere_else(echo_server: TritonServer) -> None:
    key_file = echo_server.run_folder / "control.key"
    key = key_file.read_text()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert echo_server.control_headers == {"drafthouse-control-key": key}
    process = Path(f"/proc/{echo_server.pid}")
    assert key.encode() in (process / "cmdline").read_bytes(), "Triton takes it in no other way"
    assert key.encode() not in (process / "environ").read_bytes()
    assert key not in echo_server.log_file.read_text()
    assert key not in repr(echo_server)
    others = [path for path in echo_server.run_folder.rglob("*") if path.is_file() and not path.is_symlink() and path != key_file]
    assert others
    assert all(key.encode() not in path.read_bytes() for path in others)


def test_an_override_changes_one_parameter_and_a_plain_load_restores_the_file(echo_server: TritonServer) -> None:
    echo_server.load_model("echo", {"parameters": {"greeting": "warm"}})
    assert ask(echo_server)["greeting"] == "warm"
    echo_server.load_model("echo")
    assert ask(echo_server)["greeting"] == "plain"


def test_a_model_that_cannot_be_loaded_says_why(echo_server: TritonServer) -> None:
    with pytest.raises(LaunchError, match="UNAVAILABLE field=model value=unheard-of"):
        echo_server.load_model("unheard-of")
    assert ask(echo_server)["heard"] == "hello"
