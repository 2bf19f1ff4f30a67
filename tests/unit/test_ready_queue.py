"""The queue behind every policy: order, places, hysteresis, ageing, priorities, slots; and against a plain list that sorts."""

import random
from dataclasses import dataclass

import pytest

from drafthouse.scheduling.policy import Rank, Schedulable
from drafthouse.scheduling.ready_queue import ReadyQueue
from fakes.estimated_request import EstimatedRequest

NEVER_NS = 10**12


@dataclass
class ByOutput:
    """Ranks by tokens generated: a figure that tests set. Preempts by the rule they give it."""

    ratio: float = 1.0  # a challenger must be at most this part of the running one's rank; 0 = never

    name = "by-output"

    def rank(self, request: Schedulable) -> Rank:
        if request.num_output_tokens < 0:
            raise ArithmeticError("no rank")
        return (float(request.num_output_tokens),)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        return challenger[0] <= self.ratio * running[0] if self.ratio else False

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        return False

    def queue_of(self, request: Schedulable) -> int:
        return request.num_output_tokens // 10


def a_request(uid: int, rank: int = 0, priority: int = 0) -> EstimatedRequest:
    return EstimatedRequest(uid, num_output_tokens=rank, priority=priority, sequence_no=uid)


def a_queue(*requests: EstimatedRequest, ratio: float = 1.0, limit_ns: int = NEVER_NS) -> ReadyQueue[EstimatedRequest]:
    queue: ReadyQueue[EstimatedRequest] = ReadyQueue(ByOutput(ratio), limit_ns)
    for request in requests:
        queue.add(request, 0)
    return queue


def run(queue: ReadyQueue[EstimatedRequest], capacity: int = 1, now_ns: int = 0) -> list[int]:
    """Select, and let those run until the next select."""
    chosen = queue.select(capacity, now_ns)
    for request in chosen:
        request.is_running = True
    return [request.request_uid for request in chosen]


def test_priority_goes_before_rank_and_rank_before_arrival() -> None:
    queue = a_queue(a_request(1, 5), a_request(2, 3), a_request(3, 3), a_request(4, 9, priority=2), a_request(5, 0, priority=-1))
    assert run(queue, 5) == [4, 2, 3, 1, 5]
    assert run(queue, 2) == [4, 2]
    assert run(queue, 9) == [4, 2, 3, 1, 5]


def test_a_running_request_keeps_its_place_until_the_policy_lets_another_have_it() -> None:
    queue = a_queue(a_request(1, 10), ratio=0.8)
    assert run(queue) == [1]
    queue.add(a_request(2, 9), 0)
    assert run(queue) == [1], "shorter, but not by enough"
    queue.add(a_request(3, 7), 0)
    assert run(queue) == [3]
    assert run(queue, 2) == [3, 2]


def test_the_least_urgent_of_those_that_may_be_preempted_gives_way() -> None:
    queue = a_queue(a_request(1, 10), a_request(2, 20), a_request(3, 30), ratio=0.5)
    run(queue, 3)
    for uid in (4, 5):
        queue.add(a_request(uid, 9), 0)
    assert run(queue, 3) == [4, 5, 1], "9 is at most half of 30 and of 20, not of 10"


def test_who_does_not_run_any_more_keeps_nothing() -> None:
    first, second = a_request(1, 10), a_request(2, 9)
    queue = a_queue(first, ratio=0.5)
    run(queue)
    queue.add(second, 0)
    assert run(queue) == [1]
    first.is_running = False  # chosen, but it got no slot
    assert run(queue) == [2]
    queue.remove(first)
    queue.remove(second)
    assert (len(queue), queue.select(4, 0)) == (0, [])


def test_fewer_places_leave_the_most_urgent() -> None:
    queue = a_queue(*(a_request(uid, uid) for uid in range(1, 6)), ratio=0.0)
    assert run(queue, 4) == [1, 2, 3, 4]
    assert run(queue, 2) == [1, 2]
    assert run(queue, 3) == [1, 2, 3]


