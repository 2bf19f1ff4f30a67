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
_ID_MASK = np.uint64(MAX_VOCAB - 1)
# Share of the mass that a token must have to be looked at: a list of the tokens above it holds most nuclei at the first try.
_SHARES = (1e-3, 1e-4)
_ROUNDING = 1e-9


def surviving_tokens(
    scaled: FloatArray, weights: FloatArray, total: DoubleArray, top_k: int, top_p: float, is_listed: BoolArray
) -> tuple[IntArray, IntArray]:
    """Rows and token ids that pass both filters, by row, each row from its best token down.

    ``scaled [F, V]`` is logits / temperature, -inf where banned; ``weights [F, V]`` its exponential up to a factor per row, with row sums
    ``total [F]``. ``top_k`` (0 = all) applies first; ``top_p`` then keeps the smallest set that has at least that share of what top-k
    left. Equal scores are ranked by token id. F and V are at most MAX_ROWS and MAX_VOCAB. ``is_listed [F, V]`` is work memory.
    """
    rows, ids = _sorted(scaled, _highest(scaled, top_k, is_listed) if top_k > 0 else _heavy(weights, total, top_p, is_listed))
    counts = np.bincount(rows, minlength=len(scaled))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = rank < (top_k or len(rows))
    if top_p < 1.0:
        if not keep.all():  # ties at the k-th place
            rows, ids, rank = rows[keep], ids[keep], rank[keep]
        mass = np.zeros((len(scaled), int(rank.max()) + 1), np.float64)
        mass[rows, rank] = weights[rows, ids]
        before = np.cumsum(mass, axis=1)
        limit = top_p * (before[:, -1] if top_k > 0 else total)
        before -= mass
        keep = before[rows, rank] < limit[rows]
    return rows[keep], ids[keep]


def _highest(scaled: FloatArray, top_k: int, is_listed: BoolArray) -> IntArray:
    """Flat indices of the top_k best tokens of each row, with all ties at the last place."""
    split = scaled.shape[1] - min(top_k, scaled.shape[1])
    least = np.partition(scaled, split, axis=1)[:, split, None]
    least = np.maximum(least, np.finfo(np.float32).min)  # a banned token is never among the best
    return np.flatnonzero(np.greater_equal(scaled, least, out=is_listed))


def _heavy(weights: FloatArray, total: DoubleArray, top_p: float, is_listed: BoolArray) -> IntArray:
    """Flat indices of few tokens per row that are sure to hold its nucleus, because sorting a whole vocabulary is slow."""
    vocab_size = weights.shape[1]
    # The tokens below a share of (1 - p) / V together have less than 1 - p, so none of them is needed; halved for rounding.
    least_share = 0.5 * (1.0 - top_p) / vocab_size
    share = np.full(len(weights), _SHARES[0])
    for next_share in (*_SHARES[1:], least_share):
        flat = np.flatnonzero(np.greater(weights, (share * total).astype(np.float32)[:, None], out=is_listed))
        mass = np.bincount(flat // vocab_size, weights=weights.reshape(-1)[flat], minlength=len(weights))
        too_few = mass <= (top_p + _ROUNDING) * total
        if not too_few.any():
            return flat
        share[too_few] = next_share
    return np.flatnonzero(np.greater(weights, (share * total).astype(np.float32)[:, None], out=is_listed))


def _sorted(scaled: FloatArray, flat: IntArray) -> tuple[IntArray, IntArray]:
    """Rows and token ids of flat indices, by row, then score from high to low, then token id: one sort of packed keys."""
    rows, ids = np.divmod(flat, scaled.shape[1])
    bits = (scaled.reshape(-1)[flat] + np.float32(0)).view(np.int32)  # adding 0 turns -0.0 into 0.0
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    descending = (0x7FFFFFFF - ascending.astype(np.int64)).view(np.uint64)
    keys = (rows.view(np.uint64) << _ROW_SHIFT) | (descending << _ID_BITS) | ids.view(np.uint64)
    keys.sort()
    return (keys >> _ROW_SHIFT).view(np.int64), (keys & _ID_MASK).view(np.int64)
