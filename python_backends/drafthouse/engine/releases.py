"""Requests that an engine may forget: they ride on the next call and stay noted until one has carried them."""

from collections.abc import Mapping
from itertools import count


class Releases:
    """What one engine has not confirmed to have forgotten, oldest first.

    A release that was lost with a failed call is repeated with the next one, so that no slot leaks. A request may come back under its
    uid (one that was preempted) and end again while a call with its first release is still under way: so a call settles what it
    carried, not what was added since. Beyond `CAPACITY` the oldest are dropped, and the engine's own lease takes their slots back.
    """

    CAPACITY = 16_384

    def __init__(self) -> None:
        self._numbers = count()
        self._owed: dict[int, int] = {}  # uid → which release of it this is

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, *request_uids: int) -> None:
        """Remember to release these."""
        for uid in request_uids:
            self._owed.pop(uid, None)
            self._owed[uid] = next(self._numbers)
        while len(self._owed) > self.CAPACITY:
            del self._owed[next(iter(self._owed))]

    def owed(self) -> Mapping[int, int]:
        """What the next call should carry: its keys, in order. To be handed to `settle` when that call was answered."""
        return dict(self._owed)

    def settle(self, carried: Mapping[int, int]) -> None:
        """A call has carried these."""
        for uid in [uid for uid, number in carried.items() if self._owed.get(uid) == number]:
            del self._owed[uid]
