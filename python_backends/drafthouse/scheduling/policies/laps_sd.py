"""LAPS-SD: queues of attained service until a request's speed can be perceived, shortest remaining time from then on."""

from dataclasses import dataclass
from math import log

from drafthouse.scheduling.policies.eviction import pays
from drafthouse.scheduling.policy import Estimates, Rank, Schedulable


@dataclass(frozen=True)
class LapsSdOptions:
    """The queues and the hysteresis."""

    num_queues: int = 12
    first_threshold_rounds: float = 4.0  # the highest queue's, in rounds' time
    threshold_ratio: float = 2.0  # of a queue's threshold to that of the one above
    hysteresis: float = 0.2  # within a queue, a challenger preempts only if shorter by this fraction

    def __post_init__(self) -> None:
        if self.num_queues < 1:
            raise ValueError(f"num_queues must be at least 1, not {self.num_queues}")
        if self.first_threshold_rounds <= 0:
            raise ValueError(f"first_threshold_rounds must be above 0, not {self.first_threshold_rounds}")
        if self.threshold_ratio <= 1:
            raise ValueError(f"threshold_ratio must be above 1, not {self.threshold_ratio}")
        if not 0 <= self.hysteresis < 1:
            raise ValueError(f"hysteresis must lie in [0, 1), not {self.hysteresis}")


class LapsSd:
    """Preemptive semi-clairvoyant scheduling (arXiv 2505.17074).

    As in the paper: priority queues with growing thresholds; a request is *non-perceptible* at first and sinks by attained service, a
    queue with every threshold it passes; once its acceptance rate is stable it is *perceptible* (`Estimates.is_perceptible`, back when
    the rate moves again) and scheduled by its estimated remaining time L · (n·T_SSM + T_LLM) / (n·A + 1); the highest queue that is not
    empty is served first, within a queue the shortest remaining time. A running request is preempted at the borders of queues, and
    within one only by a request that is shorter by ``hysteresis``.

    Where we leave the paper, and why. Figures: mean latency as a multiple of clairvoyant SRPT's, `drafthouse simulate` with output
    lengths of the Azure code trace, load 0.9, length error 0.5, 20,000 requests, seed 3; this policy 1.16 at batch 1.

    - The queue of a perceptible request is that of its *remaining* time, not of what it has attained. What it has had says nothing once
      it is known what it lacks, and a long request near its end would wait behind everybody: with a first threshold of 128 rounds for
      everybody 1.26, with 512 rounds, which few ever pass, 1.17.
    - A non-perceptible request has an estimate too: its domain's acceptance, to which `remaining_ns` shrinks until the request's own
      history weighs more. So it joins the queue of that estimate, not always the highest (1.40: every long request has its prompt
      computed and takes a few rounds before shorter ones), and within a queue both kinds compare by remaining time. Being perceptible
      decides how far the estimate is trusted: without it attained service still demotes, so one whose estimate stays small for ever
      sinks.
    - Attained service is counted in rounds; the prefill, known beforehand, does not say how long the rest takes.
    - In a batch, what remains is counted as what it takes of the server: a round is shared by its rows, a prefill keeps them all waiting.
      At batch 8 1.02, with the plain sum of both 1.14. A batch of neighbours in that order is one of like remaining times, as
      multi-bin batching (arXiv 2412.04504) forms it.
    - Preempting within a queue: borders alone do as well here (1.16), but where prompts tell little about lengths, requests of one queue
      differ by what has become known since, and borders alone lost 6 %.

    Thresholds are multiples of the measured time of a round, so the options hold on any machine.
    """

    name = "laps-sd"

    def __init__(self, estimates: Estimates, options: LapsSdOptions = LapsSdOptions()) -> None:
        self._estimates = estimates
        self._last_queue = options.num_queues - 1
        self._first_threshold_rounds = options.first_threshold_rounds
        self._log_ratio = log(options.threshold_ratio)
        self._longest_part = 1 - options.hysteresis  # of a running request's remaining time, for one that preempts it

    def rank(self, request: Schedulable) -> Rank:
        """Its queue, then what it still takes of the server, in ns."""
        work_ns = self._work_ns(request)
        return (float(self._queue(request, work_ns)), work_ns)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """From a higher queue always; within one by the hysteresis."""
        return challenger[0] < running[0] or challenger[1] <= self._longest_part * running[1]

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        """By estimated times."""
        return pays(self._estimates, challenger, other, num_recomputed, num_delayed)

    def queue_of(self, request: Schedulable) -> int:
        """0 up to the first threshold; the lowest takes whoever is beyond all of them."""
        return self._queue(request, self._work_ns(request))

    def _work_ns(self, request: Schedulable) -> float:
        estimates = self._estimates
        remaining_ns = estimates.remaining_ns(request)
        prefill_ns = (request.num_uncached - 1) * estimates.prefill_token_ns  # counted by `remaining_ns`
        return prefill_ns + (remaining_ns - prefill_ns) / estimates.rows_per_round

    def _queue(self, request: Schedulable, work_ns: float) -> int:
        rounds = work_ns / self._estimates.round_ns
        if not self._estimates.is_perceptible(request):
            rounds = max(rounds, request.num_verifications / self._estimates.rows_per_round)
        passed = rounds / self._first_threshold_rounds
        return 0 if passed < 1 else min(self._last_queue, 1 + int(log(passed) / self._log_ratio))
