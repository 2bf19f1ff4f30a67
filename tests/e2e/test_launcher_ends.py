"""Starts that fail say why, and every end, however harsh, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from drafthouse.launcher import LaunchError, TritonServer
from drafthouse.launcher.processes import group_members
from drafthouse.launcher.shared_memory import regions
from e2e.support import ask, eventually, free_port_config, run_of

MakeRepository = Callable[..., Path]


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
