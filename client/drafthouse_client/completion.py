"""What a caller asks for and what it gets back; plain data, no network."""

from collections.abc import Sequence
from dataclasses import dataclass

Prompt = str | Sequence[int]  # text, or token ids of the target's vocabulary

TARGET_SOURCE = -1  # in `token_sources`: the target's own token, no drafter had proposed it


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Options of one request. ``None`` means "not sent": the server's default applies.

    The names are those of the model's inputs. Ranges are the server's to check: its refusal names what is allowed.
    """

    max_tokens: int | None = 64
    min_tokens: int | None = None
    stop_words: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    end_id: int | None = None
    temperature: float | None = None  # 0 = greedy
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None  # uint64
    exclude_input_in_output: bool | None = None
    return_log_probs: bool = False
    num_draft_tokens: int | None = None  # 0 = no speculation for this request
    drafters: tuple[str, ...] = ()  # () = the router chooses; else only these
    deadline_ms: int | None = None  # enforced by the server
    request_priority: int | None = None
    timeout_s: float | None = None  # enforced by this client; None = the client's own


@dataclass(frozen=True, slots=True)
class Perf:
    """The server's figures for one request; times are wall-clock nanoseconds since the epoch."""

    acceptance_rate: float
    total_accepted_draft_tokens: int
    total_draft_tokens: int
    arrival_time_ns: int
    first_scheduled_time_ns: int
    first_token_time_ns: int
    last_token_time_ns: int

    @property
    def server_ttft_s(self) -> float:
        """Seconds from arrival to the first token, as the server saw it."""
        return (self.first_token_time_ns - self.arrival_time_ns) / 1e9

    @property
    def queued_s(self) -> float:
        """Seconds from arrival until the request was first scheduled."""
        return (self.first_scheduled_time_ns - self.arrival_time_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Chunk:
    """One streamed increment.

    ``token_sources[i]`` is the index of the drafter whose proposal for ``output_ids[i]`` was accepted (into
    `Client.drafters()`), or `TARGET_SOURCE`. ``text`` may lag behind the ids while a character or a possible stop
    word is incomplete. ``num_output_tokens`` is a delta.
    """

    text: str
    output_ids: tuple[int, ...] = ()
    token_sources: tuple[int, ...] = ()
    num_output_tokens: int = 0
    num_input_tokens: int | None = None
    log_probs: tuple[float, ...] = ()
    finish_reason: str | None = None  # "stop" or "length", on the last chunk only
    perf: Perf | None = None  # on the last chunk only


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer, joined from its chunks."""

    text: str
    output_ids: tuple[int, ...]
    token_sources: tuple[int, ...]
    num_output_tokens: int
    num_input_tokens: int | None
    log_probs: tuple[float, ...]
    finish_reason: str | None
    perf: Perf | None
    duration_s: float  # from sending the request to the end of its answer, on the client's clock

    @property
    def num_verifications(self) -> int:
        """Verification rounds behind the answer, read off the sources.

        The first token is the prefill's; after it every verification ends in a token of the target's own, unless the
        answer ended among its accepted draft tokens.
        """
        if not self.token_sources:
            return 0
        own = sum(source == TARGET_SOURCE for source in self.token_sources[1:])
        return own + int(len(self.token_sources) > 1 and self.token_sources[-1] != TARGET_SOURCE)

    @property
    def tokens_per_verification(self) -> float:
        """Mean tokens a verification emitted, its bonus token included; 0.0 when there was none."""
        return (len(self.token_sources) - 1) / self.num_verifications if self.num_verifications else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of `duration_s` (prefill included); 0.0 for an empty answer."""
        return self.num_output_tokens / self.duration_s if self.duration_s > 0 else 0.0


def join_chunks(chunks: Sequence[Chunk], duration_s: float) -> Completion:
    """The completion that these chunks, in order, add up to."""
    last = chunks[-1] if chunks else Chunk(text="")
    num_input_tokens = [chunk.num_input_tokens for chunk in chunks if chunk.num_input_tokens is not None]
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        output_ids=tuple(token for chunk in chunks for token in chunk.output_ids),
        token_sources=tuple(source for chunk in chunks for source in chunk.token_sources),
        num_output_tokens=sum(chunk.num_output_tokens for chunk in chunks),
        num_input_tokens=num_input_tokens[0] if num_input_tokens else None,
        log_probs=tuple(value for chunk in chunks for value in chunk.log_probs),
        finish_reason=last.finish_reason,
        perf=last.perf,
        duration_s=duration_s,
    )
