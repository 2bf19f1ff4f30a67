"""Times decisions: `ReadyQueue.select`, and `ReadyQueue.update` of each request that ran."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from drafthouse.scheduling.estimates.registry import LENGTH_PREDICTORS
from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse.scheduling.ready_queue import ReadyQueue
from drafthouse_load.decide.queued import ROUND_NS, QueuedRequest, a_request

_ALREADY_SERVED = 8  # one in so many of the queued has run before
_NUM_LEARNT = 500  # requests that ended before, so that the estimates are those of a server under way


@dataclass(frozen=True)
class DecideSettings:
    """What is timed."""

    policies: tuple[str, ...]
    sizes: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # requests in the queue
    batch: int = 8
    decisions: int = 1000
    starvation_limit_ms: int = 15_000  # 600 rounds of virtual time: the last decisions are about overdue requests
    length_predictor: str = "histogram"
    seed: int = 0


@dataclass(frozen=True)
class DecisionCost:
    """Processor time of decisions of one policy with ``queued`` requests, in µs; garbage collection included.

    Processor time is what a decision costs whatever else the machine does; on a quiet one it is the wall time.
    """

    policy: str
    queued: int
    mean_us: float
    p50_us: float
    p99_us: float
    max_us: float
    wall_mean_us: float
    arrival_mean_us: float  # processor time of `ReadyQueue.add` while the queue was filled

    def row(self) -> dict[str, object]:
        """For JSON."""
        return {name: value if isinstance(value, str | int) else round(value, 3) for name, value in vars(self).items()}


def measure(settings: DecideSettings, advance: Callable[[str, int], None]) -> list[DecisionCost]:
    """Every policy at every size; the policies take turns at one size, so that a drift of the machine hits them alike."""
    costs = []
    for size in settings.sizes:
        for name in settings.policies:
            advance(name, size)
            costs.append(_Bench(name, size, settings).cost())
    return costs


class _Watch:
    """Adds up what passes between `start` and `stop`; it is made running."""

    def __init__(self) -> None:
        self.spent_ns = self.wall_ns = 0
        self.start()

    def start(self) -> None:
        """Go on."""
        self._wall_ns, self._spent_ns = time.perf_counter_ns(), time.thread_time_ns()

    def stop(self) -> None:
        """Count."""
        self.spent_ns += time.thread_time_ns() - self._spent_ns
        self.wall_ns += time.perf_counter_ns() - self._wall_ns


class _Bench:
    """One queue that is kept at one length: whoever ends is replaced by a new arrival."""

    def __init__(self, name: str, size: int, settings: DecideSettings) -> None:
        self._name, self._size, self._settings = name, size, settings
        self._rng = random.Random(f"{settings.seed} {size}")
        self._estimator = Estimator(LENGTH_PREDICTORS.create(settings.length_predictor))
        policy = POLICIES.create(name, self._estimator)
        self._queue: ReadyQueue[QueuedRequest] = ReadyQueue(policy, settings.starvation_limit_ms * 1_000_000)
        self._numbers = iter(range(size + _NUM_LEARNT + settings.batch * settings.decisions))
        self._now_ns = 0

    def cost(self) -> DecisionCost:
        """Fill the queue, then decide."""
        self._learn()
        arrivals_us = [self._arrive() for _ in range(self._size)]
        spent_us, wall_us = np.array(list(self._decisions())).T / 1e3
        p50, p99 = np.percentile(spent_us, (50, 99))
        figures = spent_us.mean(), p50, p99, spent_us.max(), wall_us.mean(), np.mean(arrivals_us)
        return DecisionCost(self._name, self._size, *map(float, figures))

    def _learn(self) -> None:
        for _ in range(_NUM_LEARNT):
            request = a_request(next(self._numbers), 0, self._rng)
            self._estimator.saw_arrival(request)
            while request.rounds_left:
                request.run_round(self._estimator, self._rng, self._settings.batch)
            self._estimator.saw_end(request, True)

    def _arrive(self) -> float:
        request = a_request(next(self._numbers), self._now_ns, self._rng)
        self._estimator.saw_arrival(request)
        if request.request_uid % _ALREADY_SERVED == 0:
            for _ in range(min(4, request.rounds_left - 1)):
                request.run_round(self._estimator, self._rng, self._settings.batch)
        began_ns = time.thread_time_ns()
        self._queue.add(request, self._now_ns)
        return (time.thread_time_ns() - began_ns) / 1e3

    def _decisions(self) -> Iterator[tuple[int, int]]:
        """Processor and wall time of each, in ns."""
        running: list[QueuedRequest] = []
        for _ in range(self._settings.decisions):
            watch = _Watch()
            chosen = self._queue.select(self._settings.batch, self._now_ns)
            watch.stop()
            self._round(running, chosen)
            running = chosen
            going_on = [request for request in chosen if request.rounds_left]
            watch.start()
            for request in going_on:
                self._queue.update(request, self._now_ns)
            watch.stop()
            yield watch.spent_ns, watch.wall_ns
            self._replace([request for request in chosen if not request.rounds_left])

    def _round(self, before: list[QueuedRequest], chosen: list[QueuedRequest]) -> None:
        for request in before:
            request.is_running = False
        self._now_ns += ROUND_NS
        for request in chosen:
            request.is_running = request.holds_slot = True
            request.run_round(self._estimator, self._rng, self._settings.batch)

    def _replace(self, ended: list[QueuedRequest]) -> None:
        for request in ended:
            self._queue.remove(request)
            self._estimator.saw_end(request, True)
            self._arrive()
