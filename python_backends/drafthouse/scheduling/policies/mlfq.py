"""Skip-join multi-level feedback queue (FastServe, arXiv 2305.05920, section 4.1)."""

from dataclasses import dataclass

from drafthouse.scheduling.policies.eviction import NeverEvicts
from drafthouse.scheduling.policy import Estimates, Rank, Schedulable


@dataclass(frozen=True)
class MlfqOptions:
    """The queues."""

    num_queues: int = 16
    quantum_rounds: float = 1.0  # of the highest queue; FastServe's is one iteration
    quantum_ratio: float = 2.0  # of a queue's quantum to that of the one above; FastServe's

    def __post_init__(self) -> None:
        if self.num_queues < 1:
            raise ValueError(f"num_queues must be at least 1, not {self.num_queues}")
        if self.quantum_rounds <= 0:
            raise ValueError(f"quantum_rounds must be above 0, not {self.quantum_rounds}")
        if self.quantum_ratio < 1:
            raise ValueError(f"quantum_ratio must be at least 1, not {self.quantum_ratio}")


class SkipJoinMlfq(NeverEvicts):
    """Queues of growing quanta, first come first served within each; lengths are unknown, the time of the prefill is not.

    A request joins the highest queue whose quantum its first iteration fits into, skipping those it would only pass through;
    whoever has used up its queue's quantum goes down one. FastServe promotes what has starved: here `ReadyQueue`'s ageing does.
    Which queue a request is in follows from where it joined and what it has attained, so nothing is kept per request.
    """

    name = "mlfq"

    def __init__(self, estimates: Estimates, options: MlfqOptions = MlfqOptions()) -> None:
        self._estimates = estimates
        self._options = options

    def rank(self, request: Schedulable) -> Rank:
        """The number of its queue."""
        return (float(self.queue_of(request)),)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Whoever is in a higher queue; and who has sunk into a queue lets those pass that are in it and arrived earlier."""
        return True

    def queue_of(self, request: Schedulable) -> int:
        """0 is the highest; the lowest takes whoever has used up all quanta."""
        round_ns = self._estimates.round_ns
        first_iteration_ns = max(request.prompt_len * self._estimates.prefill_token_ns, round_ns)
        quantum_ns = self._options.quantum_rounds * round_ns
        until_demoted_ns = 0.0
        last = self._options.num_queues - 1
        for queue in range(last):
            if quantum_ns >= first_iteration_ns:
                until_demoted_ns += quantum_ns
                if request.attained_ns < until_demoted_ns:
                    return queue
            quantum_ns *= self._options.quantum_ratio
        return last
