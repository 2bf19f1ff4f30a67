"""Who gets a place where all slots are taken: only for a reason, and only a slot that was earned."""

from drafthouse.scheduling.policy import Rank, Schedulable
from drafthouse.scheduling.ready_queue import ReadyQueue
from drafthouse.scheduling.tenure import TENURE, Tenure
from fakes.estimated_request import EstimatedRequest

LIMIT_NS = 100
EARNED = Tenure(attained_ns=int(TENURE), computing_ns=1)


class ByPromptLen:
    """The shortest prompt goes first, always; evicting pays as it was told."""

    name = "by-prompt"

    def __init__(self, evicts: bool) -> None:
        self.evicts = evicts
        self.asked: list[tuple[int, int, int, int]] = []

    def rank(self, request: Schedulable) -> Rank:
        return (float(request.prompt_len),)

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        return True

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        self.asked.append((challenger.request_uid, other.request_uid, num_recomputed, num_delayed))
        return self.evicts

    def queue_of(self, request: Schedulable) -> int:
        return 0


def a_request(uid: int, prompt_len: int, tenure: Tenure | None = None, priority: int = 0) -> EstimatedRequest:
    """With a tenure it holds a slot and has computed its prompt."""
    num_uncached = 1 if tenure else prompt_len
    return EstimatedRequest(
        uid,
        prompt_len=prompt_len,
        num_uncached=num_uncached,
        priority=priority,
        sequence_no=uid,
        holds_slot=tenure is not None,
        tenure=tenure or Tenure(),
    )


def full_house(
    *newcomers: EstimatedRequest, tenure: Tenure = EARNED, evicts: bool = False
) -> tuple[ReadyQueue[EstimatedRequest], ByPromptLen]:
    """Two slots, both taken by requests that run (1 and 2), and who has come since."""
    policy = ByPromptLen(evicts)
    queue: ReadyQueue[EstimatedRequest] = ReadyQueue(policy, LIMIT_NS, num_slots=2)
    for uid in (1, 2):
        queue.add(running := a_request(uid, 50 + uid, tenure), 0)
        running.is_running = True
    assert uids(queue, 0) == [1, 2]
    for newcomer in newcomers:
        queue.add(newcomer, 0)
    policy.asked.clear()
    return queue, policy


def uids(queue: ReadyQueue[EstimatedRequest], now_ns: int) -> list[int]:
    return [request.request_uid for request in queue.select(2, now_ns)]


def test_a_more_urgent_request_without_a_slot_waits_where_it_does_not_pay() -> None:
    queue, policy = full_house(a_request(3, 10))
    assert uids(queue, 1) == [1, 2]
    assert policy.asked == [
        (3, 2, 51, 3)
    ]  # instead of the least urgent one, whose 51 cached tokens would be computed again; three are there


def test_where_it_pays_the_least_urgent_gives_way() -> None:
    queue, _ = full_house(a_request(3, 10), evicts=True)
    assert uids(queue, 1) == [3, 1]


def test_a_free_slot_is_asked_of_nobody() -> None:
    queue, policy = full_house()
    queue.remove(next(request for request in queue.select(2, 1) if request.request_uid == 2))
    queue.add(a_request(3, 10), 1)
    queue.add(a_request(4, 11), 1)
    assert uids(queue, 1) == [3, 1]
    assert [challenger for challenger, *_ in policy.asked] == [4]


def test_a_slot_that_is_not_earned_is_nobody_elses_whatever_it_is_for() -> None:
    for priority in (0, 7):
        queue, policy = full_house(a_request(3, 10, priority=priority), tenure=Tenure(int(TENURE) - 1, 1), evicts=True)
        assert uids(queue, 1) == [1, 2]
        assert policy.asked == []


def test_a_higher_class_takes_an_earned_slot() -> None:
    queue, policy = full_house(a_request(3, 900, priority=1))
    assert uids(queue, 1) == [3, 1]
    assert policy.asked == []


def test_being_overdue_takes_no_slot_and_keeps_no_higher_class_from_one() -> None:
    queue, _ = full_house(a_request(3, 10))
    for request in queue.select(2, 1):
        queue.update(request, LIMIT_NS)
    assert uids(queue, LIMIT_NS) == [1, 2]
    queue.add(a_request(4, 900, priority=1), LIMIT_NS)
    assert uids(queue, LIMIT_NS) == [4, 1]


def test_without_room_a_preempted_holder_may_still_come_back() -> None:
    queue: ReadyQueue[EstimatedRequest] = ReadyQueue(ByPromptLen(evicts=False), LIMIT_NS, num_slots=3)
    holders = [a_request(uid, prompt_len, EARNED) for uid, prompt_len in ((1, 51), (2, 52), (4, 60))]
    for holder in holders:
        holder.is_running = True
        queue.add(holder, 0)
    assert len(queue.select(3, 0)) == 3
    assert uids(queue, 0) == [1, 2]
    holders[2].is_running = False
    holders[1].prompt_len = 90  # now less urgent than the preempted one
    queue.update(holders[1], 1)
    queue.add(a_request(3, 10), 1)
    assert uids(queue, 1) == [1, 4]


def test_asking_twice_is_as_asking_once() -> None:
    queue, _ = full_house(a_request(3, 10), evicts=True)
    assert uids(queue, 1) == uids(queue, 1) == [3, 1]
