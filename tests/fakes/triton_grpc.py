"""A gRPC server in this process that speaks Triton's stream protocol and answers from a script."""

import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

OUTPUT_TYPES = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "stats": "BYTES",
    "output_ids": "INT32",
    "token_sources": "INT32",
    "num_input_tokens": "INT32",
    "num_output_tokens": "INT32",
    "output_log_probs": "FP32",
    "acceptance_rate": "FP32",
    "total_accepted_draft_tokens": "INT32",
    "total_draft_tokens": "INT32",
    "arrival_time_ns": "INT64",
    "first_scheduled_time_ns": "INT64",
    "first_token_time_ns": "INT64",
    "last_token_time_ns": "INT64",
}
_NUMPY = {"INT32": np.int32, "INT64": np.int64, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_}

Script = Callable[[dict[str, list[object]]], Iterator[pb.ModelStreamInferResponse]]


def response(**outputs: object) -> pb.ModelStreamInferResponse:
    """One increment with these output tensors."""
    message = pb.ModelStreamInferResponse()
    for name, value in outputs.items():
        values = list(value) if isinstance(value, tuple) else [value]
        kind = OUTPUT_TYPES[name]
        message.infer_response.outputs.add(name=name, datatype=kind, shape=(1, len(values)))
        if kind == "BYTES":
            encoded = [item if isinstance(item, bytes) else str(item).encode() for item in values]
            raw = b"".join(struct.pack("<I", len(item)) + item for item in encoded)
        else:
            raw = np.array(values, _NUMPY[kind]).tobytes()
        message.infer_response.raw_output_contents.append(raw)
    return message


def final() -> pb.ModelStreamInferResponse:
    """The empty response that ends a request."""
    message = pb.ModelStreamInferResponse()
    message.infer_response.parameters["triton_final_response"].bool_param = True
    return message


def error(text: str) -> pb.ModelStreamInferResponse:
    """A response that carries an error, as Triton sends it without the header `triton_grpc_error`."""
    return pb.ModelStreamInferResponse(error_message=text)


def decode_inputs(request: pb.ModelInferRequest) -> dict[str, list[object]]:
    """The request's tensors by name, flattened."""
    inputs: dict[str, list[object]] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        inputs[tensor.name] = _strings(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, _NUMPY[tensor.datatype]).tolist()
        assert list(tensor.shape) == [1, len(inputs[tensor.name])]
    return inputs


def _strings(raw: bytes) -> list[object]:
    items: list[object] = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        items.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return items


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every request by `script(inputs)` and keeps what it saw."""

    script: Script
    drafters: str = "code,math"
    seen: list[dict[str, list[object]]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def ModelStreamInfer(
        self, request_iterator: Iterator[pb.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ModelStreamInferResponse]:
        """Runs the script; `cancelled` is set when the client goes away before its end."""
        for request in request_iterator:
            assert request.parameters["triton_enable_empty_final_response"].bool_param
            self.seen.append(decode_inputs(request))
            # gRPC drops the generator of a cancelled call without a word, but it does run the call's callbacks.
            ended = threading.Event()
            context.add_callback(lambda ended=ended: None if ended.is_set() else self.cancelled.set())
            yield from self.script(self.seen[-1])
            ended.set()

    def ModelConfig(self, request: pb.ModelConfigRequest, context: grpc.ServicerContext) -> pb.ModelConfigResponse:
        """The one parameter the client reads."""
        answer = pb.ModelConfigResponse()
        answer.config.name = request.name
        answer.config.parameters["drafters"].string_value = self.drafters
        return answer

    def ServerMetadata(self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext) -> pb.ServerMetadataResponse:
        """A version nobody released."""
        return pb.ServerMetadataResponse(name="triton", version="0.0.1")

    def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.ServicerContext) -> pb.ModelReadyResponse:
        """Always ready."""
        return pb.ModelReadyResponse(ready=True)


@contextmanager
def serving(fake: FakeTriton, num_workers: int = 8) -> Iterator[str]:
    """Serves ``num_workers`` calls at once on a free loopback port; yields its address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=num_workers))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


def scripted(*messages: pb.ModelStreamInferResponse) -> Script:
    """The same messages for every request."""
    return lambda _inputs: iter(messages)


def endless(message: pb.ModelStreamInferResponse, pause_s: float = 0.005) -> Script:
    """The same increment until the client goes away."""

    def run(_inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
        while True:
            yield message
            time.sleep(pause_s)

    return run


PERF: dict[str, object] = {
    "acceptance_rate": 0.5,
    "total_accepted_draft_tokens": 2,
    "total_draft_tokens": 4,
    "arrival_time_ns": 1_000_000_000,
    "first_scheduled_time_ns": 1_001_000_000,
    "first_token_time_ns": 1_020_000_000,
    "last_token_time_ns": 1_040_000_000,
}


def two_chunks() -> Sequence[pb.ModelStreamInferResponse]:
    """A short completion: the prefill's token, a verification that emitted two, one that emitted one."""
    return (
        response(
            text_output="ab",
            output_ids=(5, 6),
            token_sources=(-1, 0),
            num_output_tokens=2,
            num_input_tokens=3,
            output_log_probs=(-0.5, -0.25),
        ),
        response(text_output="c", output_ids=(7, 8), token_sources=(-1, -1), num_output_tokens=2, finish_reason="length", **PERF),
        final(),
    )
