"""The two kinds of failure a user can see, and the one form in which both are written."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """First word of every error message; maps one to one onto a Triton error code."""

    INVALID_ARG = "INVALID_ARG"
    UNSUPPORTED = "UNSUPPORTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


# A value a client sent is echoed, but never more of it than this.
MAX_ECHOED_CHARS = 80


def _clip(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_ECHOED_CHARS else text[: MAX_ECHOED_CHARS - 1] + "…"


class DrafthouseError(Exception):
    """An error with a code, rendered as ``CODE field=… value=… allowed=…``.

    Attributes:
        code: what kind of failure this is.
        field: the input that caused it (a tensor name where there is one).
    """

    def __init__(self, code: ErrorCode, field: str, value: object = None, allowed: str | None = None) -> None:
        self.code = code
        self.field = field
        parts = [code.value, f"field={field}"]
        if value is not None:
            parts.append(f"value={_clip(value)}")
        if allowed is not None:
            parts.append(f"allowed={allowed}")
        super().__init__(" ".join(parts))


class ClientError(DrafthouseError):
    """The request is at fault; the same request will fail again."""


class ServerError(DrafthouseError):
    """We, or the moment, are at fault; the message never carries a traceback."""


def invalid(field: str, value: object, allowed: str) -> ClientError:
    """INVALID_ARG for ``field``, naming the offending value and the allowed range."""
    return ClientError(ErrorCode.INVALID_ARG, field, value, allowed)


def unsupported(field: str, value: object, allowed: str) -> ClientError:
    """UNSUPPORTED for ``field``: understood, and refused by name."""
    return ClientError(ErrorCode.UNSUPPORTED, field, value, allowed)