def test_a_higher_class_overcomes_hysteresis_but_not_a_policy_that_never_preempts() -> None:
    for ratio, expected in ((0.1, [2]), (0.0, [1])):
        queue = a_queue(a_request(1, 5), ratio=ratio)
        run(queue)
        queue.add(a_request(2, 50, priority=1), 0)
        assert run(queue) == expected


def test_an_overdue_request_goes_first_until_it_has_had_its_turn() -> None:
    urgent, late, later = a_request(1, 0, priority=9), a_request(2, 50), a_request(3, 40)
    queue = a_queue(urgent, late, limit_ns=100)
    queue.add(later, 10)
    assert run(queue, 1, 99) == [1]
    queue.update(urgent, 100)
    assert run(queue, 1, 100) == [2], "longest wait first, not the best rank, and before any priority"
    assert run(queue, 1, 105) == [2], "it has not had its turn: nothing was updated"
    queue.update(late, 110)
    assert run(queue, 1, 110) == [3]
    queue.update(later, 120)
    assert run(queue, 3, 120) == [1, 3, 2]


def test_an_overdue_request_waits_for_a_place_where_nobody_may_be_preempted() -> None:
    running, other, late = a_request(1, 5), a_request(2, 1), a_request(3, 90)
    queue = a_queue(running, ratio=0.0, limit_ns=100)
    run(queue)
    queue.add(late, 0)
    queue.add(other, 50)
    queue.update(running, 120)
    assert run(queue, 1, 120) == [1]
    queue.remove(running)
    assert run(queue, 1, 130) == [3]


def test_a_round_is_a_turn_and_a_new_rank_alone_is_not() -> None:
    first, second = a_request(1, 5), a_request(2, 6)
    queue = a_queue(first, second, limit_ns=100)
    second.num_output_tokens = 1
    assert run(queue) == [1], "a rank counts from when the queue hears of it"
    queue.rerank(second)
    assert run(queue) == [2]
    queue.update(second, 60)
    queue.rerank(first)
    assert run(queue, 1, 100) == [1], "its wait goes on"


def test_a_rank_that_cannot_be_had_changes_nothing() -> None:
    request = a_request(1, 5)
    queue = a_queue(request, a_request(2, 6))
    request.num_output_tokens = -1
    for call in (lambda: queue.rerank(request), lambda: queue.update(request, 9), lambda: queue.add(a_request(3, -1), 0)):
        with pytest.raises(ArithmeticError):
            call()
    assert run(queue, 3) == [1, 2]
    assert queue.queue_lengths() == {0: 2}
    queue.remove(request)
    assert run(queue, 3) == [2]


def test_leaving_does_not_depend_on_present_figures() -> None:
    requests = [a_request(uid, uid) for uid in range(6)]
    queue = a_queue(*requests)
    run(queue, 3)
    for request in requests:
        request.num_output_tokens, request.priority = 99 - request.request_uid, request.request_uid % 3
    for request in requests:
        assert request in queue
        queue.remove(request)
        assert request not in queue
    assert (len(queue), queue.queue_lengths()) == (0, {})


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="starvation_limit_ns must be at least 1, not 0"):
        a_queue(limit_ns=0)
    queue = a_queue(a_request(1))
    with pytest.raises(ValueError, match="request 1 is in the queue already"):
        queue.add(a_request(1), 0)
    for call in (queue.remove, queue.rerank):
        with pytest.raises(KeyError):
            call(a_request(2))


def test_the_cache_that_saves_least_for_longest_goes_first() -> None:
    near, far, large, lost = a_request(1, 1), a_request(2, 8), a_request(3, 9), a_request(4, 2)
    near.prompt_len = far.prompt_len = 100
    large.prompt_len = 10_000
    lost.prompt_len, lost.num_uncached = 50_000, 50_002  # it has a slot, but nothing in it yet
    queue = a_queue(near, far, large, lost)
    assert [request.request_uid for request in queue.least_valuable([near, far, large, lost])] == [4, 2, 1, 3]
    far.num_output_tokens = 0  # now the first in the order
    queue.rerank(far)
    assert [request.request_uid for request in queue.least_valuable([far, near])] == [1, 2]


