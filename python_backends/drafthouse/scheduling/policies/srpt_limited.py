"""Shortest predicted remaining length with limited preemption (TRAIL, arXiv 2410.01035, section 3.3)."""

from dataclasses import dataclass

from drafthouse.scheduling.policies.eviction import pays
from drafthouse.scheduling.policy import Estimates, Rank, Schedulable


@dataclass(frozen=True)
class SrptLimitedOptions:
    """How long a request may be preempted."""

    preemptible_part: float = 0.8  # TRAIL's C: of the predicted length; its evaluation finds 0.8 best

    def __post_init__(self) -> None:
        if not 0 <= self.preemptible_part <= 1:
            raise ValueError(f"preemptible_part must lie in [0, 1], not {self.preemptible_part}")


class LimitedSrpt:
    """Ranks by predicted remaining tokens; a request that has generated the fraction C of its predicted length runs to its end.

    TRAIL's reason for the limit is memory: a request about to finish holds the most and would hold it longest if preempted.
    """

    name = "srpt-limited"

    def __init__(self, estimates: Estimates, options: SrptLimitedOptions = SrptLimitedOptions()) -> None:
        self._estimates = estimates
        self._options = options

    def rank(self, request: Schedulable) -> Rank:
        """(0, remaining) past the limit, which nobody may preempt; (1, remaining) before it."""
        remaining = self._estimates.remaining_tokens(request)
        is_past_limit = request.num_output_tokens > 0 and request.num_output_tokens >= self._options.preemptible_part * (
            request.num_output_tokens + remaining
        )
        return (0.0 if is_past_limit else 1.0, remaining)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Whoever is shorter, until the limit."""
        return running[0] > 0

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        """By estimated times."""
        return pays(self._estimates, challenger, other, num_recomputed, num_delayed)

    def queue_of(self, request: Schedulable) -> int:
        """A single queue."""
        return 0
