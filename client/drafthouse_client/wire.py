"""Requests and responses as protobuf messages of Triton's gRPC stream: pure functions, no network.

The generated messages of ``tritonclient.grpc`` are used directly. Its own stream class allows one stream per client
and delivers through a callback; one gRPC call per request gives plain iterators and lets each be cancelled alone.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from drafthouse.core.errors import ErrorCode
from drafthouse_client.completion import Chunk, GenerateOptions, Perf, Prompt
from drafthouse_client.errors import ServerSideError, parse_error

# Triton data type of every input this client can send. A unit test compares it with the server's own table.
INPUT_TYPES: Mapping[str, str] = {
    "text_input": "BYTES",
    "input_ids": "INT32",
    "max_tokens": "INT32",
    "min_tokens": "INT32",
    "stop_words": "BYTES",
    "bad_words": "BYTES",
    "end_id": "INT32",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "seed": "UINT64",
    "stream": "BOOL",
    "exclude_input_in_output": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
    "return_log_probs": "BOOL",
    "return_finish_reason": "BOOL",
    "return_perf_metrics": "BOOL",
    "num_draft_tokens": "INT32",
    "drafters": "BYTES",
    "deadline_ms": "INT32",
    "request_priority": "INT32",
    "stats_request": "BOOL",
}

_NUMPY_TYPES: Mapping[str, type[np.generic]] = {
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "BOOL": np.bool_,
}

_FORMATS: Mapping[str, str] = {"INT32": "<i", "UINT64": "<Q", "FP32": "<f", "BOOL": "?"}

_CLIENT_ONLY = frozenset({"timeout_s"})
_PERF_COUNTS = tuple(field.name for field in fields(Perf) if field.type is int)
_ALWAYS_RETURNED = ("return_num_input_tokens", "return_num_output_tokens", "return_finish_reason", "return_perf_metrics")

_T = TypeVar("_T")

Value = str | bool | int | float | Sequence[str] | Sequence[int]


def encode_request(model: str, inputs: Mapping[str, Value], request_id: str = "") -> pb.ModelInferRequest:
    """A stream request; every value becomes a tensor of shape [1, n] of the type in `INPUT_TYPES`.

    Raises:
        ServerSideError: INVALID_ARG when a number does not fit its tensor's type (the server would never see it).
    """
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    # Without it the server sends nothing after the last chunk, and the end would have to be guessed.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, value in inputs.items():
        datatype = INPUT_TYPES[name]
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        request.inputs.add(name=name, datatype=datatype, shape=(1, len(values)))
        request.raw_input_contents.append(_raw(name, datatype, values))
    return request


def _raw(name: str, datatype: str, values: Sequence[object]) -> bytes:
    if datatype == "BYTES":
        encoded = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(item)) + item for item in encoded)
    try:
        # One struct per number: numpy 1 would wrap an integer out of range round instead of refusing it.
        return b"".join(struct.pack(_FORMATS[datatype], value) for value in values)
    except (struct.error, OverflowError):
        message = f"INVALID_ARG field={name} value={values[0]!r} allowed={datatype}"
        raise ServerSideError(ErrorCode.INVALID_ARG, name, message) from None


def generation_inputs(prompt: Prompt, options: GenerateOptions, stream: bool) -> dict[str, Value]:
    """The inputs of one generation request: only what was set, plus what `Completion` is made of."""
    inputs: dict[str, Value] = {"text_input" if isinstance(prompt, str) else "input_ids": prompt, "stream": stream}
    for field in fields(options):
        value = getattr(options, field.name)
        unset = value is None or value == ()
        if field.name not in _CLIENT_ONLY and not unset:
            inputs[field.name] = value
    return inputs | dict.fromkeys(_ALWAYS_RETURNED, True)


def decode_outputs(response: pb.ModelStreamInferResponse) -> dict[str, list[object]]:
    """The output tensors of one response by name, flattened; strings stay bytes.

    Raises:
        ServerSideError: when the response carries an error instead.
    """
    if response.error_message:
        raise parse_error(response.error_message)
    infer = response.infer_response
    return {output.name: _values(output.datatype, raw) for output, raw in zip(infer.outputs, infer.raw_output_contents, strict=True)}


def _values(datatype: str, raw: bytes) -> list[object]:
    if datatype == "BYTES":
        return list(_strings(raw))
    array: NDArray[np.generic] = np.frombuffer(raw, dtype=_NUMPY_TYPES[datatype])
    values: list[object] = array.tolist()
    return values


def _strings(raw: bytes) -> Sequence[bytes]:
    items, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        items.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return items


def is_final(response: pb.ModelStreamInferResponse) -> bool:
    """True for the response that ends its request."""
    return bool(response.infer_response.parameters["triton_final_response"].bool_param)


def decode_chunk(response: pb.ModelStreamInferResponse) -> Chunk | None:
    """The chunk in one response; None for the empty response that only says "final".

    Raises:
        ServerSideError: when the response carries an error instead.
    """
    outputs = decode_outputs(response)
    if not outputs:
        return None
    reason = b"".join(_of_type(outputs, "finish_reason", bytes)).decode()
    num_input_tokens = _of_type(outputs, "num_input_tokens", int)
    return Chunk(
        text=b"".join(_of_type(outputs, "text_output", bytes)).decode(errors="replace"),
        output_ids=tuple(_of_type(outputs, "output_ids", int)),
        token_sources=tuple(_of_type(outputs, "token_sources", int)),
        num_output_tokens=sum(_of_type(outputs, "num_output_tokens", int)),
        num_input_tokens=num_input_tokens[0] if num_input_tokens else None,
        log_probs=tuple(_of_type(outputs, "output_log_probs", float)),
        finish_reason=reason or None,
        perf=_perf(outputs),
    )


def _of_type(outputs: Mapping[str, list[object]], name: str, kind: type[_T]) -> list[_T]:
    return [value for value in outputs.get(name, []) if isinstance(value, kind)]


def _perf(outputs: Mapping[str, list[object]]) -> Perf | None:
    if "last_token_time_ns" not in outputs:
        return None
    counts = {name: _of_type(outputs, name, int) for name in _PERF_COUNTS}
    return Perf(
        acceptance_rate=sum(_of_type(outputs, "acceptance_rate", float)),
        **{name: values[0] if values else 0 for name, values in counts.items()},
    )
