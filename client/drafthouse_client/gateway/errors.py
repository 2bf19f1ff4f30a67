"""Errors in OpenAI's shape, whoever found them: this gateway, its body models, its router, or the server behind it."""

import difflib
import json
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from drafthouse.core.errors import DrafthouseError, ErrorCode, invalid, unsupported
from drafthouse_client.errors import ServerSideError
from drafthouse_client.gateway.requests import ChatBody, CompletionBody
from drafthouse_client.gateway.unsupported import UNSUPPORTED

JSON_TYPE = "application/json"
_INVALID, _SERVER = "invalid_request_error", "server_error"
_PARAMETERS = tuple({**CompletionBody.model_fields, **ChatBody.model_fields})
_UNION_BRANCH = re.compile(r"str|int|float|bool|constrained.*|list\[.*|.*[A-Z].*")
_HEADERS = {
    401: {"www-authenticate": "Bearer"},
    413: {"connection": "close"},  # the rest of the body is not read
    503: {"retry-after": "1"},
    504: {"x-should-retry": "false"},  # of OpenAI's client, which repeats 5xx by itself
}


class ApiError(HTTPException):
    """An answer other than 200.

    It is an `HTTPException` because FastAPI turns any other exception that is raised while it reads a body into a 400.

    Attributes:
        kind: OpenAI's `type`.
        param: the parameter of the request that is at fault, None when none is.
        code: what programs compare; OpenAI's word where it has one.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message, _HEADERS.get(status))
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, object]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return Response(to_json(self.body()), self.status_code, self.headers, JSON_TYPE)


def to_json(value: object) -> bytes:
    """JSON in ASCII: texts may hold halves of surrogate pairs, which no UTF-8 can."""
    return json.dumps(value, separators=(",", ":")).encode()


def from_drafthouse(error: DrafthouseError, code: str | None = None) -> ApiError:
    """A refusal of this gateway's own."""
    words = {ErrorCode.UNSUPPORTED: "unsupported_parameter", ErrorCode.INVALID_ARG: "invalid_value"}
    return ApiError(400, _INVALID, str(error), error.field, code or words.get(error.code))


def from_server(error: ServerSideError, names: Mapping[str, str]) -> ApiError:
    """What the server refused or failed at; `names` maps its inputs to the request's parameters."""
    param = names.get(error.field, error.field) or None
    message = error.message.replace(f"field={error.field}", f"field={param}", 1) if param else error.message
    match error.code:
        case ErrorCode.INVALID_ARG if " tokens" in message and param in ("prompt", "messages", "max_tokens", "max_completion_tokens"):
            return ApiError(400, _INVALID, message, param, "context_length_exceeded")
        case ErrorCode.INVALID_ARG:
            return ApiError(400, _INVALID, message, param, "invalid_value")
        case ErrorCode.UNSUPPORTED:
            return ApiError(400, _INVALID, message, param, "unsupported_parameter")
        case ErrorCode.UNAVAILABLE | ErrorCode.CANCELLED:
            return ApiError(503, _SERVER, _one_form(error), None, "unavailable")
        case ErrorCode.DEADLINE_EXCEEDED:
            return ApiError(504, _SERVER, _one_form(error), None, "deadline_exceeded")
        case _:
            return ApiError(500, _SERVER, _one_form(error), None, "internal")


def _one_form(error: ServerSideError) -> str:
    """gRPC's own words name addresses and say little: only the server's are passed on."""
    return error.message if error.field else str(DrafthouseError(error.code, "server", None, "a server that answers"))


def from_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body."""
    first = error.errors()[0]
    kind, path = first["type"], [part for part in first["loc"][1:] if isinstance(part, int) or not _UNION_BRANCH.fullmatch(part)]
    name = ".".join(str(part) for part in path)
    if kind == "json_invalid" or not path:
        return from_drafthouse(invalid("body", None, "a JSON object, sent as application/json"), "invalid_json")
    if kind == "missing":
        return from_drafthouse(invalid(name, None, "a value: it is required"), "missing_required_parameter")
    if kind == "extra_forbidden":
        return _unknown(name, first["input"])
    allowed = str(first["msg"]).removeprefix("Input should be ").removeprefix("Value should ")
    return from_drafthouse(invalid(name, first["input"], allowed))


def _unknown(name: str, value: object) -> ApiError:
    if name in UNSUPPORTED:
        neutral = " or ".join(json.dumps(item) for item in (*UNSUPPORTED[name], None))
        return from_drafthouse(unsupported(name, value, f"{neutral} (no effect)"))
    near = difflib.get_close_matches(name, _PARAMETERS, n=1)
    shown = name if name.isprintable() and len(name) <= 80 else "body"
    allowed = f"a known parameter; did you mean {near[0]}?" if near else "a known parameter"
    return from_drafthouse(invalid(shown, None, allowed), "unknown_parameter")


def from_http(error: HTTPException) -> ApiError:
    """No such path, or a method it does not have. Refusals of our own pass as they are."""
    if isinstance(error, ApiError):
        return error
    words: dict[int, tuple[str, Any]] = {404: ("a path of this API", "not_found"), 405: ("another method", "method_not_allowed")}
    allowed, code = words.get(error.status_code, (str(error.detail), None))
    refusal = ApiError(error.status_code, _INVALID, str(invalid("request", None, allowed)), None, code)
    refusal.headers = error.headers  # the methods that a path does have
    return refusal


def from_bug(error: Exception) -> ApiError:
    """Our own mistake: the log has it, under the number that the client is told."""
    incident = uuid.uuid4().hex[:12]
    logging.getLogger(__name__).error("incident %s", incident, exc_info=error)
    message = str(DrafthouseError(ErrorCode.INTERNAL, "request", f"incident {incident}"))
    return ApiError(500, _SERVER, message, None, "internal")
