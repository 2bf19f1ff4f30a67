"""The one queue behind every policy: order, who runs next, preemption with hysteresis, ageing, priority classes, who gives up its slot."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Generic

from sortedcontainers import SortedList

from drafthouse.scheduling.policy import Policy, S
from drafthouse.scheduling.seating import Entry, Key, Seating, num_cached

logger = logging.getLogger(__name__)
RERANKED_PER_CHOICE = 2  # of those who wait


class ReadyQueue(Generic[S]):
    """Every live request of a server: waiting, running and preempted.

    A request is ranked when it arrives and after every round it took part in; one that only waits costs next to nothing. Cost for n
    requests: `add`, `update`, `rerank`, `remove` and each of the ``capacity`` places of `select` compare O(log n) keys.

    **Order.** Overdue requests (below), then higher `priority`, then the policy's rank, then arrival. Requests that run keep
    their places unless a more urgent one may take it: `Policy.may_preempt` decides within a class. An overdue request or one
    of a higher class is held against it as a challenger of the most urgent rank there is: it overcomes any hysteresis, but
    where a policy lets nobody be preempted (`fcfs`) it goes first only when a place becomes free.

    **Slots.** Whoever holds a slot, or finds a free one, takes a place for nothing. Where all are taken somebody has to give one
    up and will be computed anew, which delays everybody. So then a challenger gets a place only if there is a holder that has
    *earned its slot* (`Schedulable.has_earned_slot`), and only if the challenger is of a higher class than that holder, or the policy
    finds the exchange worth it (`Policy.is_worth_evicting`). Without this rule preemption costs more than it brings where there are
    as many places as slots: at load 0.9 (8 and 8, code lengths) `laps-sd` took 3.4 times the mean latency of `fcfs`, and `las` could not
    keep up at all. Being overdue is no reason either: where many are, taking turns would be work enough to make all others overdue.

    **Ageing.** A request that took part in no round for ``starvation_limit_ns`` is *overdue*: it goes before everybody who is
    not, and the overdue go in the order in which their waits began, whatever their priorities, each until it has had its turn:
    one round. **Bound**: with n live requests, c places and every chosen request taking part in its round, the next turn of a
    request begins no later than starvation_limit_ns + (1 + floor((n - 1) / c)) rounds after its last one (or `add`): the round
    under way when it becomes overdue, then those of the at most n - 1 requests whose waits began earlier, c at a time; a wait
    that begins later never overtakes. So nobody starves and every request finishes. Where a policy refuses to preempt, a turn
    may last until the request has finished: there the bound holds with the longest service instead of a round. Likewise where
    all slots are taken: the overdue go first when one is given back. A request that was chosen and not served (the round's budget
    for prompts ran out before it) has had no turn, and comes again in the next round.

    **Ranks age, too.** What a waiting request was ranked by may have moved meanwhile, so every `select` ranks a few anew.
    """

    def __init__(self, policy: Policy, starvation_limit_ns: int, num_slots: int | None = None) -> None:
        """``starvation_limit_ns`` >= 1; ``num_slots``: caches that can be kept, not fewer than there are places; None: any number."""
        if starvation_limit_ns < 1:
            raise ValueError(f"starvation_limit_ns must be at least 1, not {starvation_limit_ns}")
        if num_slots is not None and num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, not {num_slots}")
        self._num_slots = num_slots
        self._stale: Iterator[int] = iter(())  # request_uids still to be ranked anew in this turn
        self._policy = policy
        self._starvation_limit_ns = starvation_limit_ns
        self._entries: OrderedDict[int, Entry[S]] = OrderedDict()  # by request_uid, in the order in which their waits began
        self._waiting: SortedList[Key] = SortedList()  # keys of the entries not chosen
        self._chosen: dict[int, Entry[S]] = {}
        self._preempted: dict[int, Entry[S]] = {}  # not chosen, and in possession of a slot
        self._queue_lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: S) -> bool:
        return request.request_uid in self._entries

    def add(self, request: S, now_ns: int) -> None:
        """Take in a request that arrived. ``now_ns`` never decreases from call to call. ValueError when it is in already."""
        if request in self:
            raise ValueError(f"request {request.request_uid} is in the queue already")
        entry = Entry(request, self._key(request), self._policy.queue_of(request), now_ns)
        self._entries[request.request_uid] = entry
        self._enter_queue(entry, entry.queue)
        self._waiting.add(entry.key)

    def update(self, request: S, now_ns: int) -> None:
        """It took part in a round that ended now: its figures changed, and it has had its turn. KeyError when it is not in."""
        self.rerank(request)
        self._entries[request.request_uid].wait_since_ns = now_ns
        self._entries.move_to_end(request.request_uid)

    def refresh(self, request: S) -> None:
        """Rank it anew without a round: it lost its cache, or what it was ranked by has moved. KeyError when it is not in.

        Where the policy raises, that is logged and the request keeps its rank: nobody else is harmed by it.
        """
        try:
            self.rerank(request)
        except Exception:
            if request not in self:
                raise
            logger.exception("request %d cannot be ranked anew", request.request_uid)

    def rerank(self, request: S) -> None:
        """Rank it anew; what the policy raises leaves everything as it was. KeyError when it is not in."""
        entry = self._entries[request.request_uid]
        key, queue = self._key(request), self._policy.queue_of(request)  # before anything changes: a policy may raise
        if not entry.is_chosen:
            self._waiting.remove(entry.key)
            self._waiting.add(key)
            if not request.holds_slot:
                self._preempted.pop(request.request_uid, None)
        entry.key = key
        self._leave_queue(entry)
        self._enter_queue(entry, queue)

    def remove(self, request: S) -> None:
        """It finished, failed or was cancelled. KeyError when it is not in."""
        entry = self._entries.pop(request.request_uid)
        self._leave_queue(entry)
        if entry.is_chosen:
            del self._chosen[request.request_uid]
        else:
            self._waiting.remove(entry.key)
            self._preempted.pop(request.request_uid, None)

    def select(self, capacity: int, now_ns: int) -> list[S]:
        """Who takes part in the next round, most urgent first: min(``capacity``, all there are) requests.

        Whose `is_running` is true runs; it is preempted when this leaves it out. Called between rounds only, so nothing is preempted
        inside one; asking twice is as asking once.
        """
        self._freshen()
        overdue = self._overdue(capacity, now_ns)
        self._find_incumbents()
        preempted = list(self._preempted.values())
        num_held = len(preempted) + sum(entry.request.holds_slot for entry in self._chosen.values())
        num_free = inf if self._num_slots is None else self._num_slots - num_held
        seating = Seating(self._policy, overdue, preempted, num_free, len(self._entries), self._loser)
        seats = seating.seat(list(self._chosen.values()), self._in_order(overdue), capacity)
        self._choose(seats)
        return [entry.request for entry in seats]

    def least_valuable(self, holders: Iterable[S]) -> list[S]:
        """The preempted ``holders`` of a slot, the first to give it up first.

        Each will be computed anew exactly once if it loses its cache, whenever that is, so what a slot is worth is the tokens
        it saves for the time it is kept: the order is by cached tokens per request that is ahead, fewest first. Who has not
        earned its slot comes last.
        """

        def worth(request: S) -> tuple[bool, float, int]:
            key = self._entries[request.request_uid].key
            num_ahead = len(self._chosen) + self._waiting.bisect_left(key)
            return not request.has_earned_slot, num_cached(request) / (1 + num_ahead), -request.sequence_no

        return sorted(holders, key=worth)

    def queue_of(self, request: S) -> int:
        """The number of the policy's queue it was put in when it was last ranked. KeyError when it is not in."""
        return self._entries[request.request_uid].queue

    def queue_lengths(self) -> dict[int, int]:
        """Live requests by the number of the policy's queue; queues without any are left out."""
        return dict(self._queue_lengths)

    def _key(self, request: S) -> Key:
        return -request.priority, self._policy.rank(request), request.sequence_no, request.request_uid

    def _enter_queue(self, entry: Entry[S], queue: int) -> None:
        entry.queue = queue
        self._queue_lengths[queue] += 1

    def _leave_queue(self, entry: Entry[S]) -> None:
        self._queue_lengths[entry.queue] -= 1
        if not self._queue_lengths[entry.queue]:
            del self._queue_lengths[entry.queue]

    def _overdue(self, capacity: int, now_ns: int) -> dict[int, int]:
        """The ``capacity`` longest waits among those over the limit, numbered: no more of them could be chosen now."""
        overdue: dict[int, int] = {}  # by request_uid
        for request_uid, entry in self._entries.items():
            if len(overdue) == capacity or now_ns - entry.wait_since_ns < self._starvation_limit_ns:
                break
            overdue[request_uid] = len(overdue)
        return overdue

    def _freshen(self) -> None:
        """Rank a few of those who wait anew: what they were ranked by may have moved."""
        for _ in range(RERANKED_PER_CHOICE):
            request_uid = next(self._stale, None)
            if request_uid is None:
                self._stale = iter(list(self._entries))
                return
            entry = self._entries.get(request_uid)
            if entry is not None and not entry.is_chosen:
                self.refresh(entry.request)

    def _find_incumbents(self) -> None:
        """Chosen are those who run: not who was only asked for, nor who stopped."""
        for entry in [entry for entry in self._chosen.values() if not entry.request.is_running]:
            self._unchoose(entry)
        for entry in [entry for entry in self._preempted.values() if entry.request.is_running]:
            self._rechoose(entry)

    def _in_order(self, overdue: Mapping[int, int]) -> Iterator[Entry[S]]:
        """Who waits, most urgent first; lazily."""
        yield from (self._entries[request_uid] for request_uid in overdue if request_uid not in self._chosen)
        yield from (self._entries[key[-1]] for key in self._waiting if key[-1] not in overdue)

    def _loser(self, holders: list[Entry[S]]) -> Entry[S]:
        return self._entries[self.least_valuable(entry.request for entry in holders)[0].request_uid]

    def _choose(self, seats: list[Entry[S]]) -> None:
        seated = {entry.key[-1] for entry in seats}
        for entry in [entry for request_uid, entry in self._chosen.items() if request_uid not in seated]:
            self._unchoose(entry)
        for entry in seats:
            if not entry.is_chosen:
                self._rechoose(entry)

    def _rechoose(self, entry: Entry[S]) -> None:
        entry.is_chosen = True
        self._waiting.remove(entry.key)
        self._preempted.pop(entry.key[-1], None)
        self._chosen[entry.key[-1]] = entry

    def _unchoose(self, entry: Entry[S]) -> None:
        del self._chosen[entry.key[-1]]
        entry.is_chosen = False
        self._waiting.add(entry.key)
        if entry.request.holds_slot:
            self._preempted[entry.key[-1]] = entry
