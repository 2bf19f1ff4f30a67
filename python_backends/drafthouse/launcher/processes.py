"""Finding and ending the processes of a run: the server and the stubs it forked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from drafthouse.launcher.identity import RunId, stat_fields

POLL_S = 0.05
_EXECUTABLES = ("tritonserver", "triton_python_backend_stub")


def group_members(group: int) -> list[int]:
    """Pids of the process group that still run; zombies, which only wait to be reaped, do not count."""
    members = []
    for pid in _all_pids():
        fields = stat_fields(pid)
        if fields is not None and int(fields[2]) == group and fields[0] not in ("Z", "X"):
            members.append(pid)
    return members


def kill_group(group: int, timeout_s: float = 5.0) -> bool:
    """SIGKILLs a process group and waits until nothing of it runs. Returns whether that was reached."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return True
    return _wait_until_gone(lambda: group_members(group), timeout_s)


def model_process(group: int, model: str) -> int | None:
    """The newest process of this group that runs a model of the repository; None when there is none."""
    marker = f"/{model}/1/".encode()  # the whole folder: "target" may also name a folder above the repository
    stubs = [pid for pid in group_members(group) if _executable(pid) == _EXECUTABLES[1] and marker in _command_line(pid)]
    return max(stubs, default=None)


def run_members(run: RunId) -> list[int]:
    """Pids of the server and the stubs of a run, wherever they were reparented to: their command lines carry its prefix.

    Only processes of the run's user: anybody may write the prefix on a command line.
    """
    marker = run.prefix.encode()
    return [pid for pid in _all_pids() if _owner(pid) == run.uid and _executable(pid) in _EXECUTABLES and marker in _command_line(pid)]


def kill_run(run: RunId, timeout_s: float = 5.0) -> bool:
    """SIGKILLs what a dead launcher left running. Returns whether everything is gone."""
    for pid in run_members(run):
        # It may have ended by itself, or have become another user's, since it was listed.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return _wait_until_gone(lambda: run_members(run), timeout_s)


def _wait_until_gone(members: Callable[[], list[int]], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while members():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _all_pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _executable(pid: int) -> str:
    return Path(os.fsdecode(_command_line(pid).split(b"\0", 1)[0])).name


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
