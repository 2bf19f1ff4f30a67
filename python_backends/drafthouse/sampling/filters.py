"""Top-k and top-p (nucleus sampling: Holtzman et al., arXiv 1904.09751, section 3.1) over many nodes at once.

A node's survivors depend on its own logits only, never on the nodes filtered beside it: every sum runs along one row, in an order that
does not change with the shape of the batch.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# A sort key is row (12 bits), score from high to low (32 bits), token id (20 bits).
MAX_ROWS = 1 << 12
MAX_VOCAB = 1 << 20
_ID_BITS = np.uint64(20)
_ROW_SHIFT = np.uint64(52)


def surviving_tokens(scaled: FloatArray, top_k: IntArray, top_p: DoubleArray) -> tuple[IntArray, IntArray]:
    """Rows and token ids that pass both filters, each row from the best token down.

    ``scaled [F, V]`` is logits / temperature, -inf where banned; ``top_k [F]`` (0 = all) applies first; ``top_p [F]`` keeps the smallest
    set whose mass, after top-k, is at least that. Equal scores are ranked by token id. F and V are at most MAX_ROWS and MAX_VOCAB.
    """
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    total = weights.sum(axis=1, dtype=np.float64)
    rows, ids = _sorted_pairs(scaled, _shortlist(scaled, weights, total, top_k, top_p))
    counts = np.bincount(rows, minlength=len(scaled))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.zeros((len(scaled), int(counts.max())), np.float64)
    padded[rows, rank] = np.where((top_k[rows] > 0) & (rank >= top_k[rows]), 0.0, weights[rows, ids])
    mass = np.cumsum(padded, axis=1)
    total = np.where(top_k > 0, mass[:, -1], total)
    limit = np.where(top_p < 1.0, top_p * total, np.inf)
    keep = (mass - padded)[rows, rank] < limit[rows]
    keep &= (top_k[rows] == 0) | (rank < top_k[rows])
    return rows[keep], ids[keep]


def _shortlist(scaled: FloatArray, weights: FloatArray, total: DoubleArray, top_k: IntArray, top_p: DoubleArray) -> BoolArray:
    """Few tokens per row ``[F, V]`` that are sure to hold the survivors, because sorting a whole vocabulary is slow."""
    vocab_size = scaled.shape[1]
    # All tokens below (1 - p) / V together weigh less than 1 - p, so none of them is needed; halved for rounding.
    floor = 0.5 * total * (1.0 - top_p) / vocab_size
    shortlist: BoolArray = weights >= floor.astype(np.float32)[:, None]
    for k in np.unique(top_k[top_k > 0]):
        chosen = np.flatnonzero(top_k == k)
        split = vocab_size - min(int(k), vocab_size)
        least = np.partition(scaled[chosen], split, axis=1)[:, split]
        shortlist[chosen] = scaled[chosen] >= least[:, None]
    shortlist &= scaled > -np.inf
    return shortlist


def _sorted_pairs(scaled: FloatArray, shortlist: BoolArray) -> tuple[IntArray, IntArray]:
    """Rows and token ids of the shortlist by row, then score from high to low, then token id: one sort of packed keys."""
    rows, ids = np.nonzero(shortlist)
    bits = (scaled[rows, ids] + np.float32(0)).view(np.int32)  # adding 0 turns -0.0 into 0.0
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    descending = (0x7FFFFFFF - ascending.astype(np.int64)).astype(np.uint64)
    keys = (rows.astype(np.uint64) << _ROW_SHIFT) | (descending << _ID_BITS) | ids.astype(np.uint64)
    keys.sort()
    return (keys >> _ROW_SHIFT).astype(np.int64), (keys & np.uint64(MAX_VOCAB - 1)).astype(np.int64)
