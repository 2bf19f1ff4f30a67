"""What a scheduling policy is: a rank. `ReadyQueue` does the rest: order, preemption with hysteresis, ageing, priorities."""

from typing import Protocol, TypeVar


class Schedulable(Protocol):
    """What a policy may know about one request. Everything is read-only and free to read.

    Times are `drafthouse.core.clock.now_ns()`; in the simulator and the replay that clock is virtual.
    """

    @property
    def request_uid(self) -> int:
        """uint64, unique."""
        ...

    @property
    def sequence_no(self) -> int:
        """Order of arrival, without ties and untouched by clock changes."""
        ...

    @property
    def priority(self) -> int:
        """The client's `request_priority`; higher goes first; 0 when it gave none."""
        ...

    @property
    def arrival_ns(self) -> int:
        """When it arrived."""
        ...

    @property
    def domain(self) -> str:
        """The field it belongs to, as the router sees it: the name of its best drafter; "" before the router's first answer."""
        ...

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        ...

    @property
    def max_tokens(self) -> int:
        """The most tokens that may be generated: a cap, not a prediction."""
        ...

    @property
    def num_uncached(self) -> int:
        """Committed tokens the target would have to compute before it could go on: the prompt of a new request,
        everything of one that lost its cache, 1 of one that can go on at once."""
        ...

    @property
    def num_verifications(self) -> int:
        """Rounds in which the target verified this request."""
        ...

    @property
    def num_drafted(self) -> int:
        """Draft tokens verified so far."""
        ...

    @property
    def num_accepted(self) -> int:
        """Draft tokens accepted so far."""
        ...

    @property
    def attained_ns(self) -> int:
        """Service attained: time of the rounds it took part in, its prefill included."""
        ...

    @property
    def is_running(self) -> bool:
        """True while it takes part in rounds: not choosing it now preempts it."""
        ...

    @property
    def holds_slot(self) -> bool:
        """True while its cache is kept, running or preempted."""
        ...

    @property
    def has_earned_slot(self) -> bool:
        """True once computing its cache anew would be a small part of the service it has had since it got its slot: see `Tenure`."""
        ...


S = TypeVar("S", bound=Schedulable)
Rank = tuple[float, ...]  # lower goes first; compared as tuples; all ranks of one policy have the same length


class Policy(Protocol):
    """Ranks requests. Asked at arrival and after every round a request took part in, never for requests that only wait."""

    @property
    def name(self) -> str:
        """The name under which it is configured."""
        ...

    def rank(self, request: Schedulable) -> Rank:
        """How urgent the request is now. Ties are broken by order of arrival."""
        ...

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Whether a waiting request of rank ``challenger`` may take the place of a running one of rank ``running``.

        The hysteresis: called only where the challenger goes first, by a lower rank, or by an earlier arrival at the same one.
        A policy that never preempts returns False.
        """
        ...

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        """Whether to let ``challenger``, for which there is no slot, go before ``other`` at the price of computing
        ``num_recomputed`` tokens anew later, which delays ``num_delayed`` requests. `pays` answers it where times are estimated.
        """
        ...

    def queue_of(self, request: Schedulable) -> int:
        """The number of the policy's queue the request is in, 0 = the most urgent; 0 where a policy has a single one. For metrics."""
        ...


class Estimates(Protocol):
    """What a policy may ask about the future of a request: `scheduling.estimates.service.Estimator`, or a fake. O(1) each."""

    def remaining_tokens(self, request: Schedulable) -> float:
        """Expected further output tokens, at least 1."""
        ...

    def total_tokens(self, request: Schedulable) -> float:
        """Expected output tokens, those generated included."""
        ...

    def remaining_ns(self, request: Schedulable) -> float:
        """Expected further execution time alone, the computing of uncached tokens included."""
        ...

    def is_perceptible(self, request: Schedulable) -> bool:
        """Whether its acceptance rate has become stable, so that `remaining_ns` rests on its own history (LAPS-SD)."""
        ...

    @property
    def round_ns(self) -> float:
        """Expected time of one round, drafting and verification; positive. The unit in which policies measure service."""
        ...

    @property
    def rows_per_round(self) -> float:
        """Requests that share a round, as a request meets it; at least 1."""
        ...

    @property
    def prefill_token_ns(self) -> float:
        """Expected time per token of a prefill."""
        ...
