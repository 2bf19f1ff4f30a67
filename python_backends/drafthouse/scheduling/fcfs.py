"""First come, first served: the order of arrival, no preemption."""

from collections.abc import Sequence

from drafthouse.scheduling.contract import S


class FirstComeFirstServed:
    """Runs the oldest requests. A running request is older than every waiting one, so none is ever preempted."""

    name = "fcfs"
    uses_priority = False

    def select(self, candidates: Sequence[S], capacity: int) -> list[S]:
        """The ``capacity`` oldest candidates, oldest first."""
        return sorted(candidates, key=lambda candidate: candidate.sequence_no)[:capacity]
