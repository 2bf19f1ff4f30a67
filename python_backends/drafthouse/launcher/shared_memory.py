"""The shared-memory regions of a run, and the sweep of those that nobody will ever close."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.identity import RunId

SHM_DIR = Path("/dev/shm")


def regions(run: RunId, folder: Path = SHM_DIR) -> list[Path]:
    """The regions that belong to a run: by its prefix, and by their owner, because anybody may use any name here."""
    return sorted(path for path in folder.iterdir() if path.name.startswith(run.prefix) and _is_owned_by(path, run.uid))


def open_to_others(run: RunId, folder: Path = SHM_DIR) -> list[Path]:
    """Regions of a run that other users may read or write: prompts and the lease secret pass through them."""
    found = []
    for path in regions(run, folder):
        with suppress(FileNotFoundError):
            if path.stat().st_mode & 0o077:
                found.append(path)
    return found


def sweep(run: RunId, folder: Path = SHM_DIR) -> int:
    """Removes the regions of a run that has ended; returns how many. Safe while others run: the prefix is the run's own."""
    left = regions(run, folder)
    for path in left:
        # Another user's file may have taken the name since it was looked at.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
    return len(left)


def stale_runs(folder: Path = SHM_DIR) -> set[RunId]:
    """Runs of this user that left regions behind and whose launcher is gone."""
    runs = ((path, RunId.parse(path.name)) for path in folder.iterdir())
    return {run for path, run in runs if run is not None and run.is_stale() and _is_owned_by(path, run.uid)}


def _is_owned_by(path: Path, uid: int) -> bool:
    try:
        return path.lstat().st_uid == uid
    except FileNotFoundError:
        return False


def require_space(instances: int, bytes_per_instance: int, folder: Path = SHM_DIR) -> None:
    """Refuses to start where the models' regions cannot fit (Docker gives a container 64 MiB unless told otherwise).

    A region that cannot be backed kills the process that touches it (SIGBUS), so this is checked before.
    Errors: LaunchError (UNAVAILABLE).
    """
    free_bytes, need_bytes = shutil.disk_usage(folder).free, instances * bytes_per_instance
    if free_bytes < need_bytes:
        raise LaunchError(
            "UNAVAILABLE",
            field=str(folder),
            value=f"{free_bytes >> 20} MiB free",
            allowed=f"{need_bytes >> 20} MiB for {instances} models; in Docker raise --shm-size",
        )
