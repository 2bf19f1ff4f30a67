"""Rows that the engine extends with its own samples: which leaves still grow, what their next tokens see, where they lie.

A grown node lies behind everything before it in the row's cache, in order of creation; it sees the committed tokens and its ancestors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.batch import IntArray, Task, TreeView
from drafthouse.engine.contract import GrowthStop


@dataclass(slots=True)
class _Leaf:
    node: int  # output node whose sample comes next: 0 = the last committed token, then draft nodes, then grown ones
    chance: float  # of being accepted, with everything above it down from where the caller began to count
    place: int  # of its sample among all that the step call chose


class Growth:
    """One row that grows. A ``Part`` of the network call that feeds its latest tokens back."""

    def __init__(self, task: Task, first_place: int) -> None:
        """``first_place``: of the samples at the row's output nodes among all that the step call chose."""
        row = task.row
        leaves = [len(row.tokens) - 1] if row.leaves is None else row.leaves.tolist()
        chances = [1.0] * len(leaves) if row.leaf_chances is None else row.leaf_chances.tolist()
        self.task = task
        self.slot, self.end = task.slot, task.end
        self.parents: list[int] = []  # of grown nodes, as output nodes
        self.token_ids: list[int] = []  # to be fed back
        self.start = 0
        nodes = [leaf - row.num_committed + 1 for leaf in leaves]
        self._leaves = [_Leaf(node, chance, first_place + node) for node, chance in zip(nodes, chances, strict=True)]
        self._depth = [0, *(range(1, task.num_draft + 1) if task.shape is None else task.shape.depth.tolist())]  # by output node
        is_chain = task.shape is None and nodes == [task.num_draft]
        self._sees = None if is_chain else self._draft_view()

    @property
    def num_new(self) -> int:
        return len(self._leaves)

    @property
    def last_start(self) -> int:
        return self.end - self.num_new

    @property
    def view(self) -> TreeView | None:
        if self._sees is None:
            return None
        num_nodes = len(self._depth) - 1
        depth = np.array(self._depth[num_nodes + 1 - self.num_new :])
        return TreeView(0, self.task.base - 1 + depth, self.task.base, self._sees[num_nodes - self.num_new : num_nodes, :num_nodes])

    @property
    def tokens(self) -> NDArray[np.int32]:
        """``[num_new]``, to be fed back."""
        return np.array(self.token_ids, np.int32)

    @property
    def nodes(self) -> list[int]:
        """The output nodes at which it wants the next samples."""
        return [leaf.node for leaf in self._leaves]

    def sample_positions(self) -> IntArray:
        """``[num_new]``, absolute positions of the next samples."""
        return np.array([self.task.base + self._depth[leaf.node] for leaf in self._leaves])

    def expect(self, first_place: int) -> None:
        """Where the samples at its ``nodes`` stand now."""
        for place, leaf in enumerate(self._leaves, first_place):
            leaf.place = place

    def feed(self, sampled: Sequence[int], probs: Sequence[float], stop: GrowthStop | None) -> bool:
        """Takes the samples as new nodes below their leaves, to be computed next; returns whether a leaf stopped growing."""
        before = len(self._leaves)
        if stop is not None:
            self._leaves = [leaf for leaf in self._leaves if self._goes_on(leaf, sampled[leaf.place], probs[leaf.place], stop)]
        self.start = self.task.base + len(self._depth) - 1
        self.token_ids = [sampled[leaf.place] for leaf in self._leaves]
        for leaf in self._leaves:
            self._add_below(leaf)
        return len(self._leaves) < before

    def keep(self) -> None:
        """What was fed last has been computed: the cache holds it as drafts."""
        for token, parent in zip(self.token_ids, self.parents[len(self.parents) - self.num_new :], strict=True):
            self.task.entry.extend_draft(token, parent - 1)

    def _goes_on(self, leaf: _Leaf, token: int, prob: float, stop: GrowthStop) -> bool:
        leaf.chance *= stop.chance(prob)
        return token not in self.task.row.sampling.end_ids and leaf.chance >= stop.min_chance

    def _add_below(self, leaf: _Leaf) -> None:
        """Makes a new node, which becomes the leaf."""
        node = len(self._depth)
        self.parents.append(leaf.node)
        self._depth.append(self._depth[leaf.node] + 1)
        if self._sees is not None:
            if leaf.node:
                self._sees[node - 1] = self._sees[leaf.node - 1]
            self._sees[node - 1, node - 1] = True
        leaf.node = node

    def _draft_view(self) -> NDArray[np.bool_]:
        """``[m, m]``: which of all nodes that there may be each one sees; rows of those that are still to grow are empty."""
        task = self.task
        sees = np.zeros((task.num_draft + task.num_extensions,) * 2, np.bool_)
        drafted = np.tri(task.num_draft, dtype=np.bool_) if task.shape is None else task.shape.sees
        sees[: task.num_draft, : task.num_draft] = drafted
        return sees
