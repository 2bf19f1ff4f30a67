"""What verifying so many tokens takes, and what one more would: a smooth curve through a table of times.

CoSine (arXiv 2503.10325, section "batch scheduler") models a stage's time by its shape. Ours is a table by rows and tokens, smoothed
online, and a curve through it: up to a dozen tokens a call waits for the weights, beyond it computes, and past the caches' size it slows
down again. What matters for a decision is the slope nearby, so the curve is a local linear regression (Cleveland 1979) over the cells,
drawn towards a line through all calls where few cells are near.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.linear_costs import LinearCosts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KNEE_TOKENS = 12  # up to about here a call waits for the weights, and further tokens are nearly free
_PRIOR_NS = (14e6, 0.1e6, 0.3e6, 0.6e6)  # per call, row, token, token beyond the knee
_WIDTH = 0.3  # of the neighbourhood, natural logarithm of tokens
_ROW_WIDTH = 0.7  # natural logarithm of rows
_LINE_WEIGHT = 0.3  # what the line through all calls counts for, in cells
_SMOOTHING = 0.1  # weight of the newest call in its cell
_CELLS_PER_DOUBLING = 6
_POINTS = 24
_OUTLIER = 3.0


@dataclass(slots=True)
class _Cell:
    tokens: float
    ns: float


class TokenCosts:
    """Time of a call by its rows and the tokens of all of them together. Not thread-safe."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._line = LinearCosts(_PRIOR_NS)
        self._cells: dict[tuple[int, int], _Cell] = {}  # by rows and bucket of tokens

    def observe(self, rows: int, tokens: int, duration_ns: float) -> None:
        """Learn from one call."""
        key = rows, round(_CELLS_PER_DOUBLING * np.log2(tokens))
        if self._cells:
            duration_ns = min(duration_ns, _OUTLIER * float(self.predict_ns(rows, np.array([tokens]))[0]))
        self._line.observe(_features(rows, np.array([tokens]))[0], duration_ns)
        cell = self._cells.setdefault(key, _Cell(tokens, duration_ns))
        cell.tokens += _SMOOTHING * (tokens - cell.tokens)
        cell.ns += _SMOOTHING * (duration_ns - cell.ns)

    def table(self) -> list[tuple[int, float, float]]:
        """Rows, mean tokens and mean time in ns of every cell."""
        return [(rows, cell.tokens, cell.ns) for (rows, _), cell in sorted(self._cells.items())]

    def predict_ns(self, rows: int, tokens: Ints) -> Floats:
        """Expected times of calls with these totals of tokens, ascending, [n] -> [n]."""
        if len(tokens) > _POINTS:
            grid = np.unique(np.linspace(tokens[0], tokens[-1], _POINTS).astype(np.int64))
            return np.interp(tokens, grid, self._curve(rows, grid)[0])
        return self._curve(rows, tokens)[0]

    def slope_ns(self, rows: int, tokens: int) -> float:
        """What one more token costs a call of so many; at least 0."""
        return float(max(self._curve(rows, np.array([tokens]))[1][0], 0.0))

    def _curve(self, rows: int, tokens: Ints) -> tuple[Floats, Floats]:
        """Times and slopes at ``tokens`` [n]."""
        line = self._line.predict_ns(_features(rows, tokens))
        _, per_row, per_token, beyond = self._line.coefficients.tolist()
        slope = per_token + beyond * (tokens > KNEE_TOKENS)
        if not self._cells:
            return line, slope
        seen_rows, seen_tokens, times = np.array([(key[0], cell.tokens, cell.ns) for key, cell in self._cells.items()]).T
        times = times + per_row * (rows - seen_rows)
        weight = np.exp(
            -((np.log(seen_tokens / tokens[:, None]) / _WIDTH) ** 2) - (np.log(seen_rows / rows) / _ROW_WIDTH) ** 2
        )  # [n, cells]
        offset = seen_tokens - tokens[:, None]
        # The line joins in as two calls, a fifth to either side.
        side = 0.2 * tokens
        mass = weight.sum(axis=1) + _LINE_WEIGHT
        mean_x = (weight * offset).sum(axis=1) / mass
        mean_y = ((weight * times).sum(axis=1) + _LINE_WEIGHT * line) / mass
        spread = (weight * offset**2).sum(axis=1) + _LINE_WEIGHT * side**2 - mass * mean_x**2
        joint = (weight * offset * times).sum(axis=1) + _LINE_WEIGHT * side**2 * slope - mass * mean_x * mean_y
        local = joint / np.maximum(spread, 1e-9)
        return np.maximum(mean_y - local * mean_x, 1.0), local


def _features(rows: int, tokens: Ints) -> Floats:
    ones = np.ones(len(tokens))
    return np.stack([ones, rows * ones, tokens, np.maximum(tokens - KNEE_TOKENS, 0)], axis=1)
