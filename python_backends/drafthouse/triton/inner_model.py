"""What target, drafters, router and fusion have in common: check the lease, answer, never raise at Triton."""

from __future__ import annotations

import logging
import uuid
from abc import abstractmethod
from collections.abc import Sequence

import triton_python_backend_utils as pb_utils

from drafthouse.core.errors import DrafthouseError, ErrorCode, ServerError
from drafthouse.triton.codec.envelope import Envelope, Tensors
from drafthouse.triton.lease import Lease
from drafthouse.triton.schema import MESSAGE, MessageSchema
from drafthouse.triton.tensors import read_inputs, to_error, to_response


class InnerModel:
    """Base of the models that only `cosine` and `fusion` may call. One response per request, in order."""

    def __init__(self) -> None:
        self._lease = Lease.from_environment()
        self._calls, self._answers = Envelope(self.messages.call), Envelope(self.messages.answer)

    messages: MessageSchema  # what this model is asked and answers; set by the class

    @abstractmethod
    def answer(self, sections: Tensors) -> Tensors:
        """Compute the answer's sections from those of one call. May raise DrafthouseError."""

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Triton's entry point."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            sections = self._calls.unseal(read_inputs(request)[MESSAGE.name])
            self._lease.check(sections)
            return to_response({MESSAGE.name: self._answers.seal(self.answer(sections))})
        except DrafthouseError as error:
            return to_error(error)
        except Exception:
            # The border to Triton: the traceback goes to the log and never to a caller.
            incident = uuid.uuid4().hex[:12]
            logging.getLogger(__name__).exception("incident %s", incident)
            return to_error(ServerError(ErrorCode.INTERNAL, "model", f"incident {incident}"))
