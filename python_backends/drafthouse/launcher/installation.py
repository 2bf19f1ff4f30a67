"""Finding a Triton server on this machine and giving it a Python backend that runs the running Python."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from drafthouse.launcher.errors import LaunchError

CONTAINER_ROOT = Path("/opt/tritonserver")
_BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A server and the parts of its Python backend."""

    binary: Path
    backend_folder: Path
    """Holds `libtriton_python.so` and `triton_python_backend_utils.py`."""
    stub: Path
    """The program that runs a Python model; linked to one version of libpython."""

    def write_backend(self, folder: Path) -> Path:
        """Fills `folder` with a backend directory of symlinks and returns it.

        Symlinks and not copies: the loader resolves the libraries' relative search paths from where the real file lies.
        """
        target = folder / "backends" / "python"
        target.mkdir(parents=True)
        for name in _BACKEND_FILES:
            (target / name).symlink_to(self.backend_folder / name)
        (target / _STUB).symlink_to(self.stub)
        return target.parent


def find_installation(binary: Path | None = None) -> Installation:
    """The server named, else the NGC container's, else the nvidia-pytriton wheel's.

    Errors: LaunchError (UNAVAILABLE) when there is none, or none that runs models with this Python version.
    """
    candidates = [binary] if binary is not None else [CONTAINER_ROOT / "bin" / "tritonserver", *_wheel_binary()]
    found = next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)
    if found is None:
        where = binary or f"not in {CONTAINER_ROOT}/bin and not in this Python's packages"
        raise LaunchError(
            "UNAVAILABLE", field="tritonserver", value=where, allowed="the NGC container, or: pip install 'drafthouse[cpu-server]'"
        )
    root = found.resolve().parent.parent
    installation = Installation(found.resolve(), root / "backends" / "python", _stub(root))
    missing = [path for path in (*(installation.backend_folder / name for name in _BACKEND_FILES), installation.stub) if not path.exists()]
    if missing:
        version = ".".join(map(str, sys.version_info[:2]))
        raise LaunchError(
            "UNAVAILABLE",
            field="python backend",
            value=f"Python {version}, without {missing[0]}",
            allowed=f"{_supported(root)} with {found}",
        )
    return installation


def _wheel_binary() -> list[Path]:
    """The wheel is located, never imported: its own start-up code is not wanted."""
    spec = importlib.util.find_spec("pytriton")
    roots = [] if spec is None or spec.submodule_search_locations is None else spec.submodule_search_locations
    return [Path(root) / "tritonserver" / "bin" / "tritonserver" for root in roots]


def _stub(root: Path) -> Path:
    """The wheel carries a stub per Python version, the container the one of its own Python."""
    version = ".".join(map(str, sys.version_info[:2]))
    per_version = root / "python_backend_stubs"
    return (per_version / version if per_version.is_dir() else root / "backends" / "python") / _STUB


def _supported(root: Path) -> str:
    versions = sorted((path.name for path in (root / "python_backend_stubs").glob("3.*")), key=lambda name: int(name.split(".")[1]))
    return f"Python {', '.join(versions)}" if versions else "the container's own Python"
