"""What a stage (drafting, verifying) takes by its shape, learned online.

CoSine (arXiv 2503.10325, section "batch scheduler") models both stages' times as functions of batch size, longest request and draft
tokens. Ours is a table, because times are not monotone (measured on a 91 M model at 8 rows: 31 ms for 3 tokens, 26 ms for 4): a shape
that was seen answers with its own figure, and a regression speaks only for shapes that were not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Cell = tuple[int, int]  # batch bucket, token bucket
Floats = NDArray[np.float64]

_EXACT = 16  # sizes up to this have a bucket of their own; beyond, four buckets per doubling
_WINDOW = 7  # up to three outliers among them, however large, do not show
_SMOOTHING = 0.15
_LARGEST_SURPRISE = 0.6  # a median further off than this share of the cell's figure moves it no faster
_TRUSTED_AFTER = 3  # observations; a younger cell counts less for others
_REFIT_EVERY = 64  # observations
_RIDGE = 0.05
_SWEEPS = 40
_NEAR = 0.05  # squared distance (in doublings, natural log) at which a seen neighbour counts half


@dataclass(frozen=True, slots=True)
class StagePrior:
    """What is believed before anything was seen: ``call + row · B + token · T + row_token · B · T``, all > 0, in ns.

    Its scale is corrected by the first observation, its shape by the following ones. The defaults are near a 91 M model on two cores.
    """

    call_ns: float = 12e6
    row_ns: float = 0.1e6
    token_ns: float = 0.5e6
    row_token_ns: float = 0.3e6

    def __post_init__(self) -> None:
        if min(self.coefficients) <= 0:
            raise ValueError(f"every coefficient of a prior is positive, not {self.coefficients}")

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """In the order of `_features`."""
        return self.call_ns, self.row_ns, self.token_ns, self.row_token_ns


def bucket(size: int) -> int:
    """The smallest bucket that holds ``size`` >= 0: itself up to 16, then 20, 24, 28, 32, 40, 48, …"""
    if size <= _EXACT:
        return size
    step = 1 << (size - 1).bit_length() - 3
    return -(-size // step) * step


@dataclass(slots=True)
class _CellTimes:
    recent_ns: list[float] = field(default_factory=list)
    smoothed_ns: float = 0.0
    count: int = 0

    def add(self, duration_ns: float) -> None:
        self.count += 1
        self.recent_ns.append(duration_ns)
        if len(self.recent_ns) > _WINDOW:
            del self.recent_ns[0]
        # The lower median: of the first two, the one that did not pay for allocations.
        median = sorted(self.recent_ns)[(len(self.recent_ns) - 1) // 2]
        if self.count <= _WINDOW:
            self.smoothed_ns = median
        else:
            most = _LARGEST_SURPRISE * self.smoothed_ns
            self.smoothed_ns += _SMOOTHING * min(max(median - self.smoothed_ns, -most), most)


class StageCosts:
    """Time of a stage by (rows, tokens per row). Not thread-safe.

    A cell is the exponential average of the running median of its last seven times, so that outliers do not show. Shapes without a cell are
    predicted by a regression on (1, B, T, B·T) with coefficients >= 0, fitted to relative errors and drawn towards the prior's shape,
    times the deviation of the seen cells nearby. The regression is renewed when a cell appears, and every 64 observations.
    """

    def __init__(self, prior: StagePrior | None = None) -> None:
        self._prior = np.array((prior or StagePrior()).coefficients)
        self._cells: dict[Cell, _CellTimes] = {}
        self._guesses: dict[Cell, float] = {}
        self._fitted: _Fit | None = None
        self._since_fit = 0
        self.num_observations = 0

    @classmethod
    def from_table(cls, table: Iterable[Sequence[float]], prior: StagePrior | None = None) -> Self:
        """Costs that start from a recorded `table`. Raises ValueError for times that are not positive and finite."""
        costs = cls(prior)
        for batch, tokens, duration_ns, count in table:
            if not (math.isfinite(duration_ns) and duration_ns > 0 and count >= 1):
                raise ValueError(f"cell {batch} x {tokens} of a cost table has time {duration_ns} ns of {count} observations")
            cell = costs._cells.setdefault((bucket(int(batch)), bucket(int(tokens))), _CellTimes())
            cell.recent_ns, cell.smoothed_ns, cell.count = [float(duration_ns)] * min(int(count), _WINDOW), float(duration_ns), int(count)
            costs.num_observations += int(count)
        return costs

    def table(self) -> list[list[Any]]:
        """[batch bucket, token bucket, smoothed time in ns, observations] of every seen cell, sorted; can be written as JSON."""
        return [[*shape, cell.smoothed_ns, cell.count] for shape, cell in sorted(self._cells.items())]

    def num_seen(self, batch: int, tokens: int) -> int:
        """Observations of this shape."""
        cell = self._cells.get((bucket(batch), bucket(tokens)))
        return cell.count if cell else 0

    def observe(self, batch: int, tokens: int, duration_ns: float) -> None:
        """Learn that ``batch`` rows of ``tokens`` tokens took ``duration_ns``. Times that are not positive are no times: ignored."""
        if duration_ns <= 0:
            return
        shape = bucket(batch), bucket(tokens)
        cell = self._cells.get(shape)
        if cell is None:
            cell = self._cells[shape] = _CellTimes()
            self._fitted = None
        cell.add(float(duration_ns))
        self.num_observations += 1
        self._since_fit += 1
        if self._since_fit >= _REFIT_EVERY:
            self._fitted = None

    def predict_ns(self, batch: int, tokens: int) -> float:
        """Expected time of this shape in ns."""
        shape = bucket(batch), bucket(tokens)
        cell = self._cells.get(shape)
        if cell is not None:
            return cell.smoothed_ns
        if self._fitted is None:
            self._fitted = _Fit(self._cells, self._prior)
            self._guesses.clear()
            self._since_fit = 0
        guess = self._guesses.get(shape)
        if guess is None:
            guess = self._guesses[shape] = self._fitted.predict(*shape)
        return guess


class _Fit:
    """The regression over the seen cells, with what they deviate from it."""

    def __init__(self, cells: Mapping[Cell, _CellTimes], prior: Floats) -> None:
        self._coefficients = prior
        self._log_sizes, self._log_ratios, self._trust = np.empty((0, 2)), np.empty(0), np.empty(0)
        if not cells:
            return
        seen, times = np.array(list(cells), np.float64), np.array([cell.smoothed_ns for cell in cells.values()])
        self._trust = np.minimum(np.array([cell.count for cell in cells.values()]) / _TRUSTED_AFTER, 1.0)
        parts = _features(seen[:, 0], seen[:, 1]) * prior  # [cells, 4]
        scale = float(np.exp(np.average(np.log(times / parts.sum(axis=1)), weights=self._trust)))
        self._coefficients = prior * scale * _non_negative(parts * scale / times[:, None], self._trust)
        self._log_sizes = _log_sizes(seen)
        self._log_ratios = np.log(times / (_features(seen[:, 0], seen[:, 1]) @ self._coefficients))

    def predict(self, batch: int, tokens: int) -> float:
        size = np.array([[batch, tokens]], np.float64)
        mean_ns = float((_features(size[:, 0], size[:, 1]) @ self._coefficients)[0])
        distance = ((self._log_sizes - _log_sizes(size)) ** 2).sum(axis=1)
        nearness = _NEAR / (_NEAR + distance)
        weights = nearness**2 * self._trust
        # Beside the cells stands the regression itself: far from all of them it speaks alone.
        return mean_ns * math.exp(
            float((weights * self._log_ratios).sum()) / (float(weights.sum()) + (1 - float(nearness.max(initial=0.0))))
        )


def _features(batch: Floats, tokens: Floats) -> Floats:
    return np.stack([np.ones_like(batch), batch, tokens, batch * tokens], axis=1)


def _log_sizes(sizes: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(sizes, 0.5))
    return logs


def _non_negative(parts: Floats, weights: Floats) -> Floats:
    """x >= 0 that minimises weighted |parts · x - 1|² + ridge · |x - 1|², by coordinate descent (four unknowns). [4]"""
    weighted = parts * weights[:, None]
    gram = (parts.T @ weighted + _RIDGE * np.eye(parts.shape[1])).tolist()
    wanted = (weighted.sum(axis=0) + _RIDGE).tolist()
    x = [1.0] * len(wanted)
    for _ in range(_SWEEPS):
        for j, row in enumerate(gram):
            rest = sum(a * b for a, b in zip(row, x, strict=True)) - row[j] * x[j]
            x[j] = max(0.0, (wanted[j] - rest) / row[j])
    # All of it zero cannot be: then nothing would take no time. The ridge keeps at least one coefficient up, but not by much.
    return np.maximum(np.array(x), 1e-6)
