"""Raw calls to a running server, without our own client: what curl and a stock gRPC client would send."""

import http.client
import json
import queue
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc as triton_grpc

from drafthouse.triton.schema import COSINE

_NUMPY_TYPES = {"STRING": np.object_, "BOOL": np.bool_, "INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64}
_SPECS = {spec.name: spec for spec in COSINE.inputs}
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """All that came back for one request."""

    outputs: list[dict[str, Any]]  # one dict per response that carried outputs
    errors: list[str]
    num_finals: int = 1


def http_post(http_url: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """POST; status and whole body."""
    parts = urlsplit(http_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def http_generate(http_url: str, fields: dict[str, Any] | bytes, *, stream: bool = False) -> tuple[int, Answer]:
    """`generate` or `generate_stream` with a JSON body (bytes are sent as they are)."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    status, reply = http_post(http_url, f"/v2/models/cosine/generate{'_stream' if stream else ''}", body)
    if stream:
        lines = [line.removeprefix(b"data:") for line in reply.splitlines() if line.startswith(b"data:")]
        events = [json.loads(line) for line in lines] or [json.loads(reply)]
    else:
        events = [json.loads(reply)]
    return status, Answer([e for e in events if "error" not in e], [e["error"] for e in events if "error" in e])


def _grpc_input(name: str, value: object) -> triton_grpc.InferInput:
    dtype = _SPECS[name].dtype if name in _SPECS else "STRING"
    values = list(value) if isinstance(value, list | tuple) else [value]
    if dtype == "STRING":
        values = [v if isinstance(v, bytes) else str(v).encode() for v in values]
    array = np.array(values, _NUMPY_TYPES[dtype]).reshape(1, -1)
    tensor = triton_grpc.InferInput(name, list(array.shape), "BYTES" if dtype == "STRING" else dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def grpc_generate(grpc_address: str, fields: dict[str, Any], parameters: dict[str, Any] | None = None, model: str = "cosine") -> Answer:
    """One request on a gRPC stream with the stock client; collects every response until FINAL."""
    arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
    outputs: list[dict[str, Any]] = []
    errors: list[str] = []
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        client.start_stream(callback=lambda result, error: arrived.put((result, error)))
        client.async_stream_infer(
            model,
            [_grpc_input(name, value) for name, value in fields.items()],
            enable_empty_final_response=True,
            parameters=parameters,
        )
        final = False
        while not final:
            result, error = arrived.get(timeout=TIMEOUT_S)
            if error is not None:
                errors.append(error.message())
                break
            response = result.get_response()
            final = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                outputs.append({o.name: result.as_numpy(o.name).reshape(-1).tolist() for o in response.outputs})
        client.stop_stream()
    return Answer(outputs, errors, int(final) + len(errors))
