"""Shortest job first by predicted output length, the classic: chosen at admission, never preempted."""

from drafthouse.scheduling.policies.eviction import NeverEvicts
from drafthouse.scheduling.policy import Estimates, Rank, Schedulable


class ShortestJobFirst(NeverEvicts):
    """Ranks by the predicted number of output tokens; acceptance rates are not its concern."""

    name = "sjf"

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates

    def rank(self, request: Schedulable) -> Rank:
        """The whole predicted length: what a request has done does not make it shorter."""
        return (self._estimates.total_tokens(request),)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Never."""
        return False

    def queue_of(self, request: Schedulable) -> int:
        """A single queue."""
        return 0
