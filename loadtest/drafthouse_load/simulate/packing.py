"""Batch assignment in the simulator: the server's own, for verifications that cannot take everybody's whole draft."""

import numpy as np

from drafthouse.scheduling.assignment import Candidate, Limits, Prices, WaitingRounds, assign, cost_matrix
from drafthouse.scheduling.estimates.service import Estimator
from drafthouse_load.simulate.costs import RoundCosts
from drafthouse_load.simulate.request import SimulatedRequest

_MEMORY_ROUNDS = 200.0  # after which an old round's tokens per ns count 1/e


class Packing:
    """Policy ranks, assignment packs: of those whom the policy has chosen, who is verified now, and with how many draft tokens."""

    def __init__(self, max_verified_tokens: int, num_draft_tokens: int, batch: int, costs: RoundCosts, estimator: Estimator) -> None:
        """``max_verified_tokens``: of a verification, over all rows, committed ones included; >= 1."""
        self._most, self._drafts, self._costs, self._estimator = max_verified_tokens, num_draft_tokens, costs, estimator
        self._waiting = WaitingRounds()
        self._cycle_ns = [
            cost_matrix(lambda count, _: self._round_ns(count), rows, num_draft_tokens + 1) if rows else None for rows in range(batch + 1)
        ]
        self._tokens, self._time_ns = 1.0, self._round_ns(1)  # faded sums

    def choose(self, candidates: list[SimulatedRequest]) -> list[tuple[SimulatedRequest, int]]:
        """Who goes, with how many of its draft tokens: all with all of theirs, where that fits."""
        rows, drafts = len(candidates), self._drafts
        cycle_ns = self._cycle_ns[rows]
        if cycle_ns is None or rows * (1 + drafts) <= self._most:
            return [(request, drafts) for request in candidates]
        offered = [
            Candidate(index, 1, self._chances(request), self._waiting[request.request_uid]) for index, request in enumerate(candidates)
        ]
        prices = Prices(worth_ns=self._time_ns / self._tokens)
        found = assign(offered, cycle_ns, Limits(rows, self._most, drafts + 1), prices)
        going = [(candidates[index], count) for index, count in zip(found.chosen, found.num_draft_tokens, strict=True)]
        self._waiting.note([request.request_uid for request in candidates], [request.request_uid for request, _ in going])
        return going

    def saw_round(self, num_tokens: int, round_ns: int) -> None:
        """Learn what a token takes at present."""
        fade = 1.0 - 1.0 / _MEMORY_ROUNDS
        self._tokens = fade * self._tokens + num_tokens
        self._time_ns = fade * self._time_ns + round_ns

    def _chances(self, request: SimulatedRequest) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Of its draft tokens being reached and accepted, as the estimator sees the request."""
        chances: np.ndarray[tuple[int], np.dtype[np.float64]] = self._estimator.acceptance(request) ** np.arange(1, self._drafts + 1)
        return chances

    def _round_ns(self, rows: int) -> float:
        return self._costs.draft_ns(rows, self._drafts) + self._costs.verify_ns(rows, rows * (1 + self._drafts))
