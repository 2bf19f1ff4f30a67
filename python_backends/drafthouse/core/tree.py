"""A tree of draft tokens for one request."""

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
    (identical continuations are merged), so a token sequence names at most one path. The *trunk* is the chain that
    was fed back to the drafters and comes first: node i of the trunk has parent i - 1.
    """

    tokens: NDArray[np.int32] = field(default_factory=_empty_i32)  # [num_nodes]
    parents: NDArray[np.int32] = field(default_factory=_empty_i32)  # [num_nodes]
    confidence: NDArray[np.float32] = field(default_factory=_empty_f32)  # [num_nodes], estimated chance of acceptance
    source: NDArray[np.int32] = field(default_factory=_empty_i32)  # [num_nodes], index of the drafter that proposed it

    def __len__(self) -> int:
        return len(self.tokens)
