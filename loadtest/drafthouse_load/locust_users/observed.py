"""What a client saw of one stream, and the figures made from it: pure functions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from drafthouse.core.errors import ErrorCode
from drafthouse_client import ServerSideError

_MS = 1e3
_FOREIGN_CHARACTERS = 80  # of a message that is not of this project's form


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One increment of a stream."""

    num_tokens: int
    num_text_bytes: int
    is_last: bool  # it says why the text ended
    num_drafted: int = 0  # draft tokens verified for the whole request; on the last event only
    num_accepted: int = 0


class StreamFailed(Exception):
    """The stream brought an error, or ended before its last event.

    The message names no figures of a single request: locust counts failures by their text.
    """

    def __init__(self, code: ErrorCode, field: str, where: str) -> None:
        """``where``: e.g. "HTTP 200"; an error event arrives under the status of the first event."""
        super().__init__(f"{code}{f' field={field}' if field else ''} ({where})")
        self.code = code


def failed(error: ServerSideError, where: str) -> StreamFailed:
    """The failure that a server's error means; of an error that names no field (Triton's own) the beginning is kept."""
    return StreamFailed(error.code, error.field, where if error.field else f"{where}: {error.message[:_FOREIGN_CHARACTERS]}")


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A stream that came to its end. Times are seconds of one monotonic clock."""

    began_s: float  # when it was due to be sent
    ended_s: float
    event_s: tuple[float, ...]  # of events that brought tokens, >= 1
    tokens_per_event: tuple[int, ...]
    num_text_bytes: int
    num_drafted: int
    num_accepted: int

    @property
    def num_tokens(self) -> int:
        """Output tokens."""
        return sum(self.tokens_per_event)

    @property
    def e2e_ms(self) -> float:
        """From when it was due to the end of the stream."""
        return _MS * (self.ended_s - self.began_s)

    @property
    def ttft_ms(self) -> float:
        """From when it was due to its first token."""
        return _MS * (self.event_s[0] - self.began_s)

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (tokens - 1); None for a text of one token."""
        return (self.e2e_ms - self.ttft_ms) / (self.num_tokens - 1) if self.num_tokens > 1 else None

    @property
    def gaps_ms(self) -> tuple[float, ...]:
        """Inter-token latency as users see it: the time between two events, however many tokens they bring."""
        return tuple(_MS * (later - earlier) for earlier, later in zip(self.event_s, self.event_s[1:], strict=False))

    @property
    def acceptance_percent(self) -> float | None:
        """Accepted of 100 verified draft tokens; None when nothing was drafted."""
        return 100.0 * self.num_accepted / self.num_drafted if self.num_drafted else None


def observe(events: Iterable[StreamEvent], began_s: float, clock: Callable[[], float], where: str) -> StreamRecord:
    """Read a stream to its end and note when its parts arrive.

    Raises:
        StreamFailed: the stream ended without its last event, or without a token.
    """
    times, counts = list[float](), list[int]()
    num_text_bytes = 0
    last: StreamEvent | None = None
    for event in events:
        if event.num_tokens:
            times.append(clock())
            counts.append(event.num_tokens)
        num_text_bytes += event.num_text_bytes
        last = event
    if last is None or not last.is_last or not times:
        raise StreamFailed(ErrorCode.UNAVAILABLE, "stream", f"{where}, cut short")
    return StreamRecord(began_s, clock(), tuple(times), tuple(counts), num_text_bytes, last.num_drafted, last.num_accepted)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request has to keep to count as good; None = no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self.ttft_ms is not None or self.tpot_ms is not None

    def met_by(self, record: StreamRecord) -> bool:
        """Whether a stream kept every limit; a text of one token has no time per token to exceed."""
        return (self.ttft_ms is None or record.ttft_ms <= self.ttft_ms) and (
            self.tpot_ms is None or record.tpot_ms is None or record.tpot_ms <= self.tpot_ms
        )
