"""What a result depends on besides the code: hardware, versions, commit, load of the machine."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("drafthouse", "onnxruntime", "numpy", "tritonclient", "nvidia-pytriton")
_BYTES_PER_GIB = 1 << 30


def describe(tritonserver_version: str) -> dict[str, object]:
    """Hardware, versions, commit, date and load average, for the head of a report."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": {
            "cpu": cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _BYTES_PER_GIB, 1),
        },
        "versions": {"python": platform.python_version(), "tritonserver": tritonserver_version} | package_versions(),
        "load_average_at_start": [round(value, 2) for value in os.getloadavg()],
    }


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo; the architecture where it has none (ARM)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of what was measured; packages that are not installed are left out (the container has its own server)."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, with `-dirty` when tracked files differ; None outside a git checkout."""
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
