"""Requests and responses of the Python backend as dictionaries of arrays."""

from __future__ import annotations

from collections.abc import Mapping

import triton_python_backend_utils as pb_utils

from drafthouse.core.errors import DrafthouseError, ErrorCode
from drafthouse.triton.codec.envelope import Array, Tensors

# Names in triton_python_backend_utils.TritonError. The stub adds that class only after it has imported the model, so it
# cannot be touched while this module is imported; the same holds for everything else of the stub's own.
_TRITON_CODES = {
    ErrorCode.INVALID_ARG: "INVALID_ARG",
    ErrorCode.UNSUPPORTED: "UNSUPPORTED",
    ErrorCode.UNAVAILABLE: "UNAVAILABLE",
    ErrorCode.DEADLINE_EXCEEDED: "CANCELLED",  # Triton has no deadline code
    ErrorCode.CANCELLED: "CANCELLED",
    ErrorCode.INTERNAL: "INTERNAL",
}


def read_inputs(request: pb_utils.InferenceRequest) -> Tensors:
    """Every input of a request by name; BYTES tensors become object arrays of bytes."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def to_response(arrays: Mapping[str, Array]) -> pb_utils.InferenceResponse:
    """A response that carries these arrays."""
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in arrays.items()])


def to_error(error: DrafthouseError) -> pb_utils.InferenceResponse:
    """A response that carries this error and nothing else."""
    code = getattr(pb_utils.TritonError, _TRITON_CODES[error.code])
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
