"""A server reduced to its queue: requests with known lengths, rounds of one tick, slots; and a count of what ordering costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policy import Policy, Rank, Schedulable
from drafthouse.scheduling.ready_queue import ReadyQueue
from drafthouse.scheduling.tenure import Tenure
from fakes.estimated_request import EstimatedRequest, KnownLengths

TICK_NS = 1_000_000
NUM_DRAFTED = 4


@dataclass(slots=True)
class ServedRequest(EstimatedRequest):
    """Knows its end, for the server below; `first_round` and `end_round` are what the simulator's oracle reads."""

    accepted: tuple[int, ...] = ()  # draft tokens accepted in each of its rounds
    first_round: int = 0
    next_round: int = 0
    added_ns: int = 0
    finish_ns: int = 0
    turns_ns: list[int] = field(default_factory=list)  # when its rounds began

    @property
    def end_round(self) -> int:
        """Rounds it takes."""
        return len(self.accepted)


def make_requests(count: int, seed: int, gap_ticks: float = 10.0, priorities: Sequence[int] = (0,)) -> list[ServedRequest]:
    """Heavy-tailed lengths, two domains, Poisson arrivals; uids do not follow the order of arrival."""
    rng = random.Random(seed)
    uids = rng.sample(range(count * 10), count)
    requests, arrival = [], 0.0
    for number, uid in enumerate(uids):
        chance = rng.betavariate(2, 1.5)
        rounds = max(1, min(400, round(3 * rng.paretovariate(1.3))))
        accepted = tuple(sum(rng.random() < chance for _ in range(NUM_DRAFTED)) for _ in range(rounds))
        prompt_len = rng.choice((1, 20, 300))
        arrival += rng.expovariate(1 / (gap_ticks * TICK_NS))
        requests.append(
            ServedRequest(
                uid,
                domain=rng.choice(("code", "math")),
                prompt_len=prompt_len,
                num_uncached=prompt_len,
                sequence_no=number,
                priority=rng.choice(priorities),
                arrival_ns=int(arrival),
                accepted=accepted,
            )
        )
    return requests


def estimator_for(requests: Sequence[ServedRequest]) -> Estimator:
    """The server's own estimator, with lengths that are known."""
    return Estimator(KnownLengths({request.request_uid: sum(request.accepted) + request.end_round for request in requests}))


