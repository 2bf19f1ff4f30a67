"""Drafting ahead: while a draft is being verified, its continuation on the outcome that is expected.

The continuation hangs on the draft itself, as one tree. When the verdict is known, the tree is walked along what was committed; what lies
below the place where that ends is the next draft, and where it ends nowhere the work is thrown away. Nothing that was drafted ahead is
ever committed unseen: it is verified like any draft.
"""

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.pipeline.state import Draft


def reach_of(tree: DraftTree) -> NDArray[np.float64]:
    """The chance that the walk reaches and accepts each node, [n]: the product of the chances on its path."""
    reach: list[float] = []
    for parent, chance in zip(tree.parents.tolist(), tree.confidence.tolist(), strict=True):
        reach.append(chance if parent == ROOT else chance * reach[parent])
    return np.array(reach, np.float64)


def expected_leaf(tree: DraftTree, chosen: NDArray[np.int64]) -> tuple[int, float]:
    """From where to draft on while the nodes ``chosen`` are verified, and the chance that the walk ends where that is of use.

    A leaf of the tree is of use when the target's own token at the end of the accepted path leads towards it: behind a chosen leaf
    every such token is still open; a node that is not verified is reached when the target chooses it as that token.
    """
    size = len(tree)
    if not size:
        return ROOT, 1.0
    reach = reach_of(tree)
    verified = np.zeros(size, np.bool_)
    verified[chosen] = True
    entry = reach.copy()  # of a node that is not verified: the chance to reach the first such node on its path
    has_child = np.zeros(size, np.bool_)
    for node, parent in enumerate(tree.parents.tolist()):
        if parent != ROOT:
            has_child[parent] = True
            if not verified[node] and not verified[parent]:
                entry[node] = entry[parent]
    leaves = np.flatnonzero(~has_child)
    best = int(leaves[np.argmax(entry[leaves])])  # of equals the first: on the trunk if one is
    return best, float(entry[best])


def depth_of(tree: DraftTree, node: int) -> int:
    """Number of nodes from the root's child to ``node``; 0 for ROOT."""
    depth = 0
    while node != ROOT:
        node, depth = int(tree.parents[node]), depth + 1
    return depth


def continued(draft: Draft, committed: list[int]) -> Draft | None:
    """What is left of ``draft`` after these tokens, as the next round's draft; None when nothing is."""
    here = draft.tree.node_after(committed)
    if here is None:
        return None
    below = draft.tree.below(here)
    if not len(below):
        return None
    place = {node: index for index, node in enumerate(below.tolist())}
    columns = [column for column, node in enumerate(draft.trunk.tolist()) if node in place]
    trunk = np.array([place[int(draft.trunk[column])] for column in columns], np.int32)
    return Draft(draft.tree.taking(below), trunk, draft.proposals[:, columns], draft.proposal_probs[:, columns])
