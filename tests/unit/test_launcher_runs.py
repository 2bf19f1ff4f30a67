"""Runs: their names, their folders, their shared memory, and telling the living from the dead."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from drafthouse.launcher import processes, shared_memory, state
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.identity import RunId, start_ticks
from drafthouse.launcher.ports import Ports


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"drafthouse-{os.getuid()}"


def dead_run() -> RunId:
    """A run whose launcher had our pid but started at another time, as after the pid was used again."""
    return replace(RunId.new(), ticks=1)


@contextmanager
def pretender(run: RunId) -> Iterator[int]:
    """A process of ours that looks like the server of this run."""
    command = ["tritonserver", "-c", "import time; time.sleep(60)", run.prefix]
    with subprocess.Popen(command, executable=sys.executable) as child:
        # Between fork and exec it still has our own command line.
        while run.prefix.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        yield child.pid
        child.kill()


def test_a_run_is_read_back_from_a_name_that_begins_with_its_prefix() -> None:
    run = RunId.new()
    assert RunId.parse(run.prefix + "0b1c") == run
    assert run.prefix != RunId.new().prefix


@pytest.mark.parametrize("name", ["", "sem.python", "dh_", "dh_u0_n1_p2_t3_nothexes_", "x" + "dh_u0_n1_p2_t3_01234567_"])
def test_a_foreign_name_is_no_run(name: str) -> None:
    assert RunId.parse(name) is None


def test_only_a_run_of_ours_whose_launcher_is_gone_is_stale() -> None:
    living, dead = RunId.new(), dead_run()
    assert not living.is_stale()
    assert dead.is_stale()
    assert not replace(dead, uid=dead.uid + 1).is_stale(), "another user's run is not ours to judge"
    assert not replace(dead, namespace=dead.namespace + 1).is_stale(), "a container's launcher cannot be seen from here"


def test_a_process_that_ended_has_no_start_even_as_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(child.pid) is None
    child.wait()
    assert start_ticks(child.pid) is None


def test_a_sweep_removes_the_regions_of_its_run_only(tmp_path: Path) -> None:
    mine, other = RunId.new(), RunId.new()
    for name in (mine.prefix + "a", mine.prefix + "b", other.prefix + "a", "psm_1234"):
        (tmp_path / name).touch()
    assert shared_memory.sweep(mine, tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.prefix + "a", "psm_1234"])
    assert shared_memory.sweep(mine, tmp_path) == 0


def test_regions_that_others_may_read_are_found(tmp_path: Path) -> None:
    run = RunId.new()
    for name, mode in (("a", 0o600), ("b", 0o604), ("c", 0o660)):
        (tmp_path / (run.prefix + name)).touch()
        (tmp_path / (run.prefix + name)).chmod(mode)
    assert [path.name[-1] for path in shared_memory.open_to_others(run, tmp_path)] == ["b", "c"]


def test_regions_of_dead_launchers_are_found(tmp_path: Path) -> None:
    dead = dead_run()
    for name in (dead.prefix + "a", dead.prefix + "b", RunId.new().prefix + "a", "psm_1234"):
        (tmp_path / name).touch()
    assert shared_memory.stale_runs(tmp_path) == {dead}


def test_another_users_regions_and_processes_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may write our names on their files and command lines; meddling with those would fail, and stop every start."""
    somebody = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: somebody + 1)  # now the files and processes of this test are another user's
    dead = dead_run()
    assert dead.is_stale()
    (tmp_path / (dead.prefix + "a")).touch()
    assert shared_memory.stale_runs(tmp_path) == set()
    assert shared_memory.regions(dead, tmp_path) == []
    assert shared_memory.sweep(dead, tmp_path) == 0
    assert (tmp_path / (dead.prefix + "a")).exists()
    with pretender(dead) as pid:
        assert processes.run_members(dead) == []
        assert processes.kill_run(dead)
        assert start_ticks(pid) is not None
    monkeypatch.undo()
    own = dead_run()
    with pretender(own) as pid:
        assert processes.run_members(own) == [pid]
        assert processes.kill_run(own)


def test_a_file_that_may_not_be_removed_stops_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(path)

    (tmp_path / (dead_run().prefix + "a")).touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    (run,) = shared_memory.stale_runs(tmp_path)
    assert shared_memory.sweep(run, tmp_path) == 1


def test_too_little_shared_memory_is_refused_before_a_model_dies_of_it(tmp_path: Path) -> None:
    shared_memory.require_space(1, 1, tmp_path)
    with pytest.raises(LaunchError, match=r"allowed=.* MiB for 1000000 models; in Docker raise --shm-size"):
        shared_memory.require_space(1_000_000, 1 << 30, tmp_path)


def test_the_key_is_its_owners_alone_and_differs_per_run(base: Path) -> None:
    first, second = (state.create_run_folder(RunId.new()) for _ in range(2))
    keys = {state.write_key(first), state.write_key(second)}
    assert len(keys) == 2
    assert stat.S_IMODE((first / state.KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert (first / state.KEY_FILE).read_text() in keys
    assert all(len(key) == 64 for key in keys)


def test_a_key_is_never_written_over(base: Path) -> None:
    folder = state.create_run_folder(RunId.new())
    state.write_key(folder)
    with pytest.raises(FileExistsError):
        state.write_key(folder)


@pytest.mark.parametrize("plant", ["open", "link", "file"])
def test_a_base_folder_that_others_could_read_is_refused(base: Path, plant: str) -> None:
    if plant == "open":
        base.mkdir()
        base.chmod(0o755)
    elif plant == "link":
        (base.parent / "elsewhere").mkdir(mode=0o700)
        base.symlink_to(base.parent / "elsewhere")
    else:
        base.touch()
    with pytest.raises(LaunchError, match="field=TMPDIR"):
        state.base_folder()


def test_living_runs_are_listed_and_dead_ones_found(base: Path) -> None:
    living, dead = RunId.new(), dead_run()
    for run, port in ((living, 8000), (dead, 9000)):
        state.write_info(state.create_run_folder(run), Ports(port, port + 1, port + 2), base / "x.log")
    state.create_run_folder(RunId.new())  # starting: nothing published yet
    (base / "logs").mkdir()
    assert [(run.http_port, run.grpc_port, run.metrics_port, run.log_file) for run in state.live_runs()] == [
        (8000, 8001, 8002, base / "x.log")
    ]
    assert state.live_runs()[0].key_file == base / living.prefix / state.KEY_FILE
    assert state.stale_run_folders() == {dead: base / dead.prefix}


def test_killing_a_group_takes_its_grandchildren_too() -> None:
    sleeper = "import time; time.sleep(60)"
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{sleeper}']); print(flush=True); {sleeper}"
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert len(processes.group_members(parent.pid)) == 2
        assert processes.kill_group(parent.pid)
        assert processes.group_members(parent.pid) == []
    assert processes.kill_group(parent.pid), "a group that is gone counts as killed"
