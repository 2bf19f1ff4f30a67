"""What target, drafters, router and fusion have in common: check the lease, answer, never raise at Triton."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Sequence

import triton_python_backend_utils as pb_utils

from drafthouse.core.errors import DrafthouseError, ErrorCode, ServerError
from drafthouse.triton.codec.rows import Tensors
from drafthouse.triton.lease import Lease
from drafthouse.triton.tensors import read_inputs, to_error, to_response


class InnerModel:
    """Base of the models that only `cosine` and `fusion` may call. One response per request, in order."""

    def __init__(self) -> None:
        self._lease = Lease.from_environment()

    @abstractmethod
    def answer(self, tensors: Tensors) -> Tensors:
        """Compute the outputs for the inputs of one call. May raise DrafthouseError."""

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Triton's entry point."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            tensors = read_inputs(request)
            self._lease.check(tensors)
            return to_response(self.answer(tensors))
        except DrafthouseError as error:
            return to_error(error)
        except Exception as error:  # noqa: BLE001 - the border to Triton: a traceback must not reach a caller
            incident = uuid.uuid4().hex[:12]
            pb_utils.Logger.log_error(f"[drafthouse] incident {incident}: {type(error).__name__}: {error}")
            return to_error(ServerError(ErrorCode.INTERNAL, "model", f"incident {incident}"))
