"""What the server's log says to a human: which models are up, and the few lines that tell why one is not."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.state import base_folder

KEPT_LOGS = 10
_LINES_PER_ERROR = 14
_MAX_LINES = 60
_MAX_LINE_LENGTH = 400
# `I1120 09:28:56.123456 4242 file.cc:12] "text"`, or a stub's own logger; anything else continues the line before.
_RECORD = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ |^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [IWEF] ")
_ERROR = re.compile(r"^[EF]\d{4} |^\d{4}-\d\d-\d\dT\S+ [EF] |^tritonserver: |^error: ", re.IGNORECASE)
_NO_GPU = "CudaDriverHelper has not been initialized"
"""Logged as an error on every machine without a GPU."""
_FAILED_LOAD = re.compile(r"failed to load '(?P<model>[^']+)'(?: version \d+)?(?P<cause>.*)")
_NOISE = ("<frozen importlib", "^^^^^^")
_LOADED = re.compile(r"successfully loaded '(?P<model>[^']+)'")


def new_log_file(folder: Path | None) -> Path:
    """A path for this run's log; the oldest logs beyond `KEPT_LOGS` go, but only in our own folder.

    Errors: LaunchError (INVALID_ARG) when the operator's folder cannot be made or written.
    """
    if folder is not None:
        _make_writable(folder)
    else:
        folder = base_folder() / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        for old in sorted(folder.glob("tritonserver-*.log"))[: -KEPT_LOGS + 1]:
            old.unlink(missing_ok=True)
    return folder / f"tritonserver-{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 1_000_000:06d}.log"


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise LaunchError("INVALID_ARG", field="--log-dir", value=folder, allowed="a folder that can be written")


def loaded_models(log_file: Path) -> set[str]:
    """Names of the models the server has reported as loaded so far."""
    return {match["model"] for match in _LOADED.finditer(_read(log_file))}


def error_lines(log_file: Path) -> tuple[str, ...]:
    """What to show a human: per model that failed, why, in a few lines; where none failed, every error or the log's end."""
    records = [record for record in _records(_read(log_file)) if _is_error(record[0])]
    failures = _one_per_cause(records)
    lines = [line[:_MAX_LINE_LENGTH] for record in failures or records for line in _shorten(record)]
    return tuple(lines[:_MAX_LINES]) or tuple(line[:_MAX_LINE_LENGTH] for line in _read(log_file).splitlines()[-5:])


def _one_per_cause(records: list[list[str]]) -> list[list[str]]:
    """The first record of each model that failed to load; of models that fail alike, only the first one's with its frames."""
    chosen, models, causes = [], set(), set()
    for record in records:
        match = _FAILED_LOAD.search(record[0])
        if match is None or match["model"] in models:
            continue
        models.add(match["model"])
        chosen.append(record[:1] if match["cause"] in causes else record)
        causes.add(match["cause"])
    return chosen


def _is_error(line: str) -> bool:
    return bool(_ERROR.match(line)) and _NO_GPU not in line


def _shorten(record: list[str]) -> list[str]:
    """The stub writes the message first and the innermost frame next; a Python traceback ends with its message."""
    told = [line for line in record if not any(noise in line for noise in _NOISE) and line.strip() != '"']
    return told if len(told) <= _LINES_PER_ERROR else [*told[: _LINES_PER_ERROR - 3], "  …", *told[-2:]]


def _records(text: str) -> list[list[str]]:
    records: list[list[str]] = []
    # Triton writes a multi-line message as one quoted line with escaped line ends.
    for line in text.replace("\\n", "\n").splitlines():
        if _RECORD.match(line) or not records:
            records.append([line])
        elif line.strip():
            records[-1].append(line)
    return records


def _read(log_file: Path) -> str:
    try:
        return log_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
