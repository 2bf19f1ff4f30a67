"""One contract for every policy: all requests finish, slots are given back, the order is total, decisions are cheap, nobody starves."""

import math
import random

import pytest

from drafthouse.core.errors import ClientError
from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policies.fcfs import FirstComeFirstServed
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse.scheduling.policy import Policy
from drafthouse.scheduling.ready_queue import RERANKED_PER_CHOICE, ReadyQueue
from drafthouse_load.simulate.costs import GivenCosts
from drafthouse_load.simulate.oracle import Oracle
from drafthouse_load.simulate.srpt_estimated import EstimatedSrpt
from fakes.served_queue import (
    NUM_DRAFTED,
    TICK_NS,
    Comparisons,
    CountedPriority,
    CountedTime,
    CountingPolicy,
    ServedQueue,
    ServedRequest,
    estimator_for,
    make_requests,
)

SIX = ("fcfs", "laps-sd", "las", "mlfq", "sjf", "srpt-limited")
NAMES = (*SIX, "srpt-estimated", "oracle")
PREEMPTIVE = ("laps-sd", "las", "mlfq", "srpt-estimated", "oracle")  # the others do not always let even the most urgent rank preempt
NEVER_NS = 10**15


def create(name: str, estimator: Estimator) -> Policy:
    if name == "oracle":
        return Oracle(GivenCosts(prefill_tokens=0), 1, NUM_DRAFTED)
    if name == "srpt-estimated":
        return EstimatedSrpt(estimator)
    return POLICIES.create(name, estimator)


def serve(name: str, requests: list[ServedRequest], capacity: int = 1, slots: int = 4, starvation_limit_ns: int = NEVER_NS) -> ServedQueue:
    estimator = estimator_for(requests)
    server = ServedQueue(create(name, estimator), estimator, starvation_limit_ns, capacity, slots)
    server.serve(requests)
    return server


