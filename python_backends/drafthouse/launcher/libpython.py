"""Finding `libpython3.X.so.1.0`, to which the stub is linked and which many Pythons come without."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from drafthouse.launcher.errors import LaunchError

_DOWNLOAD_TIMEOUT_S = 120
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBRARY = f"libpython{VERSION}.so.1.0"
PACKAGE = f"libpython{VERSION}"


def find_libpython(announce: Callable[[str], None]) -> Path:
    """The running Python's library, else one unpacked before, else the system's, else Debian's package unpacked into the
    environment (no root needed; `announce` hears of it, since it takes seconds).

    Errors: LaunchError (UNAVAILABLE) with the command that installs it.
    """
    unpacked = Path(sys.prefix) / "lib" / "drafthouse-libpython"
    for folder in (*running_python_folders(), unpacked):
        if (folder / LIBRARY).exists():
            return folder / LIBRARY
    system = system_library()
    if system is not None:
        return system
    announce(f"This Python has no {LIBRARY}; unpacking Debian's package {PACKAGE} into {unpacked}")
    return unpack_debian_package(unpacked)


def running_python_folders() -> list[Path]:
    """Where the running interpreter's own shared library would lie."""
    names = (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib")
    return [Path(name) for name in names if name]


def system_library() -> Path | None:
    """The library as the dynamic loader knows it."""
    if ctypes.util.find_library(f"python{VERSION}") is None:
        return None
    folders = (*Path("/usr/lib").glob("*-linux-gnu"), *map(Path, ("/usr/lib64", "/usr/lib", "/usr/local/lib", "/usr/local/lib64")))
    return next((folder / LIBRARY for folder in folders if (folder / LIBRARY).exists()), None)


def unpack_debian_package(target: Path) -> Path:
    """Downloads and unpacks Debian's package without installing it; `target` then holds the library.

    Errors: LaunchError (UNAVAILABLE) when the tools are missing, the package is unknown or the download fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _run(["apt-get", "download", PACKAGE], scratch)
            package = next(Path(scratch).glob("*.deb"))
            _run(["dpkg", "-x", str(package), "unpacked"], scratch)
            library = next((Path(scratch) / "unpacked").rglob(LIBRARY))
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            raise _missing(error) from error
        target.mkdir(parents=True, exist_ok=True)
        partial = target / f"{LIBRARY}.{os.getpid()}"
        shutil.copyfile(library, partial)
        partial.replace(target / LIBRARY)
    return target / LIBRARY


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_DOWNLOAD_TIMEOUT_S)


def _missing(error: BaseException) -> LaunchError:
    said = getattr(error, "stderr", None) or b""
    last_line = next(iter(said.decode(errors="replace").strip().splitlines()[-1:]), str(error))
    return LaunchError(
        "UNAVAILABLE",
        field=LIBRARY,
        value=f"not found ({last_line})",
        allowed=f"installed by: sudo apt-get install {PACKAGE} (Fedora: sudo dnf install python{VERSION}-libs)",
    )
