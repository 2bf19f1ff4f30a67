"""Least attained service: who has been served least goes first (foreground-background; Nuyens and Wierman, 2008)."""

from dataclasses import dataclass
from math import ceil, log2

from drafthouse.scheduling.policies.eviction import NeverEvicts
from drafthouse.scheduling.policy import Estimates, Rank, Schedulable


@dataclass(frozen=True)
class LasOptions:
    """How fine attained service is told apart."""

    levels_per_doubling: int = 3  # 26 % apart; within one level the order is that of arrival, so requests of like service take no turns

    def __post_init__(self) -> None:
        if self.levels_per_doubling < 1:
            raise ValueError(f"levels_per_doubling must be at least 1, not {self.levels_per_doubling}")


class LeastAttainedService(NeverEvicts):
    """Ranks by attained service in geometric levels.

    Exact LAS shares the server equally among all requests of least service, which between rounds means that they take turns,
    one round each, and trade caches every time. With levels a request goes on until it is clearly ahead of the others; the level
    is a fixed fraction of the service, so the mean latency stays that of LAS within a few per cent at any scale.
    """

    name = "las"

    def __init__(self, estimates: Estimates, options: LasOptions = LasOptions()) -> None:
        self._estimates = estimates
        self._options = options

    def rank(self, request: Schedulable) -> Rank:
        """The level of its attained service."""
        return (float(self.queue_of(request)),)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """Whenever a request is of a lower level: the levels are the hysteresis."""
        return True

    def queue_of(self, request: Schedulable) -> int:
        """Level 0: up to one round's time of service; then a level per fraction of a doubling."""
        rounds = request.attained_ns / self._estimates.round_ns
        return 0 if rounds <= 1 else ceil(self._options.levels_per_doubling * log2(rounds))
