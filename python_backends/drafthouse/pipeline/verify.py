"""Which part of a draft tree the target agrees with.

The target samples at every node of the tree; the accepted path follows, from the root, the child that carries the
sampled token, for as long as there is one. What is emitted is therefore exactly what the target would have sampled
alone, whoever drafted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.tree import ROOT, DraftTree


@dataclass(frozen=True, slots=True)
class Walk:
    """The accepted path through one draft tree."""

    accepted: tuple[int, ...]  # indices of the accepted tree nodes, root side first
    bonus: int  # the token the target chose after the last accepted node (or after the root)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Output nodes passed, one per emitted token: token j of the round is ``sampled[outputs[j]]``."""
        return (0, *(1 + node for node in self.accepted))


def walk(tree: DraftTree, sampled: NDArray[np.int32]) -> Walk:
    """Walk ``tree`` along ``sampled``.

    Args:
        tree: n draft nodes, parents before children, siblings with different tokens.
        sampled: [n + 1], the target's token after the last committed token, then after each node.
    """
    chosen: list[int] = sampled.tolist()
    children = {key: node for node, key in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))}
    accepted: list[int] = []
    here = ROOT
    while (child := children.get((here, chosen[here + 1]))) is not None:
        accepted.append(child)
        here = child
    return Walk(tuple(accepted), chosen[here + 1])


def target_tokens(
    nodes: NDArray[np.int32] | NDArray[np.int64], parents: NDArray[np.int32], choices: Mapping[int, int]
) -> NDArray[np.int32]:
    """What the target chose at the place of each node, as far as the walk got there.

    Args:
        nodes: [K], nodes of a tree, as far as they are of interest.
        parents: of that tree, [n].
        choices: the target's choice after ROOT and after each accepted node.

    Returns:
        [K], -1 where the node's parent was not accepted.
    """
    return np.array([choices.get(parent, -1) for parent in parents[nodes].tolist()], np.int32)
