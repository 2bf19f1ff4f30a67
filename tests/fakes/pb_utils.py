"""`triton_python_backend_utils` for tests without a server: hand-written, only names that the real module has.

tests/e2e/test_fakes.py compares the names below with those of the real module inside a running stub.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonModelException(Exception):
    """Raised by the backend itself."""


class TritonError:
    """An error with one of Triton's codes."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    """Remembers what was sent; `client_gone` is what is_cancelled answers."""

    def __init__(self) -> None:
        self.sent: list[tuple[InferenceResponse | None, int]] = []
        self.client_gone = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if any(f & TRITONSERVER_RESPONSE_COMPLETE_FINAL for _, f in self.sent):
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return self.client_gone


class InferenceRequest:
    """A request as `execute` gets it."""

    def __init__(
        self,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
    ) -> None:
        self._inputs, self._outputs = list(inputs), list(requested_output_names)
        self._called = model_name
        self._sender = InferenceResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    async def async_exec(self) -> InferenceResponse:
        """Calls another model: the test's `answer_bls`."""
        return await answer_bls(self)

    def get_response_sender(self) -> InferenceResponseSender:
        return self._sender


async def _nobody_answers(request: InferenceRequest) -> InferenceResponse:
    raise TritonModelException("no test has said what other models answer")


# Set by a test: what the called model answers.
answer_bls: Callable[[InferenceRequest], Awaitable[InferenceResponse]] = _nobody_answers


class Metric:
    """Remembers its value; a histogram's is the list of what was observed."""

    def __init__(self) -> None:
        self._value = 0.0
        self._observed: list[float] = []

    def increment(self, value: float) -> None:
        self._value += value

    def set(self, value: float) -> None:
        self._value = value

    def observe(self, value: float) -> None:
        self._observed.append(value)

    def value(self) -> float:
        return self._value


class MetricFamily:
    """Families of the test, by name: made twice they are the same one, as in the server."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._kind = kind
        self._metrics: dict[tuple[tuple[str, str], ...], Metric] = registry.setdefault(name, {})

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        assert (buckets is not None) == (self._kind == self.HISTOGRAM)
        return self._metrics.setdefault(tuple(sorted(labels.items())), Metric())


# The server's metrics: by family, then by labels.
registry: dict[str, dict[tuple[tuple[str, str], ...], Metric]] = {}


class Logger:
    @staticmethod
    def log_info(message: str) -> None: ...

    @staticmethod
    def log_warn(message: str) -> None: ...

    @staticmethod
    def log_error(message: str) -> None: ...


def load_model(model_name: str) -> None: ...


def unload_model(model_name: str) -> None: ...
