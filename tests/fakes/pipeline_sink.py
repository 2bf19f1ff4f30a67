"""A response sink that remembers everything and holds the pipeline to one final answer."""

import asyncio

from drafthouse.core.errors import DrafthouseError, ErrorCode
from drafthouse.pipeline.contract import OutputChunk


class FakeSink:
    def __init__(self) -> None:
        self.chunks: list[OutputChunk] = []
        self.error: DrafthouseError | None = None
        self.num_finals = 0
        self.cancelled = False
        self.cancel_after_chunks: int | None = None
        self.done = asyncio.Event()

    def send(self, chunk: OutputChunk) -> None:
        assert self.num_finals == 0
        assert chunk.finish_reason is None
        self.chunks.append(chunk)
        if self.cancel_after_chunks is not None and len(self.chunks) >= self.cancel_after_chunks:
            self.cancelled = True

    def finish(self, chunk: OutputChunk) -> None:
        assert chunk.finish_reason is not None
        self.chunks.append(chunk)
        self._final()

    def fail(self, error: DrafthouseError) -> None:
        self.error = error
        self._final()

    def _final(self) -> None:
        assert self.num_finals == 0
        self.num_finals += 1
        self.done.set()

    @property
    def text(self) -> str:
        assert self.error is None, str(self.error)
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def output_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.output_ids]


def error_of(sink: FakeSink) -> tuple[ErrorCode, str]:
    """Code and field of the one error that the request was answered with."""
    assert sink.num_finals == 1
    assert sink.error is not None
    assert str(sink.error).startswith(f"{sink.error.code} field={sink.error.field}")
    return sink.error.code, sink.error.field
