"""The one error that a build shows to its user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Code = Literal["INVALID_ARG", "UNSUPPORTED", "UNAVAILABLE"]


class BuildError(Exception):
    """Bad input to a build, printed as one line `CODE field=… value=… allowed=…`.

    `code` is INVALID_ARG for what is missing or wrong, UNSUPPORTED for what is correct but not handled here, UNAVAILABLE for what could
    not be reached or is not installed.
    """

    def __init__(self, code: Code, field: str, value: object, allowed: str | Iterable[str]) -> None:
        self.code = code
        self.field = field
        self.value = value
        self.allowed = allowed if isinstance(allowed, str) else ", ".join(allowed)
        super().__init__(f"{code} field={field} value={value} allowed={self.allowed}")
