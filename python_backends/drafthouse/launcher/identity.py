"""Who owns a run: a name that tells, by itself, whether its launcher still lives."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass

_NAME = re.compile(r"dh_u(?P<uid>\d+)_n(?P<namespace>\d+)_p(?P<pid>\d+)_t(?P<ticks>\d+)_(?P<salt>[0-9a-f]{8})_")


@dataclass(frozen=True)
class RunId:
    """One run of one launcher: the user, the process namespace, the launcher's pid and its start (clock ticks since boot).

    Pids are used again, a pid together with its start is not. Another namespace (a container sharing /dev/shm) is never
    judged: from here its processes cannot be seen.
    """

    uid: int
    namespace: int
    pid: int
    ticks: int
    salt: str

    @classmethod
    def new(cls) -> RunId:
        """A fresh identity for the calling process."""
        pid = os.getpid()
        ticks = start_ticks(pid)
        if ticks is None:
            raise ProcessLookupError(f"/proc/{pid}/stat")
        return cls(os.getuid(), _namespace(), pid, ticks, secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> RunId | None:
        """The run whose prefix `text` begins with, or None."""
        match = _NAME.match(text)
        if match is None:
            return None
        numbers = {key: int(value) for key, value in match.groupdict().items() if key != "salt"}
        return cls(**numbers, salt=match["salt"])

    @property
    def prefix(self) -> str:
        """Begins the name of everything the run leaves outside its own memory; no other run's prefix begins with it."""
        return f"dh_u{self.uid}_n{self.namespace}_p{self.pid}_t{self.ticks}_{self.salt}_"

    def is_stale(self) -> bool:
        """Is this a run of the same user, in this process namespace, whose launcher is gone?"""
        mine = self.uid == os.getuid() and self.namespace == _namespace()
        return mine and start_ticks(self.pid) != self.ticks


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or only a zombie."""
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in ("Z", "X") else int(fields[19])


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command name (which may hold anything): 0 is the state, 2 the process group."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()
    except OSError:
        return None


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
