"""First come, first served: the order of arrival, no preemption."""

from drafthouse.scheduling.policy import Rank, Schedulable


class FirstComeFirstServed:
    """Runs each request to its end in the order of arrival, which the queue's tie-break is already."""

    name = "fcfs"

    def rank(self, request: Schedulable) -> Rank:
        """The same for all."""
        return ()

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Never."""
        return False

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        """Never: nobody is preempted."""
        return False

    def queue_of(self, request: Schedulable) -> int:
        """A single queue."""
        return 0
