"""One choice of `ReadyQueue`: who gets the places of the next round, and who a slot that somebody else has to give up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import Generic

from drafthouse.scheduling.policy import Policy, Rank, S, Schedulable

Key = tuple[int, Rank, int, int]  # negated priority, rank, sequence_no, request_uid: a total order, the same for equal figures
Urgency = tuple[int, int, Key]  # 0 = overdue, else 1; its place among the overdue; key


@dataclass(slots=True)
class Entry(Generic[S]):
    """What the queue knows of a request."""

    request: S
    key: Key
    queue: int  # the policy's, when it was last ranked
    wait_since_ns: int  # the end of its last turn, or its arrival
    is_chosen: bool = False  # by the last `select`; else its key is in the order of the waiting


def num_cached(request: Schedulable) -> int:
    """Tokens that are computed anew when the request loses its slot."""
    return max(0, request.prompt_len + request.num_output_tokens - request.num_uncached)


class Seating(Generic[S]):
    """See `ReadyQueue` for the rules. One object serves one choice."""

    def __init__(
        self,
        policy: Policy,
        overdue: Mapping[int, int],
        preempted: Sequence[Entry[S]],
        num_free: float,
        num_live: int,
        least_valuable: Callable[[list[Entry[S]]], Entry[S]],
    ) -> None:
        """Args: overdue: their places by request_uid; preempted: who holds a slot and does not run; num_free: slots nobody holds."""
        self._policy = policy
        self._overdue = overdue
        self._preempted = preempted
        self._num_free = num_free
        self._num_live = num_live
        self._least_valuable = least_valuable
        self._has_room = True  # somebody without a slot may still get one
        self._spoken_for = set[int]()  # request_uids of those preempted who take a place, or give up their slot
        self._displaced: list[Entry[S]] = []  # incumbents whose places were taken

    def urgency(self, entry: Entry[S]) -> Urgency:
        """Lower goes first."""
        place = self._overdue.get(entry.key[-1])
        return (1, 0, entry.key) if place is None else (0, place, entry.key)

    def seat(self, incumbents: Sequence[Entry[S]], waiting: Iterator[Entry[S]], capacity: int) -> list[Entry[S]]:
        """Fill ``capacity`` places: incumbents, most urgent first, keep theirs unless one who waits (``waiting``: likewise) may take it."""
        seats = sorted(incumbents, key=self.urgency)[:capacity]
        num_incumbents = len(seats)
        challengers = self._challengers(waiting)
        while len(seats) < capacity and (challenger := next(challengers, None)) is not None:
            if self._gets_slot(challenger, None):
                seats.append(challenger)
        self._contest(seats, num_incumbents, challengers)
        return sorted(seats, key=self.urgency)

    def _challengers(self, waiting: Iterator[Entry[S]]) -> Iterator[Entry[S]]:
        """Lazily, so that only those looked at cost anything. Once nobody gets a slot any more, only who holds one."""
        seen = set[int]()
        for entry in waiting:
            seen.add(entry.key[-1])
            if self._has_room or entry.request.holds_slot:
                yield entry
            if not self._has_room:
                break
        holders = [entry for entry in self._preempted if entry.key[-1] not in seen | self._spoken_for]
        yield from sorted(holders, key=self.urgency)

    def _contest(self, seats: list[Entry[S]], num_incumbents: int, challengers: Iterator[Entry[S]]) -> None:
        """Let the challengers take the ``seats`` of incumbents, the least urgent incumbent's first."""
        challenger = next(challengers, None)
        for seat in reversed(range(num_incumbents)):
            while challenger is not None:
                if self.urgency(challenger) > self.urgency(seats[seat]):
                    return
                if not self._may_displace(challenger, seats[seat]):
                    break
                gets_slot = self._gets_slot(challenger, seats[seat])
                if gets_slot:
                    self._displaced.append(seats[seat])
                    seats[seat] = challenger
                challenger = next(challengers, None)
                if gets_slot:
                    break

    def _may_displace(self, challenger: Entry[S], incumbent: Entry[S]) -> bool:
        rank = challenger.key[1]
        if challenger.key[-1] in self._overdue or challenger.key[0] < incumbent.key[0]:
            rank = (-inf,) * len(rank)
        return self._policy.may_preempt(rank, incumbent.key[1])

    def _gets_slot(self, challenger: Entry[S], incumbent: Entry[S] | None) -> bool:
        """Whether it has a slot, there is one, or somebody gives one up: ``incumbent``, whose place it takes, or one who is preempted."""
        if challenger.request.holds_slot:
            self._spoken_for.add(challenger.key[-1])
            return True
        if self._num_free > 0:
            self._num_free -= 1
            return True
        own = () if incumbent is None else (incumbent,)
        holders = [entry for entry in chain(self._preempted, self._displaced, own) if entry.key[-1] not in self._spoken_for]
        earned = [entry for entry in holders if entry.request.has_earned_slot]
        if earned:
            loser = self._least_valuable(earned)
            if self._is_worth(challenger, incumbent or min(holders, key=self.urgency), loser):
                self._spoken_for.add(loser.key[-1])
                return True
        # Who comes after is less urgent, and gets none either. Not so after an overdue one: they go by their waits, whatever their classes.
        self._has_room = challenger.key[-1] in self._overdue
        return False

    def _is_worth(self, challenger: Entry[S], other: Entry[S], loser: Entry[S]) -> bool:
        if challenger.key[0] < loser.key[0]:
            return True
        return self._policy.is_worth_evicting(challenger.request, other.request, num_cached(loser.request), self._num_live)
