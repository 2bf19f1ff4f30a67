"""A tree of draft tokens for one request. Columns that are not given are zeros."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROOT = -1  # parent of a node that hangs on the last committed token


def _empty_i32() -> NDArray[np.int32]:
    return np.empty(0, np.int32)


def _empty_f32() -> NDArray[np.float32]:
    return np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Draft tokens proposed for one request in one round, parents before children.

    ``parents[i]`` is the index of node i's parent in this tree, or ``ROOT``. Siblings carry different tokens
    (identical continuations are merged), so a token sequence names at most one path. The *trunk* is the path that
    was fed back to the drafters and comes first: node i of the trunk has parent i - 1.
    """

    tokens: NDArray[np.int32] = field(default_factory=_empty_i32)  # [num_nodes]
    parents: NDArray[np.int32] = field(default_factory=_empty_i32)  # [num_nodes]
    confidence: NDArray[np.float32] = field(default_factory=_empty_f32)  # [num_nodes], chance of acceptance if the parent is accepted
    source: NDArray[np.int32] = field(default_factory=_empty_i32)  # [num_nodes], index of the drafter that proposed it
    probs: NDArray[np.float32] = field(default_factory=_empty_f32)  # [num_nodes], that drafter's own probability, not calibrated
    ranks: NDArray[np.int32] = field(default_factory=_empty_i32)  # [num_nodes], 0 = that drafter's first choice, 1 = its second, …

    def __post_init__(self) -> None:
        for name, dtype in (("confidence", np.float32), ("source", np.int32), ("probs", np.float32), ("ranks", np.int32)):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.zeros(len(self.tokens), dtype))

    def __len__(self) -> int:
        return len(self.tokens)

    def taking(self, nodes: NDArray[np.int64]) -> "DraftTree":
        """The tree of ``nodes`` [n] in that order; a taken node's parent is taken before it, or it hangs on the root."""
        place = np.full(len(self) + 1, ROOT, np.int32)  # the last entry is what ROOT, -1, finds
        place[nodes] = np.arange(len(nodes), dtype=np.int32)
        parents = place[self.parents[nodes]]
        return DraftTree(self.tokens[nodes], parents, self.confidence[nodes], self.source[nodes], self.probs[nodes], self.ranks[nodes])

    def node_after(self, tokens: Sequence[int]) -> int | None:
        """The node at the end of the path that ``tokens`` spell from the root (ROOT for none); None when there is no such path."""
        child = {key: node for node, key in enumerate(zip(self.parents.tolist(), self.tokens.tolist(), strict=True))}
        here = ROOT
        for token in tokens:
            node = child.get((here, token))
            if node is None:
                return None
            here = node
        return here

    def below(self, node: int) -> NDArray[np.int64]:
        """The descendants of ``node`` in this tree's order, itself not among them; of ROOT that is every node."""
        inside = np.zeros(len(self) + 1, np.bool_)
        inside[node] = True  # ROOT, -1, marks the last entry
        for index, parent in enumerate(self.parents.tolist()):
            inside[index] |= inside[parent]
        inside[node] = False
        return np.flatnonzero(inside[: len(self)])
