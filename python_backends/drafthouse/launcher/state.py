"""The folder of a run: the control key (0600), the backend's symlinks, and what another process may know about the run."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.identity import RunId
from drafthouse.launcher.ports import Ports

KEY_FILE, INFO_FILE = "control.key", "run.json"
_KEY_BYTES = 32


@dataclass(frozen=True)
class RunInfo:
    """What a running server tells other processes of the same user; the key is in `key_file`, not here."""

    folder: Path
    http_port: int
    grpc_port: int
    metrics_port: int
    log_file: Path

    @property
    def key_file(self) -> Path:
        """Holds the control key; readable by its owner only."""
        return self.folder / KEY_FILE


def base_folder() -> Path:
    """The user's private folder for runs and logs, created with mode 0700.

    Errors: LaunchError (INVALID_ARG) when somebody else owns the place: whoever owns it could read or plant a key.
    """
    folder = Path(tempfile.gettempdir()) / f"drafthouse-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise LaunchError("INVALID_ARG", field="TMPDIR", value=folder, allowed="a place where this folder is yours alone (mode 0700)")
    return folder


def create_run_folder(run: RunId) -> Path:
    """Makes the folder of a run."""
    folder = base_folder() / run.prefix
    folder.mkdir(mode=0o700)
    return folder


def write_key(folder: Path) -> str:
    """Draws the run's control key and keeps it in a file that is 0600 from its first byte on."""
    key = secrets.token_hex(_KEY_BYTES)
    descriptor = os.open(folder / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key)
    return key


def write_info(folder: Path, ports: Ports, log_file: Path) -> None:
    """Publishes ports and log of a run, in one step so that a reader never sees half of it."""
    record = {f"{name}_port": port for name, port in asdict(ports).items()} | {"log_file": str(log_file)}
    unfinished = folder / f"{INFO_FILE}.new"
    unfinished.write_text(json.dumps(record), encoding="utf-8")
    unfinished.replace(folder / INFO_FILE)


def live_runs() -> list[RunInfo]:
    """The servers of this user whose launcher lives, oldest first."""
    found = []
    for folder, run in _run_folders():
        # A run may end, and its folder go, while it is looked at.
        with suppress(FileNotFoundError):
            if not run.is_stale():
                found.append(((folder / INFO_FILE).stat().st_mtime_ns, _read_info(folder)))
    return [info for _, info in sorted(found, key=lambda pair: pair[0])]


def _read_info(folder: Path) -> RunInfo:
    record = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    return RunInfo(folder, record["http_port"], record["grpc_port"], record["metrics_port"], Path(record["log_file"]))


def stale_run_folders() -> dict[RunId, Path]:
    """Folders of runs whose launcher is gone."""
    return {run: folder for folder, run in _run_folders() if run.is_stale()}


def remove_run_folder(folder: Path) -> None:
    """Removes a run's folder and with it the key."""
    shutil.rmtree(folder, ignore_errors=True)


def _run_folders() -> Iterator[tuple[Path, RunId]]:
    for folder in base_folder().iterdir():
        run = RunId.parse(folder.name)
        if run is not None:
            yield folder, run