def test_those_that_run_are_ahead_of_every_preempted_one() -> None:
    running = [a_request(uid, 0) for uid in range(1, 5)]
    small, large = a_request(5, 1), a_request(6, 2)
    small.prompt_len, large.prompt_len = 30, 50
    queue = a_queue(*running, small, large)
    run(queue, 4)
    assert [request.request_uid for request in queue.least_valuable([large, small])] == [5, 6], "31 for 4 ahead, 51 for 5"


def test_queue_lengths_follow_the_requests() -> None:
    requests = [a_request(uid, uid * 4) for uid in range(6)]  # 0, 4, 8 | 12, 16 | 20
    queue = a_queue(*requests)
    assert queue.queue_lengths() == {0: 3, 1: 2, 2: 1}
    run(queue, 2)
    requests[0].num_output_tokens = 25
    queue.update(requests[0], 1)
    queue.remove(requests[3])
    assert queue.queue_lengths() == {0: 2, 1: 1, 2: 2}


class PlainQueue:
    """The same contract by sorting everything each time; for policies without hysteresis (ratio 1) or without preemption (0)."""

    def __init__(self, preempts: bool, limit_ns: int) -> None:
        self.preempts, self.limit_ns = preempts, limit_ns
        self.requests: list[EstimatedRequest] = []
        self.waits: list[int] = []  # request_uids, longest wait first
        self.since: dict[int, int] = {}
        self.keys: dict[int, tuple[int, int, int]] = {}
        self.chosen: list[int] = []

    def put(self, request: EstimatedRequest, now_ns: int) -> None:
        if request.request_uid in self.since:
            self.waits.remove(request.request_uid)
        else:
            self.requests.append(request)
        self.waits.append(request.request_uid)
        self.since[request.request_uid] = now_ns
        self.keys[request.request_uid] = (-request.priority, request.num_output_tokens, request.sequence_no)

    def remove(self, request: EstimatedRequest) -> None:
        self.requests.remove(request)
        self.waits.remove(request.request_uid)
        del self.since[request.request_uid]

    def select(self, capacity: int, now_ns: int) -> list[int]:
        overdue = [uid for uid in self.waits if now_ns - self.since[uid] >= self.limit_ns][:capacity]

        def urgency(uid: int) -> tuple[int, int, tuple[int, int, int]]:
            return (0, overdue.index(uid), self.keys[uid]) if uid in overdue else (1, 0, self.keys[uid])

        order = sorted(self.since, key=urgency)
        if not self.preempts:
            kept = [uid for uid in order if uid in self.chosen][:capacity]
            order = kept + [uid for uid in order if uid not in kept]
        self.chosen = order[:capacity]
        return sorted(self.chosen, key=urgency)


@pytest.mark.parametrize("preempts", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_it_chooses_as_a_plain_sorted_list_does(preempts: bool, seed: int) -> None:
    rng = random.Random(seed)
    queue: ReadyQueue[EstimatedRequest] = ReadyQueue(ByOutput(1.0 if preempts else 0.0), 40)
    plain = PlainQueue(preempts, 40)
    now_ns, running, num_overtaken = 0, [], 0
    for uid in range(600):
        now_ns += rng.randrange(1, 4)
        if rng.random() < 0.4 or not plain.requests:
            request = a_request(uid, rng.randrange(30), rng.choice((0, 0, 0, 1)))
            queue.add(request, now_ns)
            plain.put(request, now_ns)
        elif rng.random() < 0.3:
            leaving = rng.choice(plain.requests)
            queue.remove(leaving)
            plain.remove(leaving)
        capacity = rng.randrange(1, 5)
        expected = plain.select(capacity, now_ns)
        chosen = queue.select(capacity, now_ns)
        assert [request.request_uid for request in chosen] == expected
        for request in running:
            request.is_running = False
        running = chosen
        for request in chosen:
            request.is_running = True
            if rng.random() < 0.8:  # it took part
                request.num_output_tokens += rng.randrange(4)
                queue.update(request, now_ns)
                plain.put(request, now_ns)
        num_overtaken += len(plain.requests) > capacity
    assert num_overtaken > 300, "there was a choice to make"
