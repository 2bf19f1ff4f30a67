"""All progress of one request. Nothing about a request is kept anywhere else."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import DrafthouseError
from drafthouse.core.tree import DraftTree
from drafthouse.pipeline.contract import FinishReason, GenerationRequest, PerfMetrics, ResponseSink
from drafthouse.pipeline.detokenize import Detokenizer
from drafthouse.pipeline.stats import RequestEnd, best_of
from drafthouse.routing.contract import new_route_state
from drafthouse.scheduling.tenure import Tenure


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the last verified round went, for the router. D drafters, K trunk positions."""

    proposals: NDArray[np.int32]  # [D, K]
    proposal_probs: NDArray[np.float32]  # [D, K]
    target_tokens: NDArray[np.int32]  # [K], -1 = not reached


@dataclass(frozen=True, slots=True)
class Draft:
    """What fusion proposed for a coming verification. K = trunk nodes about which the drafters' proposals are known."""

    tree: DraftTree
    trunk: NDArray[np.int32]  # [K], nodes of the tree
    proposals: NDArray[np.int32]  # [D, K]
    proposal_probs: NDArray[np.float32]  # [D, K]


@dataclass(slots=True)
class Outgoing:
    """Output that was committed and not sent yet; written by commit, emptied by emit."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # drafter index per id, -1 = the target itself
    log_probs: list[float] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class RequestState:
    """One request from submission to its last token. The comment of a field says who writes it."""

    request: GenerationRequest
    sink: ResponseSink  # sent to by emit, answered by the book
    sequence_no: int  # book, at submission
    drafter_names: tuple[str, ...]  # [D], the repository's; book, at submission
    allowed: NDArray[np.bool_]  # [D], drafters this request may use; book, at submission
    tokens: NDArray[np.int32]  # [prompt_len + max_tokens], valid below num_tokens; commit
    num_tokens: int  # committed tokens, prompt included; commit
    detokenizer: Detokenizer  # commit
    outgoing: Outgoing  # commit, emit
    finish_reason: FinishReason | None = None  # commit; set = no more tokens
    error: DrafthouseError | None = None  # prefill and verify: why this request cannot go on

    arrival_ns: int = 0  # turns, when the loop first sees it; the loop's clock
    attained_ns: int = 0  # turns; wall time of the rounds it took part in
    queue: int = 0  # turns; the policy's queue it is in, for metrics
    domain: str = ""  # turns, after each round: its best drafter's name; "" before the router's first answer
    is_running: bool = False  # turns: takes part in rounds
    holds_slot: bool = False  # turns: its caches are kept, running or preempted
    admitted_len: int = 0  # turns: committed tokens when it last got a slot
    tenure: Tenure = field(default_factory=Tenure)  # turns: what it has had of its slot
    target_cached_len: int = 0  # prefill and verify, from the target's answers; 0 again when evicted
    most_cached_len: int = 0  # prefill and verify: the most that the target ever held; what lies below is computed again, not anew
    drafter_cached_len: NDArray[np.int32] = field(init=False)  # [D] hints; draft; 0 again when evicted
    num_stalled_rounds: int = 0  # prefill and verify: rounds in a row without progress

    prompt_logprob: NDArray[np.float64] = field(init=False)  # [D], sum in nats; draft (intake)
    num_scored: NDArray[np.int64] = field(init=False)  # [D]; draft (intake)
    route_state: NDArray[np.float32] = field(init=False)  # [D, S], the router's own, carried from call to call; route
    scores: NDArray[np.float32] = field(init=False)  # [D], how good each drafter is, in (0, 1); NaN before the router's first answer; route
    weights: NDArray[np.float32] | None = None  # [D]; route; None = not routed yet
    draft: Draft | None = None  # draft; verify keeps what is left of it after what was committed
    chosen: NDArray[np.int64] = field(init=False)  # [n], nodes of the draft that are verified in this round; speculation
    feedback: list[Feedback] = field(default_factory=list)  # verify appends a round; consumed by route

    num_verifications: int = 0  # verify
    num_drafted: int = 0  # verify: tree nodes sent to the target
    num_accepted: int = 0  # verify: those of them that were emitted
    first_scheduled_time_ns: int = 0  # prefill; wall clock
    first_token_time_ns: int = 0  # commit; wall clock
    last_token_time_ns: int = 0  # commit; wall clock

    def __post_init__(self) -> None:
        num_drafters = len(self.allowed)
        self.drafter_cached_len = np.zeros(num_drafters, np.int32)
        self.prompt_logprob = np.zeros(num_drafters, np.float64)
        self.num_scored = np.zeros(num_drafters, np.int64)
        self.route_state = new_route_state(num_drafters)
        self.scores = np.full(num_drafters, np.nan, np.float32)
        self.chosen = np.empty(0, np.int64)

    @property
    def request_uid(self) -> int:
        """See `Schedulable`; also the name engines know the request by."""
        return self.request.request_uid

    @property
    def priority(self) -> int:
        """See `Schedulable`."""
        return self.request.priority

    @property
    def max_tokens(self) -> int:
        """See `Schedulable`."""
        return self.request.max_tokens

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - len(self.request.prompt_ids)

    @property
    def num_remaining(self) -> int:
        """Tokens that may still be generated."""
        return len(self.tokens) - self.num_tokens

    @property
    def num_uncached(self) -> int:
        """Committed tokens the target has yet to compute: at least the last one, whose logits give the next token."""
        return max(self.num_tokens - self.target_cached_len, 1)

    @property
    def has_earned_slot(self) -> bool:
        """See `Schedulable`."""
        return self.tenure.is_earned

    @property
    def finished(self) -> bool:
        """True when no token will be added any more."""
        return self.finish_reason is not None

    @property
    def best_drafter(self) -> str:
        """The name of the drafter that suits it best; "" before the router's first answer."""
        best = best_of(self.scores)
        return self.drafter_names[best] if best >= 0 else ""

    def note_cached(self, cached_len: int) -> int:
        """The target holds so many of the committed tokens now; returns how many of them it had held before and lost."""
        num_again = max(min(cached_len, self.most_cached_len) - self.target_cached_len, 0)
        self.target_cached_len = cached_len
        self.most_cached_len = max(self.most_cached_len, cached_len)
        return num_again

    def forget_caches(self) -> None:
        """The engines hold nothing of this request any more."""
        self.target_cached_len = 0
        self.drafter_cached_len[:] = 0
        self.draft = None

    def end(self, outcome: str, is_success: bool) -> RequestEnd:
        """The figures of a request that has been answered."""
        return RequestEnd(
            outcome=outcome,
            is_success=is_success,
            num_output_tokens=self.num_output_tokens,
            arrival_time_ns=self.request.arrival_time_ns,
            first_scheduled_time_ns=self.first_scheduled_time_ns,
            first_token_time_ns=self.first_token_time_ns,
            last_token_time_ns=self.last_token_time_ns,
        )

    def perf(self) -> PerfMetrics:
        """The figures a client may ask for."""
        return PerfMetrics(
            acceptance_rate=self.num_accepted / self.num_drafted if self.num_drafted else 0.0,
            total_accepted_draft_tokens=self.num_accepted,
            total_draft_tokens=self.num_drafted,
            arrival_time_ns=self.request.arrival_time_ns,
            first_scheduled_time_ns=self.first_scheduled_time_ns,
            first_token_time_ns=self.first_token_time_ns,
            last_token_time_ns=self.last_token_time_ns,
        )


def new_state(
    request: GenerationRequest,
    sink: ResponseSink,
    sequence_no: int,
    drafter_names: tuple[str, ...],
    usable_drafters: tuple[str, ...],
    token_bytes: Callable[[int], bytes],
) -> RequestState:
    """The state of a request that has just arrived.

    Args:
        request: what was asked.
        sink: where the answer goes.
        sequence_no: order of arrival.
        drafter_names: all drafters, in the repository's order.
        usable_drafters: those the configured mode allows.
        token_bytes: the target tokenizer's table.
    """
    wanted = request.drafters or usable_drafters
    tokens = np.zeros(len(request.prompt_ids) + request.max_tokens, np.int32)
    tokens[: len(request.prompt_ids)] = request.prompt_ids
    return RequestState(
        request=request,
        sink=sink,
        sequence_no=sequence_no,
        drafter_names=drafter_names,
        allowed=np.array([name in usable_drafters and name in wanted for name in drafter_names], np.bool_),
        tokens=tokens,
        num_tokens=len(request.prompt_ids),
        detokenizer=Detokenizer(token_bytes, request.stop_words),
        outgoing=Outgoing(text=request.echo_text),
    )
