"""Confidence-based token fusion (CoSine, arXiv 2503.10325, token fusion): how proposals are compared, and the tree they are merged into.

A drafter outside its field is confidently wrong, so raw probabilities are never compared. A proposal's *chance* is its probability after
calibration (`DraftPlan.calibration`); its *vote* is chance × routing weight, and the best vote continues the trunk.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from drafthouse.core.tree import ROOT, DraftTree


class Proposal(NamedTuple):
    """One token that one drafter proposes at one position."""

    token: int
    chance: float  # estimated chance that the target chooses it, given that it chose everything before it
    source: int  # index of the drafter
    prob: float = 0.0  # the drafter's own probability
    rank: int = 0  # 0 = the drafter's own choice, 1 = its best other candidate, …
    weight: float = 1.0  # routing weight of the drafter


def _rank(proposal: Proposal) -> tuple[float, int, int]:
    return (-proposal.chance * proposal.weight, proposal.source, proposal.token)


def most_confident(proposals: Iterable[Proposal]) -> Proposal:
    """The proposal with the best vote; ties go to the lower drafter index, then to the lower token id.

    Raises ValueError when there is no proposal.
    """
    return min(proposals, key=_rank)


class DraftTrie:
    """The draft of one request while it grows. Identical continuations are one node, so nothing is verified twice (graph-structured
    speculation, arXiv 2407.16207); it stands for the drafter that gives it the best chance."""

    def __init__(self, base: DraftTree) -> None:
        """Starts as ``base``, whose nodes keep their indices."""
        columns = (base.tokens, base.confidence, base.source, base.probs, base.ranks)
        self._nodes = [Proposal(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]
        self._parents: list[int] = base.parents.tolist()
        self._reach: list[float] = []  # chance that the walk gets to the node and takes it
        for parent, node in zip(self._parents, self._nodes, strict=True):
            self._reach.append(self.reach(parent) * node.chance)
        self._child = {(parent, node.token): index for index, (parent, node) in enumerate(zip(self._parents, self._nodes, strict=True))}
        self._num_base = len(self._nodes)

    def add(self, parent: int, proposal: Proposal) -> int:
        """The node of this proposal after ``parent``, new or merged with the one that is there."""
        key = (parent, proposal.token)
        node = self._child.get(key)
        if node is None:
            node = self._child[key] = len(self._nodes)
            self._nodes.append(proposal)
            self._parents.append(parent)
            self._reach.append(self.reach(parent) * proposal.chance)
        elif proposal.chance > self._nodes[node].chance:
            self._nodes[node] = proposal
            self._reach[node] = self.reach(parent) * proposal.chance
        return node

    def reach(self, node: int) -> float:
        """Estimated chance that ``node`` is accepted; 1 for ROOT."""
        return 1.0 if node == ROOT else self._reach[node]

    def path(self, node: int) -> list[int]:
        """Tokens from the root's first child down to ``node``."""
        tokens: list[int] = []
        while node != ROOT:
            tokens.append(self._nodes[node].token)
            node = self._parents[node]
        return tokens[::-1]

    def tree(self, trunk: Sequence[int], max_nodes: int) -> tuple[DraftTree, list[int]]:
        """The tree of the base and at most ``max_nodes`` new nodes, and where ``trunk`` lies in it.

        The trunk stays; of the others those with the best chance to be reached. A branch never outlives its parent, because nothing
        is reached more surely than its parent, and of equals the older one goes first.
        """
        on_trunk = set(trunk)
        others = [node for node in range(self._num_base, len(self._nodes)) if node not in on_trunk]
        others.sort(key=lambda node: -self._bounded_reach(node))
        kept = [*range(self._num_base), *trunk, *sorted(others[: max(max_nodes - len(trunk), 0)])]
        place = {node: index for index, node in enumerate(kept)}
        nodes = [self._nodes[node] for node in kept]
        tree = DraftTree(
            tokens=np.array([node.token for node in nodes], np.int32),
            parents=np.array([ROOT if self._parents[node] == ROOT else place[self._parents[node]] for node in kept], np.int32),
            confidence=np.array([node.chance for node in nodes], np.float32),
            source=np.array([node.source for node in nodes], np.int32),
            probs=np.array([node.prob for node in nodes], np.float32),
            ranks=np.array([node.rank for node in nodes], np.int32),
        )
        return tree, [place[node] for node in trunk]

    def _bounded_reach(self, node: int) -> float:
        """A node that was merged may have risen above its descendants' estimates, never below its own parent's."""
        reach = self._reach[node]
        while node != ROOT:
            reach = min(reach, self._reach[node])
            node = self._parents[node]
        return reach
