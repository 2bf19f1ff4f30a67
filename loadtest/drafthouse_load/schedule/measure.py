"""The order of work on the server: capacity, then every policy on the same arrivals, block by block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drafthouse_load.arrivals import poisson_given_count
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.schedule.options import BASELINE, ScheduleSettings
from drafthouse_load.schedule.play import play_closed, play_open, sampled
from drafthouse_load.schedule.requests import PlannedRequest, ServedRequest, plan_requests
from drafthouse_load.schedule.server import Errors, Reading, ScheduleServer

_COST_TOKENS = 48  # of a request that only shows what rounds take
_COST_REQUESTS = 6  # per row


@dataclass(frozen=True)
class Capacity:
    """All requests at once under the baseline: what the server can do, and what each request is."""

    max_batch: int
    served: tuple[ServedRequest, ...]  # by number
    reading: Reading

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second while there was more to do than the server could take: until the last request's first token."""
        full_s = max(one.event_s[0] for one in self.served)
        events = [(at_s, count) for one in self.served for at_s, count in zip(one.event_s, one.tokens_per_event, strict=True)]
        return sum(count for at_s, count in events if at_s <= full_s) / full_s

    @property
    def tokens_mean(self) -> float:
        """Output tokens per request."""
        return sum(one.completion.num_output_tokens for one in self.served) / len(self.served)

    @property
    def requests_per_s(self) -> float:
        """Of requests of mean length."""
        return self.tokens_per_s / self.tokens_mean


@dataclass(frozen=True)
class Block:
    """Some of the requests under one policy."""

    policy: str
    max_batch: int
    load: float
    served: tuple[ServedRequest, ...]  # in order of arrival
    reading: Reading
    errors: Errors

    @property
    def makespan_s(self) -> float:
        """From the start of the arrivals to the last token."""
        return max(one.ended_s for one in self.served)


@dataclass(frozen=True)
class RoundCost:
    """What rounds took with so many clients."""

    rows: int
    reading: Reading
    num_requests: int


@dataclass(frozen=True)
class Measured:
    """Everything of one `max_batch`."""

    capacity: Capacity
    costs: tuple[RoundCost, ...]  # empty when nothing is to be predicted
    blocks: tuple[Block, ...]


class ScheduleBench:
    """Runs the requests of a setting."""

    def __init__(self, server: ScheduleServer, settings: ScheduleSettings, prompts: Sequence[DomainPrompt]) -> None:
        rng = np.random.default_rng(settings.seed)
        self.advance: Callable[[str], None] = lambda _: None  # hears of each answer, and to which step of the run it belongs
        self._server, self._settings = server, settings
        self._planned = plan_requests(prompts, settings.requests, 0, rng)
        self._warmup = plan_requests(prompts, settings.warmup, settings.requests, rng)
        self._options = sampled(settings.max_tokens, settings.temperature)

    def run(self, max_batch: int) -> Measured:
        """One `max_batch` from its capacity on."""
        settings = self._settings
        capacity = self.capacity(max_batch)
        costs = self._costs(max_batch) if settings.replay_load is not None else ()
        blocks = [
            self.block(policy, capacity, settings.load, number) for number in range(settings.blocks) for policy in settings.order(number)
        ]
        if settings.replay_load is not None:
            for number in range(settings.blocks):
                names = [name for name in settings.order(number) if name in settings.replay_policies]
                blocks += [self.block(policy, capacity, settings.replay_load, number) for policy in names]
        return Measured(capacity, costs, tuple(blocks))

    def capacity(self, max_batch: int) -> Capacity:
        """Every request at time 0 under the baseline."""
        self._prepare(BASELINE, max_batch)
        before = self._server.read()
        step = f"capacity, max_batch {max_batch}"
        served = play_open(self._server.url, self._planned, [0.0] * len(self._planned), self._options, lambda: self.advance(step))
        return Capacity(max_batch, tuple(served), self._server.read() - before)

    def _costs(self, max_batch: int) -> tuple[RoundCost, ...]:
        """Short requests from 1, 2, … ``max_batch`` clients; with one row the capacity run tells."""
        found = []
        for rows in range(1, max_batch + 1) if max_batch > 1 else ():
            planned = [self._planned[at % len(self._planned)] for at in range(_COST_REQUESTS * rows)]
            before = self._server.read()
            play_closed(self._server.url, planned, rows, sampled(_COST_TOKENS, self._settings.temperature))
            found.append(RoundCost(rows, self._server.read() - before, len(planned)))
        return tuple(found)

    def block(self, policy: str, capacity: Capacity, load: float, number: int) -> Block:
        """One block: the same requests at the same times whatever the policy."""
        planned, due_s = self.arrivals(capacity, load, number)
        self._prepare(policy, capacity.max_batch)
        before = self._server.read()
        step = f"{policy}, max_batch {capacity.max_batch}, load {load:g}, block {number + 1} of {self._settings.blocks}"
        served = play_open(self._server.url, planned, due_s, self._options, lambda: self.advance(step))
        return Block(policy, capacity.max_batch, load, tuple(served), self._server.read() - before, self._server.errors())

    def arrivals(self, capacity: Capacity, load: float, number: int) -> tuple[list[PlannedRequest], list[float]]:
        """The requests of a block and when they arrive: Poisson, given that their tokens are ``load`` of what the time allows."""
        settings = self._settings
        size = settings.requests // settings.blocks
        planned = self._planned[number * size : (number + 1) * size]
        tokens = sum(capacity.served[one.number].completion.num_output_tokens for one in planned)
        rng = np.random.default_rng((settings.seed, capacity.max_batch, number, round(1000 * load)))
        return planned, poisson_given_count(size, tokens / (load * capacity.tokens_per_s), rng).tolist()

    def _prepare(self, policy: str, max_batch: int) -> None:
        self._server.load(policy, max_batch)
        play_open(self._server.url, self._warmup, [0.0] * len(self._warmup), self._options, lambda: None)

    @property
    def num_answers(self) -> int:
        """Of the whole run, without warm-up: for a progress bar."""
        settings = self._settings
        replayed = len(settings.replay_policies) if settings.replay_load is not None else 0
        return len(settings.max_batch) * settings.requests * (1 + len(settings.policies) + replayed)
