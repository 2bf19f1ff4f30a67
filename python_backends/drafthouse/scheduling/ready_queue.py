"""The one queue behind every policy: order, who runs next, preemption with hysteresis, ageing, priority classes, who gives up its slot."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import Generic

from sortedcontainers import SortedList

from drafthouse.scheduling.policy import Policy, Rank, S

_Key = tuple[int, Rank, int, int]  # negated priority, rank, sequence_no, request_uid: a total order, the same for equal figures
_Urgency = tuple[int, int, _Key]  # 0 = overdue, else 1; its place among the overdue; key


@dataclass(slots=True)
class _Entry(Generic[S]):
    request: S
    key: _Key
    queue: int
    wait_since_ns: int  # the end of its last turn, or its arrival
    is_chosen: bool = False  # by the last `select`; else its key is in the order of the waiting


class ReadyQueue(Generic[S]):
    """Every live request of a server: waiting, running and preempted.

    A request is ranked when it arrives and after every round it took part in; one that only waits costs nothing. Cost for n
    requests: `add`, `update`, `rerank`, `remove` and each of the ``capacity`` places of `select` compare O(log n) keys.

    **Order.** Overdue requests (below), then higher `priority`, then the policy's rank, then arrival. Requests that run keep
    their places unless a more urgent one may take it: `Policy.may_preempt` decides within a class. An overdue request or one
    of a higher class is held against it as a challenger of the most urgent rank there is: it overcomes any hysteresis, but
    where a policy lets nobody be preempted (`fcfs`) it goes first only when a place becomes free.

    **Ageing.** A request that took part in no round for ``starvation_limit_ns`` is *overdue*: it goes before everybody who is
    not, and the overdue go in the order in which their waits began, whatever their priorities, each until it has had its turn:
    one round. **Bound**: with n live requests, c places and every chosen request taking part in its round, the next turn of a
    request begins no later than starvation_limit_ns + (1 + floor((n - 1) / c)) rounds after its last one (or `add`): the round
    under way when it becomes overdue, then those of the at most n - 1 requests whose waits began earlier, c at a time; a wait
    that begins later never overtakes. So nobody starves and every request finishes. Where a policy refuses to preempt, a turn
    may last until the request has finished: there the bound holds with the longest service instead of a round.
    """

    def __init__(self, policy: Policy, starvation_limit_ns: int) -> None:
        """``starvation_limit_ns`` >= 1."""
        if starvation_limit_ns < 1:
            raise ValueError(f"starvation_limit_ns must be at least 1, not {starvation_limit_ns}")
        self._policy = policy
        self._starvation_limit_ns = starvation_limit_ns
        self._entries: OrderedDict[int, _Entry[S]] = OrderedDict()  # by request_uid, in the order in which their waits began
        self._waiting: SortedList[_Key] = SortedList()  # keys of the entries not chosen
        self._chosen: dict[int, _Entry[S]] = {}
        self._queue_lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: S) -> bool:
        return request.request_uid in self._entries

    def add(self, request: S, now_ns: int) -> None:
        """Take in a request that arrived. ``now_ns`` never decreases from call to call. ValueError when it is in already."""
        if request in self:
            raise ValueError(f"request {request.request_uid} is in the queue already")
        entry = _Entry(request, self._key(request), self._policy.queue_of(request), now_ns)
        self._entries[request.request_uid] = entry
        self._enter_queue(entry, entry.queue)
        self._waiting.add(entry.key)

    def update(self, request: S, now_ns: int) -> None:
        """It took part in a round that ended now: its figures changed, and it has had its turn. KeyError when it is not in."""
        self.rerank(request)
        self._entries[request.request_uid].wait_since_ns = now_ns
        self._entries.move_to_end(request.request_uid)

    def rerank(self, request: S) -> None:
        """Its figures changed without a round: it lost its cache, or its domain became known. KeyError when it is not in."""
        entry = self._entries[request.request_uid]
        key, queue = self._key(request), self._policy.queue_of(request)  # before anything changes: a policy may raise
        if not entry.is_chosen:
            self._waiting.remove(entry.key)
            self._waiting.add(key)
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

    def select(self, capacity: int, now_ns: int) -> list[S]:
        """Who takes part in the next round, most urgent first: min(``capacity``, all there are) requests.

        A request counts as running when the last `select` returned it and its `is_running` is still true; it is preempted when
        this one leaves it out. Called between rounds only, so nothing is preempted inside one.
        """
        overdue = self._overdue(capacity, now_ns)
        self._return_stopped()
        seats = sorted(self._chosen.values(), key=lambda entry: self._urgency(entry, overdue))[:capacity]
        num_incumbents = len(seats)
        challengers = self._challengers(overdue)
        for challenger in challengers:
            if len(seats) >= capacity:
                challengers = chain((challenger,), challengers)
                break
            seats.append(challenger)
        self._contest(seats, num_incumbents, challengers, overdue)
        self._choose(seats)
        return [entry.request for entry in sorted(seats, key=lambda entry: self._urgency(entry, overdue))]

    def least_valuable(self, holders: Iterable[S]) -> list[S]:
        """The preempted ``holders`` of a slot, the first to give it up first.

        Each will be computed anew exactly once if it loses its cache, whenever that is, so what a slot is worth is the tokens
        it saves for the time it is kept: the order is by cached tokens per request that is ahead, fewest first.
        """

        def worth(request: S) -> tuple[float, int]:
            key = self._entries[request.request_uid].key
            num_ahead = len(self._chosen) + self._waiting.bisect_left(key)
            num_cached = max(0, request.prompt_len + request.num_output_tokens - request.num_uncached)
            return num_cached / (1 + num_ahead), -request.sequence_no

        return sorted(holders, key=worth)

    def queue_of(self, request: S) -> int:
        """The number of the policy's queue it was put in when it was last ranked. KeyError when it is not in."""
        return self._entries[request.request_uid].queue

    def queue_lengths(self) -> dict[int, int]:
        """Live requests by the number of the policy's queue; queues without any are left out."""
        return dict(self._queue_lengths)

    def _key(self, request: S) -> _Key:
        return -request.priority, self._policy.rank(request), request.sequence_no, request.request_uid

    def _enter_queue(self, entry: _Entry[S], queue: int) -> None:
        entry.queue = queue
        self._queue_lengths[queue] += 1

    def _leave_queue(self, entry: _Entry[S]) -> None:
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

    def _return_stopped(self) -> None:
        stopped = [entry for entry in self._chosen.values() if not entry.request.is_running]
        for entry in stopped:
            self._unchoose(entry)

    @staticmethod
    def _urgency(entry: _Entry[S], overdue: dict[int, int]) -> _Urgency:
        place = overdue.get(entry.key[-1])
        return (1, 0, entry.key) if place is None else (0, place, entry.key)

    def _challengers(self, overdue: dict[int, int]) -> Iterator[_Entry[S]]:
        """Who waits, most urgent first; lazily, so that only those looked at cost anything."""
        yield from (self._entries[request_uid] for request_uid in overdue if request_uid not in self._chosen)
        yield from (self._entries[key[-1]] for key in self._waiting if key[-1] not in overdue)

    def _contest(self, seats: list[_Entry[S]], num_incumbents: int, challengers: Iterator[_Entry[S]], overdue: dict[int, int]) -> None:
        """Let the challengers take the ``seats`` of incumbents, the least urgent incumbent's first."""
        challenger = next(challengers, None)
        for seat in reversed(range(num_incumbents)):
            if challenger is None or self._urgency(challenger, overdue) > self._urgency(seats[seat], overdue):
                return
            if self._may_displace(challenger, seats[seat], overdue):
                seats[seat] = challenger
                challenger = next(challengers, None)

    def _may_displace(self, challenger: _Entry[S], incumbent: _Entry[S], overdue: dict[int, int]) -> bool:
        rank = challenger.key[1]
        if challenger.key[-1] in overdue or challenger.key[0] < incumbent.key[0]:
            rank = (-inf,) * len(rank)
        return self._policy.may_preempt(rank, incumbent.key[1])

    def _choose(self, seats: list[_Entry[S]]) -> None:
        seated = {entry.key[-1] for entry in seats}
        for entry in [entry for request_uid, entry in self._chosen.items() if request_uid not in seated]:
            self._unchoose(entry)
        for entry in seats:
            if not entry.is_chosen:
                entry.is_chosen = True
                self._waiting.remove(entry.key)
                self._chosen[entry.key[-1]] = entry

    def _unchoose(self, entry: _Entry[S]) -> None:
        del self._chosen[entry.key[-1]]
        entry.is_chosen = False
        self._waiting.add(entry.key)
