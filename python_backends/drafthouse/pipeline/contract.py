"""What enters the pipeline, what leaves it, and the three services it is built on."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from drafthouse.core.errors import DrafthouseError
from drafthouse.core.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why a request ended; the words of OpenAI's API."""

    STOP = "stop"  # an end token or a stop word
    LENGTH = "length"  # max_tokens or the end of the context


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A validated request: everything the client asked for, nothing about its progress."""

    request_uid: int  # uint64
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    arrival_time_ns: int  # time.time_ns()
    min_tokens: int = 0
    stop_words: tuple[str, ...] = ()
    stream: bool = False
    num_draft_tokens: int | None = None  # None = the server's choice, 0 = no speculation for this request
    drafters: tuple[str, ...] = ()  # () = the router chooses; else only these
    deadline_ns: int | None = None  # time.monotonic_ns() after which the request is answered DEADLINE_EXCEEDED
    priority: int = 0  # request_priority: higher goes first
    echo_text: str = ""  # put before the first text (exclude_input_in_output=false); "" otherwise
    return_log_probs: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    return_finish_reason: bool = False
    return_perf_metrics: bool = False


@dataclass(frozen=True, slots=True)
class PerfMetrics:
    """Per-request figures under NVIDIA's names; times are wall-clock nanoseconds since the epoch."""

    acceptance_rate: float  # accepted / drafted; 0.0 when nothing was drafted
    total_accepted_draft_tokens: int
    total_draft_tokens: int
    arrival_time_ns: int
    first_scheduled_time_ns: int
    first_token_time_ns: int
    last_token_time_ns: int


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """One streamed increment, or the whole answer when the request does not stream."""

    text: str
    output_ids: tuple[int, ...]  # tokens emitted since the last chunk
    # Index of the drafter (in the repository's order) behind each id; -1 = chosen by the target itself.
    token_sources: tuple[int, ...]
    num_output_tokens: int  # a delta: tokens since the last chunk
    log_probs: tuple[float, ...] = ()  # one per id when asked for
    finish_reason: FinishReason | None = None  # set on the last chunk only
    perf: PerfMetrics | None = field(default=None)  # set on the last chunk when asked for


class ResponseSink(Protocol):
    """Where a request's answer goes. Calls never block and never raise; order is kept.

    Exactly one of `finish` and `fail` is called per request, once, last.
    """

    def send(self, chunk: OutputChunk) -> None:
        """Queue one increment of a streamed answer."""
        ...

    def finish(self, chunk: OutputChunk) -> None:
        """Queue the last (or only) chunk, then FINAL."""
        ...

    def fail(self, error: DrafthouseError) -> None:
        """Queue an error, then FINAL."""
        ...

    @property
    def cancelled(self) -> bool:
        """True once the client has gone (polled elsewhere; reading it is free)."""
        ...
