"""Errors of the client: one class, with the code and field that the server named."""

import re

import grpc  # type: ignore[import-untyped]

from drafthouse.core.errors import ErrorCode

_WRITTEN_BY_DRAFTHOUSE = re.compile(rf"\b({'|'.join(ErrorCode)}) field=(\S+)")

_CODE_OF_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: ErrorCode.INVALID_ARG,
    grpc.StatusCode.UNIMPLEMENTED: ErrorCode.UNSUPPORTED,
    grpc.StatusCode.UNAVAILABLE: ErrorCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND: ErrorCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ErrorCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: ErrorCode.CANCELLED,
}


class ServerSideError(Exception):
    """The request was refused or failed.

    Attributes:
        code: the kind of failure.
        field: the input the server names, or ``""`` when the failure is not about one input.
        message: the server's whole message (or gRPC's, when the server could not be reached).
    """

    def __init__(self, code: ErrorCode, field: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message


def parse_error(message: str, fallback: ErrorCode = ErrorCode.INTERNAL) -> ServerSideError:
    """Read ``CODE field=… value=… allowed=…``; a message in another form (Triton's own) gets ``fallback``."""
    found = _WRITTEN_BY_DRAFTHOUSE.search(message)
    if found is None:
        return ServerSideError(fallback, "", message)
    return ServerSideError(ErrorCode(found.group(1)), found.group(2), message)


def from_rpc_error(error: grpc.RpcError) -> ServerSideError:
    """The same error class for what gRPC itself reports: server gone, timeout, cancelled call."""
    status = error.code()
    message = error.details() or str(status)
    return parse_error(message, _CODE_OF_STATUS.get(status, ErrorCode.INTERNAL))
