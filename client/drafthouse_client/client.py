"""The synchronous client."""

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from drafthouse.core.errors import ErrorCode
from drafthouse_client import wire
from drafthouse_client.completion import Chunk, Completion, GenerateOptions, Prompt, join_chunks
from drafthouse_client.errors import ServerSideError, from_rpc_error
from drafthouse_client.events import Event, EventMaker
from drafthouse_client.retry import Attempts, Retry

DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_MODEL = "cosine"
DEFAULT_TIMEOUT_S = 120.0
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_DEFAULT_OPTIONS = GenerateOptions()


def stream_cut_short() -> ServerSideError:
    """What a stream that ends without its final response means: the server or its model went away."""
    return ServerSideError(ErrorCode.UNAVAILABLE, "", "the server ended the stream before its final response")


def drafters_of(config: pb.ModelConfigResponse) -> tuple[str, ...]:
    """The drafters' names in the order that `Chunk.token_sources` counts them."""
    names = config.config.parameters["drafters"].string_value
    return tuple(name.strip() for name in names.split(",") if name.strip())


class Client:
    """A connection to one server; safe to share between threads, any number of streams at once.

    Every method raises `ServerSideError`, for the server's own refusals as for a server that is gone or too slow.

    Args:
        url: host and port of Triton's gRPC endpoint.
        model: the Triton model that speaks text.
        timeout_s: limit of one call from start to end, repetitions included, unless the options say otherwise.
        retry: how generations are repeated while the server is unavailable and nothing of the answer has come; None: not at all.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, model: str = DEFAULT_MODEL, timeout_s: float = DEFAULT_TIMEOUT_S, retry: Retry | None = None
    ) -> None:
        self._channel = grpc.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._model = model
        self._timeout_s = timeout_s
        self._retry = retry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; streams still open are cancelled."""
        self._channel.close()

    def generate(self, prompt: Prompt, options: GenerateOptions = _DEFAULT_OPTIONS) -> Completion:
        """The whole completion of ``prompt`` (text, or token ids) in one answer."""
        started = time.perf_counter()
        chunks = list(self._chunks(wire.generation_inputs(prompt, options, stream=False), options.timeout_s))
        return join_chunks(chunks, time.perf_counter() - started)

    def stream(self, prompt: Prompt, options: GenerateOptions = _DEFAULT_OPTIONS) -> Generator[Chunk, None, None]:
        """The completion in increments, as the server verifies them.

        Closing the generator (or leaving ``with contextlib.closing(...)``) cancels the request on the server.
        """
        return self._chunks(wire.generation_inputs(prompt, options, stream=True), options.timeout_s)

    def events(self, prompt: Prompt, options: GenerateOptions = _DEFAULT_OPTIONS) -> Generator[Event, None, None]:
        """The completion token by token: `Tokens` with the drafter behind each, at the end `Finished` with the whole.

        Closing the generator cancels the request, as with `stream`.
        """
        maker = EventMaker()
        with closing(self.stream(prompt, options)) as chunks:
            for chunk in chunks:
                if maker.drafters is None:
                    # Not before: now the server is there, whatever it took.
                    maker.drafters = self.drafters()
                yield maker.tokens(chunk)
        yield maker.finished()

    def stats(self) -> dict[str, Any]:
        """The server's counters since it loaded the model (`drafthouse.triton.statistics`), as decoded JSON."""
        request = wire.encode_request(self._model, {"stats_request": True})
        with closing(self._responses(request, None)) as responses:
            answers = [wire.decode_outputs(response) for response in responses]
        return parse_stats(answers)

    def drafters(self) -> tuple[str, ...]:
        """The drafters' names in the order that `Chunk.token_sources` counts them."""
        return drafters_of(self._unary(self._stub.ModelConfig, pb.ModelConfigRequest(name=self._model)))

    def server_version(self) -> str:
        """Triton's own version, e.g. "2.51.0"."""
        return str(self._unary(self._stub.ServerMetadata, pb.ServerMetadataRequest()).version)

    def ready(self) -> bool:
        """True when the model answers; False (never an exception) while it does not."""
        try:
            answer = self._unary(self._stub.ModelReady, pb.ModelReadyRequest(name=self._model))
        except ServerSideError:
            return False
        return bool(answer.ready)

    def _unary(self, method: Callable[..., Any], request: object) -> Any:  # noqa: ANN401 - generated protobuf
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def _chunks(self, inputs: dict[str, wire.Value], timeout_s: float | None) -> Generator[Chunk, None, None]:
        request = wire.encode_request(self._model, inputs)
        attempts = Attempts(self._retry, self._timeout_s if timeout_s is None else timeout_s)
        while attempts.open:
            try:
                with closing(self._responses(request, attempts.remaining_s())) as responses:
                    for response in responses:
                        chunk = wire.decode_chunk(response)
                        if chunk is not None:
                            attempts.saw_chunk()
                            yield chunk
                attempts.ended()
            except ServerSideError as error:
                time.sleep(attempts.pause_after(error))

    def _responses(self, request: pb.ModelInferRequest, timeout_s: float | None) -> Generator[pb.ModelStreamInferResponse, None, None]:
        call = self._stub.ModelStreamInfer(iter((request,)), timeout=self._timeout_s if timeout_s is None else timeout_s)
        final = False
        try:
            for response in _translated(call):
                yield response
                final = final or wire.is_final(response)
            if not final:
                raise stream_cut_short()
        finally:
            call.cancel()  # does nothing once the stream has ended by itself


def _translated(call: Iterator[pb.ModelStreamInferResponse]) -> Iterator[pb.ModelStreamInferResponse]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def parse_stats(answers: list[dict[str, list[object]]]) -> dict[str, Any]:
    """The JSON object in the answers to a ``stats_request``.

    Raises:
        ServerSideError: INTERNAL when no answer holds one (an older or foreign model).
    """
    for outputs in answers:
        for value in outputs.get("stats", []):
            if isinstance(value, bytes):
                decoded: dict[str, Any] = json.loads(value)
                return decoded
    raise ServerSideError(ErrorCode.INTERNAL, "stats_request", "the server's answer holds no statistics")