class ServedQueue:
    """Runs requests under a policy; every step checks that slots and places are kept."""

    def __init__(self, policy: Policy, estimator: Estimator, starvation_limit_ns: int, capacity: int = 1, slots: int = 4) -> None:
        self.queue: ReadyQueue[ServedRequest] = ReadyQueue(policy, starvation_limit_ns, slots)
        self.estimator, self.capacity, self.slots = estimator, capacity, slots
        self.holders: dict[int, ServedRequest] = {}
        self.finished: list[ServedRequest] = []
        self.most_live = self.num_evictions = 0
        self.now_ns = 0

    def serve(self, requests: Sequence[ServedRequest], most_rounds: int = 100_000) -> None:
        """All of them, in order of arrival."""
        waiting = list(reversed(requests))
        while waiting or self.queue:
            while waiting and waiting[-1].arrival_ns <= self.now_ns:
                waiting[-1].added_ns = self.now_ns
                self.queue.add(waiting.pop(), self.now_ns)
            if self.queue:
                self.round()
            else:
                self.now_ns = waiting[-1].arrival_ns
            most_rounds -= 1
            assert most_rounds, "it does not end"

    def round(self) -> None:
        """Select, give slots, run."""
        self.most_live = max(self.most_live, len(self.queue))
        chosen = self.queue.select(self.capacity, self.now_ns)
        assert len(chosen) == min(self.capacity, len(self.queue)) == len({request.request_uid for request in chosen})
        for request in self.holders.values():
            request.is_running = False
        self._give_slots(chosen)
        assert len(self.holders) <= self.slots
        began_ns, self.now_ns = self.now_ns, self.now_ns + TICK_NS
        for request in chosen:
            request.turns_ns.append(began_ns)
            self._run(request)

    def _give_slots(self, chosen: Sequence[ServedRequest]) -> None:
        uids = {request.request_uid for request in chosen}
        num_lacking = len(self.holders.keys() | uids) - self.slots
        idle = [request for uid, request in self.holders.items() if uid not in uids]
        for request in self.queue.least_valuable(idle)[: max(0, num_lacking)]:
            del self.holders[request.request_uid]
            request.holds_slot = False
            request.num_uncached = request.prompt_len + request.num_output_tokens
            self.queue.rerank(request)
            self.num_evictions += 1
        for request in chosen:
            if not request.holds_slot:
                request.tenure = Tenure()
            request.is_running = request.holds_slot = True
            self.holders[request.request_uid] = request

    def _run(self, request: ServedRequest) -> None:
        self.estimator.saw_prefill(request.num_uncached, 0)  # a tick is a tick, with a prompt or without
        request.num_uncached = 1
        request.run_round(self.estimator, NUM_DRAFTED, request.accepted[request.next_round], TICK_NS // 5, TICK_NS - TICK_NS // 5)
        request.next_round += 1
        request.tenure.had(TICK_NS, has_got_token=True)
        if request.next_round < request.end_round:
            self.queue.update(request, self.now_ns)
            return
        self.queue.remove(request)
        self.estimator.saw_end(request, True)
        del self.holders[request.request_uid]
        request.is_running = request.holds_slot = False
        request.finish_ns = self.now_ns
        self.finished.append(request)

    @property
    def mean_latency_ticks(self) -> float:
        """Of those finished."""
        return sum(request.finish_ns - request.arrival_ns for request in self.finished) / len(self.finished) / TICK_NS

    @property
    def longest_wait_ns(self) -> int:
        """Between a request's being added, or the end of a turn, and the beginning of its next turn."""
        waits = [0]
        for request in self.finished:
            ends = [request.added_ns, *(turn + TICK_NS for turn in request.turns_ns)]
            waits += [begin - end for begin, end in zip(request.turns_ns, ends, strict=False)]
            assert all(first < second for first, second in pairwise(request.turns_ns))
        return max(waits)


class Comparisons:
    """Counts comparisons of keys, and waits that were looked at.

    A key begins with a request's priority, so each comparison asks it first whether it is equal.
    """

    def __init__(self) -> None:
        self.count = 0


class CountedPriority(int):
    """An int that tells of every time it is compared; so does its negative."""

    comparisons: Comparisons

    def __new__(cls, value: int, comparisons: Comparisons) -> CountedPriority:
        own = super().__new__(cls, value)
        own.comparisons = comparisons
        return own

    def __neg__(self) -> CountedPriority:
        return CountedPriority(-int(self), self.comparisons)

    def __eq__(self, other: object) -> bool:
        self.comparisons.count += 1
        return int(self) == other

    def __hash__(self) -> int:
        return int.__hash__(self)


class CountedTime(int):
    """A time that tells of every time something is subtracted from it: the queue looks at a wait."""

    comparisons: Comparisons

    def __new__(cls, value: int, comparisons: Comparisons) -> CountedTime:
        own = super().__new__(cls, value)
        own.comparisons = comparisons
        return own

    def __sub__(self, other: int) -> int:
        self.comparisons.count += 1
        return int(self) - other


class CountingPolicy:
    """A policy, and how often it was asked for a rank."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.num_ranked = 0

    @property
    def name(self) -> str:
        """The policy's."""
        return self._policy.name

    def rank(self, request: Schedulable) -> Rank:
        """The policy's."""
        self.num_ranked += 1
        return self._policy.rank(request)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        """The policy's."""
        return self._policy.may_preempt(challenger, running)

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        """The policy's own."""
        return self._policy.is_worth_evicting(challenger, other, num_recomputed, num_delayed)

    def queue_of(self, request: Schedulable) -> int:
        """The policy's."""
        return self._policy.queue_of(request)
