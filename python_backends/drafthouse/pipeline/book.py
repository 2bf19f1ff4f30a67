"""Who was taken in and who was answered: every request in exactly one place, and every one answered exactly once."""

import itertools
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from drafthouse.core.errors import DrafthouseError, ErrorCode, ServerError
from drafthouse.pipeline.commit import emit
from drafthouse.pipeline.contract import GenerationRequest, ResponseSink
from drafthouse.pipeline.stage_target import internal_error
from drafthouse.pipeline.state import RequestState
from drafthouse.pipeline.stats import RequestEnd
from drafthouse.pipeline.turns import Turns

logger = logging.getLogger(__name__)


class Book:
    """Arrival and farewell of requests; `Turns` tells who runs. `submit` may be called from any thread, the rest from the loop's."""

    def __init__(self, turns: Turns, max_queue_size: int, on_end: Callable[[RequestEnd], None] | None = None) -> None:
        """Args: max_queue_size: open requests beside those that have a slot; on_end: hears about everyone who was answered."""
        self._turns = turns
        self._on_end = on_end
        self._max_open = turns.num_slots + max_queue_size
        self._lock = threading.Lock()  # guards the next five
        self._inbox: deque[RequestState] = deque()
        self._num_open = 0
        self._num_submitted = 0
        self._num_failed: Counter[str] = Counter()
        self._closed = False
        self._sequence = itertools.count()
        self._open: dict[int, RequestState] = {}  # by sequence_no
        self.num_finished = 0

    def submit(
        self,
        request: GenerationRequest,
        sink: ResponseSink,
        build: Callable[[GenerationRequest, ResponseSink, int], RequestState],
        wake: Callable[[], None],
    ) -> None:
        """Let a request wait, or answer it UNAVAILABLE at once when too many wait already or the server stops."""
        state = build(request, sink, next(self._sequence))
        with self._lock:
            refusal = self._refusal()
            self._num_submitted += 1
            if refusal is None:
                self._num_open += 1
                self._inbox.append(state)
                wake()  # under the lock: after `close` nobody may touch the loop
            else:
                self._num_failed[refusal.code] += 1
        if refusal is not None:
            sink.fail(refusal)

    def _refusal(self) -> DrafthouseError | None:
        if self._closed:
            return ServerError(ErrorCode.UNAVAILABLE, "server", "shutting down", "try again later")
        if self._num_open >= self._max_open:
            return ServerError(ErrorCode.UNAVAILABLE, "queue", self._num_open, f"below {self._max_open} open requests; try again later")
        return None

    def next_batch(self) -> list[RequestState]:
        """Let the policy choose who runs, and answer those of them who left or ran out of time."""
        self._open_inbox()
        self._answer_the_late(self._turns.running)
        chosen = self._turns.next()
        while self._answer_the_late(chosen):
            chosen = self._turns.next()
        self._turns.begin(chosen)
        return chosen

    def sweep(self) -> None:
        """Answer those whose client has gone or whose time is up, whether they wait, run or were preempted.

        To be called every now and then. May also be called while a round is under way (`RequestState.is_running` turns false): an
        engine that hangs must not make anybody miss a deadline.
        """
        self._open_inbox()
        self._answer_the_late(self.open_requests())

    def _answer_the_late(self, states: Iterable[RequestState]) -> bool:
        """True when there were any."""
        now_ns = time.monotonic_ns()
        any_late = False
        for state in states:
            if state.sink.cancelled:
                self.fail(state, ServerError(ErrorCode.CANCELLED, "request", "the client has gone"))
            elif state.request.deadline_ns is not None and now_ns >= state.request.deadline_ns:
                progress = f"{state.num_output_tokens} of at most {state.max_tokens} tokens"
                self.fail(state, ServerError(ErrorCode.DEADLINE_EXCEEDED, "deadline_ms", progress, "a later deadline"))
            else:
                continue
            any_late = True
        return any_late

    def settle(self, states: Iterable[RequestState]) -> None:
        """Send what is due; answer and let go of those that are finished or cannot go on."""
        for state in states:
            if not state.is_running:
                continue
            if state.error is not None:
                self.fail(state, state.error)
                continue
            emit(state)
            if state.finished:
                self._forget(state)
                self.num_finished += 1
                self._tell_end(state, str(state.finish_reason), is_success=True)
                _log_summary(state, str(state.finish_reason))

    def fail(self, state: RequestState, error: DrafthouseError) -> None:
        """Answer an open request with an error and let it go."""
        self._forget(state)
        with self._lock:
            self._num_failed[error.code] += 1
        state.sink.fail(error)
        self._tell_end(state, error.code, is_success=False)
        _log_summary(state, str(error))

    def _tell_end(self, state: RequestState, outcome: str, *, is_success: bool) -> None:
        if self._on_end is None:
            return
        try:
            self._on_end(state.end(outcome, is_success))
        except Exception:
            logger.exception("the observer of requests failed")

    def _forget(self, state: RequestState) -> None:
        del self._open[state.sequence_no]
        self._turns.remove(state)
        with self._lock:
            self._num_open -= 1

    def close(self) -> None:
        """Refuse new requests and answer all open ones UNAVAILABLE."""
        with self._lock:
            self._closed = True
        self._open_inbox()
        for state in self.open_requests():
            self.fail(state, ServerError(ErrorCode.UNAVAILABLE, "server", "shutting down", "try again later"))

    def _open_inbox(self) -> None:
        while self._inbox:
            state = self._inbox.popleft()
            self._open[state.sequence_no] = state
            try:
                self._turns.add(state)
            except Exception:
                error_id = secrets.token_hex(4)
                logger.exception("error %s: request %d could not be ranked", error_id, state.request_uid)
                self.fail(state, internal_error(error_id))

    def open_requests(self) -> list[RequestState]:
        """Everybody who has not been answered, in the order of arrival."""
        return list(self._open.values())

    @property
    def num_failed(self) -> dict[str, int]:
        """Requests answered with an error, by code."""
        with self._lock:
            return dict(self._num_failed)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return self._turns.num_waiting + len(self._inbox)

    @property
    def num_running(self) -> int:
        """Requests that take part in rounds."""
        return self._turns.num_running

    def violations(self) -> list[str]:
        """What does not add up; empty when the books balance."""
        with self._lock:
            num_open, num_submitted, num_inbox = self._num_open, self._num_submitted, len(self._inbox)
            num_failed = sum(self._num_failed.values())
        num_listed, num_answered = len(self._open) + num_inbox, self.num_finished + num_failed
        checks = {
            f"{num_open} open requests, {num_listed} listed": num_open == num_listed,
            f"{num_submitted} submitted, {num_answered} answered, {num_open} open": num_submitted == num_answered + num_open,
        }
        return [message for message, holds in checks.items() if not holds] + self._turns.violations(len(self._open))


def _log_summary(state: RequestState, outcome: str) -> None:
    logger.info(
        "request %d: %s; %d prompt tokens, %d output tokens in %d verifications, %d of %d draft tokens accepted, %.1f ms",
        state.request_uid,
        outcome,
        state.prompt_len,
        state.num_output_tokens,
        state.num_verifications,
        state.num_accepted,
        state.num_drafted,
        (time.time_ns() - state.request.arrival_time_ns) / 1e6,
    )
