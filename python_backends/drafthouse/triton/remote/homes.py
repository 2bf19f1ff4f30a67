"""Which node holds which request: a request's cache lives on one node, so its calls go there for as long as that node answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

CAPACITY = 4096


class Host(Protocol):
    """What is asked of a node here."""

    is_up: bool
    is_listed: bool
    slots_free: int


HostT = TypeVar("HostT", bound=Host)


class Homes(Generic[HostT]):
    """Places requests on nodes. A caller that died never says that a request is over, so the oldest are forgotten at `CAPACITY`."""

    def __init__(self) -> None:
        self._visited: dict[int, list[HostT]] = {}  # by request: every node that may hold it, the current one last

    def place(self, request_uid: int, nodes: Sequence[HostT]) -> HostT | None:
        """The node for this request's next call; None when no node is up.

        A new request, or one whose node was lost, goes to the node with free slots that holds the fewest.
        """
        visited = self._visited.get(request_uid, [])
        if visited and visited[-1].is_up:
            return visited[-1]
        choice = [node for node in nodes if node.is_up and node.is_listed]
        if not choice:
            return None
        load = self._load()
        home = min(choice, key=lambda node: (node.slots_free == 0, load[id(node)]))
        self._visited[request_uid] = [*(node for node in visited if node is not home), home]
        if len(self._visited) > CAPACITY:
            del self._visited[next(iter(self._visited))]
        return home

    def refused(self, request_uid: int) -> None:
        """The current node has no slot for this request: it is placed anew next time."""
        if visited := self._visited.get(request_uid):
            visited.pop()

    def leave(self, request_uid: int) -> Sequence[HostT]:
        """The request is over: every node that may hold it, none when nothing is known about it."""
        return self._visited.pop(request_uid, [])

    def is_used(self, node: HostT) -> bool:
        """Does a request live on this node?"""
        return self._load()[id(node)] > 0

    def _load(self) -> Counter[int]:
        return Counter(id(visited[-1]) for visited in self._visited.values() if visited)