def aged(count: int, seed: int, most_rounds: int = 12) -> tuple[list[ServedRequest], Estimator]:
    """Requests that have run a while, and the estimator that saw it."""
    requests = make_requests(count, seed, priorities=(0, 0, 0, 1))
    estimator, rng = estimator_for(requests), random.Random(seed)
    for request in requests:
        for _ in range(rng.randrange(min(most_rounds, request.end_round))):
            request.num_uncached = 1
            request.run_round(estimator, NUM_DRAFTED, request.accepted[request.next_round], TICK_NS // 5, TICK_NS)
            request.next_round += 1
    return requests, estimator


def test_the_registry_has_the_six_and_refuses_others() -> None:
    estimator = estimator_for([])
    assert set(SIX) <= set(POLICIES.names)
    assert [POLICIES.create(name, estimator).name for name in SIX] == list(SIX)
    with pytest.raises(ClientError, match=r"UNSUPPORTED field=policy value='nearest' allowed=one of .*fcfs.*laps-sd"):
        POLICIES.create("nearest", estimator)
    with pytest.raises(ValueError, match="registered twice"):
        POLICIES.register("fcfs", lambda estimates: FirstComeFirstServed())


@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_request_finishes_and_gives_its_slot_back(name: str, capacity: int) -> None:
    requests = make_requests(150, seed=capacity, gap_ticks=10 / capacity, priorities=(0, 0, -1, 2))
    server = serve(name, requests, capacity, slots=4, starvation_limit_ns=500 * TICK_NS)
    assert sorted(request.request_uid for request in server.finished) == sorted(request.request_uid for request in requests)
    assert all(len(request.turns_ns) == request.end_round for request in requests)
    assert (len(server.holders), len(server.queue), server.queue.queue_lengths()) == (0, 0, {})
    assert not any(request.holds_slot or request.is_running for request in requests)
    assert len(server.estimator) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_total(name: str) -> None:
    requests, estimator = aged(120, seed=5)
    policy = create(name, estimator)
    ranks = [policy.rank(request) for request in requests]
    assert len({len(rank) for rank in ranks}) == 1
    assert not any(math.isnan(part) for rank in ranks for part in rank)
    orders = []
    for seed in range(3):
        queue: ReadyQueue[ServedRequest] = ReadyQueue(policy, NEVER_NS)
        for request in random.Random(seed).sample(requests, len(requests)):
            queue.add(request, 0)
        orders.append([request.request_uid for request in queue.select(len(requests), 0)])
        one_by_one = []
        while queue:
            (first,) = queue.select(1, 0)
            one_by_one.append(first.request_uid)
            queue.remove(first)
        assert one_by_one == orders[-1]
    assert orders[0] == orders[1] == orders[2]
    assert len(set(orders[0])) == len(requests)


def _operations(name: str, count: int, capacity: int) -> tuple[float, float]:
    """Comparisons of keys and looks at waits; ranks asked for. Per decision: a select, and an update of each request that ran."""
    requests, estimator = aged(count, seed=1, most_rounds=3)
    comparisons, policy = Comparisons(), CountingPolicy(create(name, estimator))
    queue: ReadyQueue[ServedRequest] = ReadyQueue(policy, 50 * TICK_NS)
    for request in requests:
        request.priority = CountedPriority(request.priority, comparisons)
        queue.add(request, 0)
    comparisons.count = policy.num_ranked = 0
    running: list[ServedRequest] = []
    num_decisions = 100  # from the 50th on, everybody is overdue
    for decision in range(num_decisions):
        chosen = queue.select(capacity, CountedTime(decision * TICK_NS, comparisons))
        for request in running:
            request.is_running = False
        running = chosen
        for request in chosen:
            request.is_running = request.holds_slot = True
            request.num_uncached = 1
            request.run_round(estimator, NUM_DRAFTED, 1, TICK_NS // 5, TICK_NS)
            queue.update(request, (decision + 1) * TICK_NS)
    return comparisons.count / num_decisions, policy.num_ranked / num_decisions


@pytest.mark.parametrize("name", NAMES)
def test_a_decision_costs_the_logarithm_of_the_queue(name: str) -> None:
    capacity = 4
    small, large = (_operations(name, count, capacity) for count in (200, 3200))
    assert max(small[1], large[1]) <= capacity + RERANKED_PER_CHOICE, "of those who only wait a few are ranked"
    # In and out of the order at most once per place, each a search; and a constant number per place to compare with those that run.
    for count, (compared, _) in ((200, small), (3200, large)):
        assert compared <= (capacity + RERANKED_PER_CHOICE) * (4 * math.log2(count) + 20)
    assert large[0] <= 2 * max(small[0], capacity), "16 times as many requests"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("capacity", "slots"), [(1, 80), (3, 80), (1, 2), (3, 4)])
def test_nobody_waits_longer_than_the_stated_bound(name: str, capacity: int, slots: int) -> None:
    limit_ns = 60 * TICK_NS
    for seed in range(3):
        requests = make_requests(80, seed, gap_ticks=4.0 / capacity, priorities=(0, 1, 5))
        server = serve(name, requests, capacity, slots, limit_ns)
        always_finds_slot = slots >= len(requests)
        turn_ns = TICK_NS if name in PREEMPTIVE and always_finds_slot else max(request.end_round for request in requests) * TICK_NS
        assert server.longest_wait_ns <= limit_ns + (1 + (server.most_live - 1) // capacity) * turn_ns
        assert len(server.finished) == len(requests)


@pytest.mark.parametrize("name", NAMES)
def test_without_ageing_somebody_would_wait_longer(name: str) -> None:
    """What makes the test above a test: the same arrivals with the limit out of reach, under an order that starves."""
    requests = make_requests(80, 0, gap_ticks=4.0, priorities=(0, 1, 5))
    server = serve(name, requests, slots=2)
    assert server.longest_wait_ns > (60 + server.most_live) * TICK_NS


def test_fcfs_and_sjf_never_take_a_place_from_who_runs() -> None:
    for name in ("fcfs", "sjf"):
        server = serve(name, make_requests(100, 2, gap_ticks=5.0, priorities=(0, 3)), starvation_limit_ns=20 * TICK_NS)
        assert server.num_evictions == 0
        for request in server.finished:
            assert request.turns_ns[-1] - request.turns_ns[0] == (request.end_round - 1) * TICK_NS
    arrivals = [request.sequence_no for request in serve("fcfs", make_requests(100, 2, gap_ticks=5.0)).finished]
    assert arrivals == sorted(arrivals)


def test_laps_sd_is_near_the_clairvoyant_and_ahead_of_the_others() -> None:
    mean = {name: serve(name, make_requests(300, 1, gap_ticks=10.0), slots=300).mean_latency_ticks for name in NAMES}
    assert mean["laps-sd"] <= 1.1 * mean["oracle"]
    assert mean["laps-sd"] < min(mean["las"], mean["mlfq"], mean["srpt-limited"], mean["sjf"]) < mean["fcfs"]
