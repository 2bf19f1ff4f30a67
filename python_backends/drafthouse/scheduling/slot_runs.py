"""The best choice of slots when every gap between chosen slots costs something: exact, by dynamic programming."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BestSubsets:
    """For each column and number of members, the best total and who its members are. n items, C columns, at most K members."""

    totals: Floats  # [C, K + 1], -inf where there is none; the first run is free
    left_out: list[Floats]  # n + 1 of [C, K + 1]: best total of the first i items when the last of them is left out
    taken: list[Floats]  # likewise, when it is taken
    neighbours: list[bool]
    run_cost: float

    def members(self, column: int, count: int) -> NDArray[np.int64]:
        """Items of the best subset of ``count`` items, ascending."""
        found: list[int] = []
        index = len(self.neighbours)
        is_taken = self.taken[index][column, count] > self.left_out[index][column, count]
        while index > 0:
            index -= 1
            if is_taken:
                found.append(index)
                count -= 1
                continues = (
                    self.neighbours[index] and self.taken[index][column, count] >= self.left_out[index][column, count] - self.run_cost
                )
                is_taken = continues or self.taken[index][column, count] > self.left_out[index][column, count]
            else:
                is_taken = self.taken[index][column, count] > self.left_out[index][column, count]
        return np.array(found[::-1], np.int64)


def best_subsets(values: Floats, neighbours: NDArray[np.bool_], run_cost: float, max_members: int) -> BestSubsets:
    """Choose items in a row so that the sum of values less the cost of runs is largest, for each number of items.

    Args:
        values: of each item, one problem per column, -inf = may not be chosen, [n, C].
        neighbours: whether the item continues a run of the item before it, if both are chosen, [n].
        run_cost: >= 0, of each run but the first.
        max_members: K.
    """
    shape = len(values) + 1, values.shape[1], max_members + 1
    left_out, taken = list(np.full(shape, -np.inf)), list(np.full(shape, -np.inf))
    left_out[0][:, 0] = run_cost  # pays for the first run
    joins = neighbours.tolist()
    before = np.empty(shape[1:])
    shifted = before[:, :-1]
    for index, (value, joined) in enumerate(zip(values[:, :, None], joins, strict=True)):
        best = np.maximum(left_out[index], taken[index], out=left_out[index + 1])
        np.subtract(best, run_cost, out=before)
        if joined:
            np.maximum(before, taken[index], out=before)
        np.add(shifted, value, out=taken[index + 1][:, 1:])
    totals = np.maximum(left_out[-1], taken[-1])
    totals[:, 0] = -np.inf
    return BestSubsets(totals, left_out, taken, joins, run_cost)
