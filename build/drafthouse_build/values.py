"""Numbers read from a config.json: present, of the right type, in range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drafthouse_build.errors import BuildError


def positive_int(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The integer ≥ 1 at `key`, `default` where there is none; raises `BuildError`."""
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BuildError("INVALID_ARG", key, value, "an integer ≥ 1")
    return value


def positive_float(raw: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The number > 0 at `key`, `default` where there is none; raises `BuildError`."""
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise BuildError("INVALID_ARG", key, value, "a number > 0")
    return float(value)
