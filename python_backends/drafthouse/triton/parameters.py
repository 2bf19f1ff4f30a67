"""Parameters of a model's config.pbtxt, read once at load; an unknown or malformed one refuses the load."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from drafthouse.core.errors import invalid


class Parameters:
    """The `parameters` of one model's configuration, consumed one by one; `finish` refuses what nobody asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> "Parameters":
        """From the arguments Triton passes to `initialize`."""
        entries = json.loads(args["model_config"]).get("parameters", {})
        return cls({name: entry["string_value"] for name, entry in entries.items()})

    def text(self, name: str, default: str) -> str:
        """A string parameter."""
        return self._values.pop(name, default)

    def names(self, name: str, default: str = "") -> tuple[str, ...]:
        """A comma-separated list; empty entries are dropped."""
        return tuple(part.strip() for part in self.text(name, default).split(",") if part.strip())

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """An integer in [low, high]."""
        raw = self._values.pop(name, None)
        if raw is None:
            return default
        try:
            value = int(raw)
        except ValueError:
            raise invalid(name, raw, f"{low}..{high}") from None
        if not low <= value <= high:
            raise invalid(name, raw, f"{low}..{high}")
        return value

    def choice(self, name: str, default: str, allowed: Sequence[str]) -> str:
        """One of a few words."""
        value = self.text(name, default)
        if value not in allowed:
            raise invalid(name, value, ", ".join(allowed))
        return value

    def rest(self) -> dict[str, str]:
        """Everything not consumed yet, handed to a reader that checks it itself."""
        values, self._values = self._values, {}
        return values

    def finish(self, known: str) -> None:
        """Refuse parameters that nobody asked for."""
        for name, value in self._values.items():
            raise invalid(name, value, known)


def parameter_in(config_file: Path, name: str) -> str | None:
    """A string parameter of another model's config.pbtxt as it lies on disk; None when it names none."""
    entry = rf'key:\s*"{re.escape(name)}"\s*,?\s*value:?\s*{{\s*string_value:\s*"([^"]*)"'
    found = re.search(entry, config_file.read_text(encoding="utf-8"))
    return found.group(1) if found else None


def version_folder(args: Mapping[str, str]) -> Path:
    """The folder of the loaded version, e.g. model_repository/target/1."""
    return Path(args["model_repository"]) / args["model_version"]
