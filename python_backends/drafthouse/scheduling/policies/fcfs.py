"""First come, first served: the order of arrival, no preemption."""

from drafthouse.scheduling.policies.eviction import NeverEvicts
from drafthouse.scheduling.policy import Rank, Schedulable


class FirstComeFirstServed(NeverEvicts):
    """Runs each request to its end in the order of arrival, which the queue's tie-break is already."""

    name = "fcfs"

    def rank(self, request: Schedulable) -> Rank:
        """The same for all."""
        return ()

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Never."""
        return False

    def queue_of(self, request: Schedulable) -> int:
        """A single queue."""
        return 0
