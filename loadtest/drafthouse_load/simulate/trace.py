"""Request traces in the schema of the Azure LLM inference traces: `TIMESTAMP,ContextTokens,GeneratedTokens`."""

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import invalid

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_SCHEMA = f"a CSV file with the columns {','.join(COLUMNS)}, times like 2023-11-16 18:17:03.9799600, whole numbers >= 1, two rows or more"
_FRACTION_DIGITS = 6  # what datetime takes; the traces have seven


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival."""

    arrival_s: NDArray[np.float64]  # [n], from the first one's on
    prompt_len: NDArray[np.int64]  # [n], tokens, >= 1
    output_len: NDArray[np.int64]  # [n], tokens, >= 1

    def __len__(self) -> int:
        return len(self.arrival_s)


def read_trace(file: Path) -> Trace:
    """Read a trace; rows are put in order of time. Raises ClientError naming the file, and the line where there is one."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines)
            if not set(COLUMNS) <= set(rows.fieldnames or ()):
                raise invalid("--trace", str(file), _SCHEMA)
            parsed = [_parse(row, file, number) for number, row in enumerate(rows, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise invalid("--trace", str(file), _SCHEMA) from error
    if len(parsed) < 2:
        raise invalid("--trace", str(file), _SCHEMA)
    parsed.sort(key=lambda row: row[0])
    seconds, prompts, outputs = (np.array(column) for column in zip(*parsed, strict=True))
    return Trace(seconds - seconds[0], prompts.astype(np.int64), outputs.astype(np.int64))


def _parse(row: dict[str, str], file: Path, number: int) -> tuple[float, int, int]:
    try:
        whole, _, fraction = row["TIMESTAMP"].partition(".")
        moment = datetime.fromisoformat(f"{whole}.{fraction[:_FRACTION_DIGITS]:0<{_FRACTION_DIGITS}}+00:00")
        prompt_len, output_len = int(row["ContextTokens"]), int(row["GeneratedTokens"])
    except (ValueError, TypeError, AttributeError) as error:
        raise invalid("--trace", f"{file}, line {number}", _SCHEMA) from error
    if prompt_len < 1 or output_len < 1:
        raise invalid("--trace", f"{file}, line {number}", _SCHEMA)
    return moment.timestamp(), prompt_len, output_len
