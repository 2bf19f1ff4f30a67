"""The one exception of the launcher."""

from __future__ import annotations


class LaunchError(Exception):
    """Something the operator can act on, in the project's form `CODE field=… value=… allowed=…`.

    `details` holds further lines worth showing (a model's own error lines), already short.
    """

    def __init__(self, code: str, *, field: str, value: object, allowed: str, details: tuple[str, ...] = ()) -> None:
        self.code = code
        self.field = field
        self.details = details
        super().__init__("\n".join((f"{code} field={field} value={value} allowed={allowed}", *details)))
