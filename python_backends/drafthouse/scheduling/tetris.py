"""Which draft tokens of a whole batch are worth verifying.

TETRIS (arXiv 2502.15197, section "method"): the verification budget of a batch goes to the draft tokens most likely to be accepted,
whichever request they belong to. `select_by_budget` is that, with a budget that somebody else chose. `select_by_time` chooses the budget,
too: calls are packed, so that their time depends on the rows and the total number of tokens, and the best number of tokens is the one that
gives the most expected tokens per unit of time.

A node's *path probability* is the chance that the walk reaches and accepts it: the product of the chances along its path, so a parent's is
never below its child's. Taking nodes by descending path probability therefore always yields a tree. R = requests, N = nodes of the largest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.tree import ROOT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DraftCandidate:
    """One request's draft, offered for the coming verification."""

    path_probs: Floats  # [n], chance that the walk reaches and accepts the node
    parents: NDArray[np.int32]  # [n], parents before children, `ROOT` = hangs on the last committed token
    num_uncached: int = 1  # committed tokens the row carries anyway, at least the last one


@dataclass(frozen=True, slots=True)
class DraftSelection:
    """What goes into the verification."""

    masks: Sequence[Mask]  # per request [n]; the ancestors of a chosen node are chosen
    expected_tokens: float  # emitted by the round: one per request, and the sum of the chosen path probabilities
    num_tokens: int  # of all rows, committed ones included

    @property
    def num_nodes(self) -> int:
        """Draft tokens over all requests."""
        return sum(int(mask.sum()) for mask in self.masks)


def select_by_time(
    candidates: Sequence[DraftCandidate], cost_ns: Callable[[int, Ints], Floats], overhead_ns: float
) -> tuple[DraftSelection, float]:
    """The batch's best nodes, as many as give the most expected tokens per unit of time.

    For an engine whose time depends on the rows and the total number of tokens N, whichever row they belong to: maximises
    (R + Σ path probabilities of the best n nodes) / (overhead_ns + cost_ns(R, N)) over n, N = committed tokens + n. Ties go to the
    smaller n.

    Args:
        candidates: the batch.
        cost_ns: times of verifying (rows, totals of tokens [n]) -> [n].
        overhead_ns: everything else that a round takes; > 0 unless every cost is.

    Returns:
        The selection, and the rate in expected tokens per ns.
    """
    if not candidates:
        return DraftSelection((), 0.0, 0), 0.0
    batch = _Batch.of(candidates)
    present = np.arange(batch.sorted_probs.shape[1]) < batch.num_nodes[:, None]
    request = np.nonzero(present)[0]
    probs = batch.sorted_probs[present]
    order = np.argsort(-probs, kind="stable")
    expected = len(candidates) + np.concatenate(([0.0], np.cumsum(probs[order])))
    rates = expected / (cost_ns(len(candidates), int(batch.num_uncached.sum()) + np.arange(len(order) + 1)) + overhead_ns)
    best = int(np.argmax(rates))
    return batch.selection(np.bincount(request[order[:best]], minlength=len(candidates))), float(rates[best])


def select_by_budget(candidates: Sequence[DraftCandidate], max_draft_tokens: int) -> DraftSelection:
    """The ``max_draft_tokens`` nodes with the best path probabilities over all requests (the paper's form).

    Ties go to the request that comes first, then to the node that comes first.
    """
    if not candidates:
        return DraftSelection((), 0.0, 0)
    batch = _Batch.of(candidates)
    present = np.arange(batch.sorted_probs.shape[1]) < batch.num_nodes[:, None]
    request = np.nonzero(present)[0]
    best = np.argsort(-batch.sorted_probs[present], kind="stable")[: max(max_draft_tokens, 0)]
    return batch.selection(np.bincount(request[best], minlength=len(candidates)))


def select_evenly(candidates: Sequence[DraftCandidate], num_nodes: int) -> DraftSelection:
    """The counterpart without TETRIS: each request gets its own ``num_nodes`` best nodes."""
    if not candidates:
        return DraftSelection((), 0.0, 0)
    batch = _Batch.of(candidates)
    return batch.selection(np.minimum(batch.num_nodes, max(num_nodes, 0)))


@dataclass(frozen=True, slots=True)
class _Batch:
    """All requests' nodes by descending path probability, padded to the largest request."""

    num_nodes: Ints  # [R]
    num_uncached: Ints  # [R]
    rank: Ints  # [R, N], place of each node in its request's order
    sorted_probs: Floats  # [R, N], 0 = padding
    cumulative: Floats  # [R, N + 1], sum of the best 0, 1, … nodes

    @staticmethod
    def of(candidates: Sequence[DraftCandidate]) -> "_Batch":
        num_nodes = np.array([len(candidate.path_probs) for candidate in candidates], np.int64)
        shape = len(candidates), int(num_nodes.max())
        present = np.arange(shape[1]) < num_nodes[:, None]
        probs, parents = np.full(shape, -1.0), np.full(shape, ROOT)
        probs[present] = np.concatenate([candidate.path_probs for candidate in candidates])
        parents[present] = np.concatenate([candidate.parents for candidate in candidates])
        _bound_by_parents(probs, parents)
        order = np.argsort(-probs, axis=1, kind="stable")  # stable: of equals the parent comes first
        rank = np.empty(shape, np.int64)
        np.put_along_axis(rank, order, np.arange(shape[1])[None], axis=1)
        best_first = np.maximum(np.take_along_axis(probs, order, axis=1), 0.0)
        cumulative = np.zeros((shape[0], shape[1] + 1))
        np.cumsum(best_first, axis=1, out=cumulative[:, 1:])
        num_uncached = np.array([candidate.num_uncached for candidate in candidates], np.int64)
        return _Batch(num_nodes, num_uncached, rank, best_first, cumulative)

    def gain(self, counts: Ints) -> Floats:
        """Expected accepted draft tokens when request r verifies its ``counts[r]`` best nodes, [R]."""
        gains: Floats = self.cumulative[np.arange(len(self.num_nodes)), counts]
        return gains

    def selection(self, counts: Ints) -> DraftSelection:
        """The ``counts`` [R] best nodes of each request."""
        chosen = self.rank < counts[:, None]
        masks = [row[:size] for row, size in zip(chosen, self.num_nodes.tolist(), strict=True)]
        num_tokens = int((self.num_uncached + counts).sum())
        return DraftSelection(masks, len(counts) + float(self.gain(counts).sum()), num_tokens)


def _bound_by_parents(probs: Floats, parents: Ints) -> None:
    """Lower, in place, path probabilities that exceed their parent's: those were estimated apart from each other. Both [R, N]."""
    rows = np.arange(len(probs))
    of_parent = np.where(parents == ROOT, 1.0, probs[rows[:, None], parents])
    if (probs <= of_parent).all():
        return
    for node in range(probs.shape[1]):
        parent = parents[:, node]
        np.minimum(probs[:, node], np.where(parent == ROOT, 1.0, probs[rows, parent]), out=probs[:, node])
