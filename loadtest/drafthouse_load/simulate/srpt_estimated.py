"""Shortest remaining time by the estimates alone: what `laps-sd` would be without queues, perceptibility and hysteresis."""

from drafthouse.scheduling.policies.eviction import pays
from drafthouse.scheduling.policy import Estimates, Rank, Schedulable


class EstimatedSrpt:
    """Takes every estimate as the truth. A reference, for the simulator only: what `laps-sd` is better by is worth its own machinery."""

    name = "srpt-estimated"

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates

    def rank(self, request: Schedulable) -> Rank:
        """Estimated remaining time, in ns."""
        return (self._estimates.remaining_ns(request),)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Whenever it is shorter."""
        return True

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        """By estimated times."""
        return pays(self._estimates, challenger, other, num_recomputed, num_delayed)

    def queue_of(self, request: Schedulable) -> int:
        """A single queue."""
        return 0
