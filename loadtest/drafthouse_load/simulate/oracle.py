"""Clairvoyant shortest remaining processing time: the bound on mean latency at batch 1, elsewhere a strong reference."""

from typing import cast

from drafthouse.scheduling.policy import Rank, Schedulable
from drafthouse_load.simulate.costs import RoundCosts
from drafthouse_load.simulate.request import SimulatedRequest
from drafthouse_load.simulate.workload import round_ns


class Oracle:
    """Knows each request's true number of rounds, and what they take. For the simulator only.

    Schrage, "A proof of the optimality of the shortest remaining processing time discipline", Operations Research 16 (1968).
    """

    name = "oracle"

    def __init__(self, costs: RoundCosts, rows: int, num_draft_tokens: int) -> None:
        """``rows``: requests in a round."""
        self._costs = costs
        self._round_ns = round_ns(costs, rows, num_draft_tokens) / rows

    def rank(self, request: Schedulable) -> Rank:
        """True remaining service, in ns."""
        own = cast(SimulatedRequest, request)
        prefill_ns = self._costs.prefill_ns(own.num_uncached) if own.num_uncached > 1 else 0
        return ((own.end_round - own.first_round - own.num_verifications) * self._round_ns + prefill_ns,)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Whenever it is shorter: without a price of preemption that is optimal."""
        return True

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        """By true times."""
        gain_ns = self.rank(other)[0] - self.rank(challenger)[0]
        return gain_ns > self._costs.prefill_ns(num_recomputed) * num_delayed

    def queue_of(self, request: Schedulable) -> int:
        """A single queue."""
        return 0
