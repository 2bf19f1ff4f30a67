"""The one thread that makes the blocking calls towards clients: sends, FINAL flags, cancellation polls.

`send()` and `is_cancelled()` of Triton's response sender wait for another process, so they must not run on the event
loop. Order per request is kept because there is one thread and one queue.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import triton_python_backend_utils as pb_utils

from drafthouse.core.errors import DrafthouseError, ErrorCode, ServerError
from drafthouse.pipeline.contract import GenerationRequest, OutputChunk
from drafthouse.triton.codec.envelope import Tensors
from drafthouse.triton.tensors import to_error, to_response

POLL_AT_LEAST_S = 0.2
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Responder:
    """Runs jobs in order on its own thread; one failing job is logged and the next one runs."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._watched: dict[int, TritonSink] = {}  # open streams by id(); only touched on the responder's thread
        self._poll_pending = False
        self._last_poll_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="drafthouse-responder", daemon=True)
        self._thread.start()

    def post(self, job: Callable[[], None]) -> None:
        """Queue a job. Never blocks."""
        self._jobs.put(job)

    def watch(self, sink: TritonSink) -> None:
        """Poll this client until it has its last answer."""
        self.post(lambda: self._watched.update({id(sink): sink}))

    def poll_cancelled(self) -> None:
        """Ask Triton which of the watched clients have gone; at most one poll is queued at a time. Never blocks."""
        if not self._poll_pending:
            self._poll_pending = True
            self.post(self._poll)

    def close(self) -> None:
        """Run what is queued, answer whoever has no last answer yet with UNAVAILABLE, then end the thread."""
        self.post(self._turn_away)
        self._jobs.put(None)
        self._thread.join()

    def _turn_away(self) -> None:
        for sink in self._watched.values():
            sink.fail_now(ServerError(ErrorCode.UNAVAILABLE, "server", "shutting down", "try again later"))

    def _poll(self) -> None:
        self._poll_pending = False
        self._last_poll_s = time.monotonic()
        self._watched = {key: sink for key, sink in self._watched.items() if not sink.closed}
        for sink in self._watched.values():
            sink.poll()

    def _next_job(self) -> Callable[[], None] | None:
        """What to do next: a poll when none was asked for in a while, as during a call that hangs. None = close."""
        while True:
            try:
                return self._jobs.get(timeout=POLL_AT_LEAST_S)
            except queue.Empty:
                if self._watched and time.monotonic() - self._last_poll_s >= POLL_AT_LEAST_S:
                    return self._poll

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - a client that went away must not end the thread
                pb_utils.Logger.log_warn(f"[drafthouse] a response could not be delivered: {error}")


class TritonSink:
    """One client's way out (`pipeline.contract.ResponseSink`). FINAL is sent exactly once."""

    def __init__(self, request: pb_utils.InferenceRequest, responder: Responder) -> None:
        self._sender = request.get_response_sender()
        self._wanted = frozenset(request.requested_output_names())
        self._responder = responder
        self._cancelled = False
        self._closed = False
        self.generation: GenerationRequest | None = None  # set by the front door once the request is understood

    @property
    def closed(self) -> bool:
        """True once the last answer is queued."""
        return self._closed

    @property
    def cancelled(self) -> bool:
        """True once a poll has seen that the client is gone."""
        return self._cancelled

    def send(self, chunk: OutputChunk) -> None:
        """Queue one increment."""
        tensors = self._tensors(chunk)
        self._responder.post(lambda: self._sender.send(self._response(tensors)))

    def finish(self, chunk: OutputChunk) -> None:
        """Queue the last chunk with FINAL."""
        self.finish_tensors(self._tensors(chunk))

    def finish_tensors(self, tensors: Tensors) -> None:
        """Queue an answer made of these tensors with FINAL."""
        self._closed = True
        self._responder.post(lambda: self._sender.send(self._response(tensors), flags=FINAL))

    def fail(self, error: DrafthouseError) -> None:
        """Queue an error with FINAL. A second call is ignored: the client has had its one final answer."""
        if not self._closed:
            self._closed = True
            self._responder.post(lambda: self._sender.send(to_error(error), flags=FINAL))

    def fail_now(self, error: DrafthouseError) -> None:
        """The same at once. Blocks: responder thread only."""
        if not self._closed:
            self._closed = True
            self._sender.send(to_error(error), flags=FINAL)

    def poll(self) -> None:
        """Ask Triton whether the client has gone. Blocks for an IPC round trip: responder thread only."""
        if not (self._closed or self._cancelled):
            self._cancelled = bool(self._sender.is_cancelled())

    def _response(self, tensors: Tensors) -> pb_utils.InferenceResponse:
        # Arrays get the batch dimension of 1 that max_batch_size 1 asks for.
        return to_response({name: array[None] for name, array in tensors.items() if name in self._wanted})

    def _tensors(self, chunk: OutputChunk) -> Tensors:
        assert self.generation is not None, "the front door sets it before the pipeline sees the sink"
        return chunk_tensors(self.generation, chunk)


def chunk_tensors(request: GenerationRequest, chunk: OutputChunk) -> Tensors:
    """The outputs of `schema.COSINE` that this chunk carries, without batch dimension."""
    tensors: Tensors = {
        "text_output": np.array([chunk.text.encode()], np.object_),
        "output_ids": np.array(chunk.output_ids, np.int32),
        "token_sources": np.array(chunk.token_sources, np.int32),
    }
    if request.return_num_input_tokens:
        tensors["num_input_tokens"] = np.array([len(request.prompt_ids)], np.int32)
    if request.return_num_output_tokens:
        tensors["num_output_tokens"] = np.array([chunk.num_output_tokens], np.int32)
    if request.return_log_probs:
        tensors["output_log_probs"] = np.array(chunk.log_probs, np.float32)
    if request.return_finish_reason:
        # Empty until the last chunk, as in Triton's vLLM backend's streams.
        tensors["finish_reason"] = np.array([(chunk.finish_reason or "").encode()], np.object_)
    if chunk.perf is not None:
        perf = chunk.perf
        tensors["acceptance_rate"] = np.array([perf.acceptance_rate], np.float32)
        for name in ("total_accepted_draft_tokens", "total_draft_tokens"):
            tensors[name] = np.array([getattr(perf, name)], np.int32)
        for name in ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"):
            tensors[name] = np.array([getattr(perf, name)], np.int64)
    return tensors
