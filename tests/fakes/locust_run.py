"""Locust as a user starts it: headless, in a process of its own (it patches the standard library), its CSV read back."""

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LOCUSTFILE = Path(__file__).resolve().parents[2] / "loadtest" / "locustfile.py"
_TIMEOUT_S = 120


@dataclass(frozen=True)
class LocustRun:
    """What a run left behind."""

    status: int
    output: str
    entries: dict[tuple[str, str], dict[str, str]]  # (type, name) → row of the statistics
    failures: list[dict[str, str]]


def run_locust(folder: Path, *arguments: str) -> LocustRun:
    """Run to its end; ``folder`` gets the CSV files."""
    command = (sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--csv", str(folder / "run"), "--loglevel", "WARNING")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    output = done.stdout + done.stderr
    entries = {(row["Type"], row["Name"]): row for row in _rows(folder / "run_stats.csv")}
    return LocustRun(done.returncode, output, entries, _rows(folder / "run_failures.csv"))


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
