"""One request on a gRPC stream, by the project's own client on the messages of `tritonclient.grpc`.

gRPC waits in C, which would stop all users of a locust process at once; `make_cooperative` has it wait through gevent instead
(`grpc.experimental.gevent`; streams under load hung before grpcio 1.51, https://github.com/grpc/grpc/issues/27340).
"""

from collections.abc import Iterator
from contextlib import closing

from grpc.experimental.gevent import init_gevent  # type: ignore[import-untyped]

from drafthouse_client import Client, GenerateOptions, ServerSideError
from drafthouse_load.locust_users.observed import StreamEvent, failed

WHERE = "gRPC stream"


def make_cooperative() -> None:
    """Have gRPC wait through gevent: once, after gevent's own patches (locust's import) and before the first channel."""
    init_gevent()


def stream_events(client: Client, prompt: str, options: GenerateOptions) -> Iterator[StreamEvent]:
    """Send a request; its increments. Raises StreamFailed for an error in the stream and for a connection that fails."""
    try:
        with closing(client.stream(prompt, options)) as chunks:
            for chunk in chunks:
                drafted, accepted = (
                    (0, 0) if chunk.perf is None else (chunk.perf.total_draft_tokens, chunk.perf.total_accepted_draft_tokens)
                )
                yield StreamEvent(
                    num_tokens=chunk.num_output_tokens,
                    num_text_bytes=len(chunk.text.encode()),
                    is_last=chunk.finish_reason is not None,
                    num_drafted=drafted,
                    num_accepted=accepted,
                )
    except ServerSideError as error:
        raise failed(error, WHERE) from error
