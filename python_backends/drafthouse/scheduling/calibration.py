"""How likely a drafter's proposal is the target's choice, learned online.

A drafter's own probability is not that chance: outside its field a drafter is confidently wrong. CoSine (arXiv 2503.10325, confidence-based
token fusion) compares raw probabilities; TETRIS (arXiv 2502.15197) needs chances that mean the same for every drafter. The model is ours:
one logistic regression per drafter on its own probability p and on the request's routing score s for it,

    logit(chance) = a + b · logit(p) + c · logit(s),   b > 0, so that the order of one drafter's own proposals is kept,

with a Gaussian prior around a = 0, b = 1, c = 0 (the raw probability), and forgetting. D = number of drafters, N = observations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drafthouse.core.chance import LEAST_PROB, LEAST_SCORE, NEUTRAL_SCORE

Floats = NDArray[np.float64]

NUM_COEFFICIENTS = 3  # a, b, c
_PRIOR_MEAN = (0.0, 1.0, 0.0)
_PRIOR_PRECISION = (1.0, 4.0, 4.0)  # standard deviations 1, 0.5, 0.5: a few dozen observations outweigh them
_LEAST_SLOPE = 0.05
_MAX_STEPS = 4
_LONGEST_STEP = 1.0
_SHORT_STEP = 1e-3


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: predictions by bins of equal width over [0, 1], against what happened."""

    count: NDArray[np.int64]  # [bins]
    mean_predicted: Floats  # [bins], NaN where the bin is empty
    observed: Floats  # [bins], share of hits, NaN where the bin is empty

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of predicted from observed, weighted by count; 0 = perfect; NaN without observations."""
        total = int(self.count.sum())
        seen = self.count > 0
        return float((self.count[seen] * np.abs(self.mean_predicted[seen] - self.observed[seen])).sum() / total) if total else float("nan")

    def as_dict(self) -> Mapping[str, object]:
        """For JSON; null where a bin is empty."""
        columns = {"mean_predicted": self.mean_predicted, "observed": self.observed}
        listed = {name: [None if np.isnan(value) else float(value) for value in column] for name, column in columns.items()}
        error = self.expected_calibration_error
        return {"count": self.count.tolist(), **listed, "expected_calibration_error": None if np.isnan(error) else error}


class _Bins:
    """Running counts of a reliability diagram."""

    def __init__(self, num_bins: int) -> None:
        self._sums = np.zeros((3, num_bins))  # count, predicted, hits

    def add(self, predicted: Floats, hit: Floats) -> None:
        num_bins = self._sums.shape[1]
        index = np.minimum((predicted * num_bins).astype(np.int64), num_bins - 1)
        for row, values in enumerate((np.ones_like(predicted), predicted, hit)):
            self._sums[row] += np.bincount(index, values, num_bins)

    def diagram(self) -> Reliability:
        count, predicted, hits = self._sums
        divisor = np.where(count > 0, count, np.nan)
        return Reliability(count.astype(np.int64), predicted / divisor, hits / divisor)


class Calibration:
    """Chances of acceptance per drafter. Not thread-safe; `chance` does not change it.

    The posterior of each drafter is kept as a Gaussian (mean and precision); a batch of observations moves the mean to the maximum of
    posterior × likelihood by a few Newton steps and adds the curvature there to the precision (Laplace). Before that, the precision
    fades towards the prior's by a factor for each of the drafter's observations in the batch, so that old ones are forgotten.
    """

    def __init__(self, num_drafters: int, memory: int = 2000, num_bins: int = 10) -> None:
        """Args: memory = observations per drafter after which an old one counts 1/e; num_bins of the reliability diagrams."""
        self._prior = np.diag(_PRIOR_PRECISION)
        self._mean = np.tile(np.array(_PRIOR_MEAN), (num_drafters, 1))  # [D, 3]
        self._precision = np.tile(self._prior, (num_drafters, 1, 1))  # [D, 3, 3]
        self._fade = float(np.exp(-1.0 / memory))
        self._calibrated, self._raw = _Bins(num_bins), _Bins(num_bins)
        self.num_observations = 0

    @classmethod
    def from_table(cls, table: ArrayLike) -> Self:
        """A calibration that starts from `table`; it trusts it as much as it would trust the prior.

        Raises ValueError unless the table is finite, [D, 3].
        """
        mean = np.asarray(table, np.float64)
        if mean.ndim != 2 or mean.shape[1] != NUM_COEFFICIENTS or not np.isfinite(mean).all():
            raise ValueError(f"a calibration table is finite and [num_drafters, {NUM_COEFFICIENTS}], not {mean.shape}")
        calibration = cls(len(mean))
        calibration._mean[:] = mean
        calibration._mean[:, 1] = np.maximum(mean[:, 1], _LEAST_SLOPE)
        return calibration

    def restart(self, table: ArrayLike) -> None:
        """Go on from `table` as `from_table` does, with the same reliability diagrams."""
        fresh = Calibration.from_table(table)
        self._mean, self._precision = fresh._mean, fresh._precision

    def table(self) -> NDArray[np.float32]:
        """Coefficients (a, b, c) per drafter, [D, 3]: all that `chance` needs."""
        return self._mean.astype(np.float32)

    def chance(self, drafter: ArrayLike, prob: ArrayLike, score: ArrayLike) -> NDArray[np.float32]:
        """Chance that the target chooses the proposal, given that the walk reaches its position.

        Args:
            drafter: index, [N]; prob: the drafter's own probability of its proposal, [N]; score: the request's routing score of
                this drafter in [0, 1], NaN = not known yet, [N]. Shapes broadcast.

        Returns:
            In (0, 1), of the broadcast shape.
        """
        mean = self._mean[np.asarray(drafter, np.intp)]
        z = mean[..., 0] + mean[..., 1] * _logit_prob(prob) + mean[..., 2] * _logit_score(score)
        return _sigmoid(z).astype(np.float32)

    def observe(self, drafter: ArrayLike, prob: ArrayLike, score: ArrayLike, hit: ArrayLike) -> None:
        """Learn from verified positions that the walk reached: ``hit`` = the target chose this proposal. All [N]."""
        index = np.asarray(drafter, np.intp)
        if not len(index):
            return
        raw, hits = np.asarray(prob, np.float64), np.asarray(hit, np.float64)
        features = np.stack([np.ones(len(index)), _logit_prob(raw), _logit_score(score)], axis=1)  # [N, 3]
        self._calibrated.add(_sigmoid((features * self._mean[index]).sum(axis=1)), hits)  # before learning from them
        self._raw.add(np.clip(raw, 0.0, 1.0), hits)
        self.num_observations += len(index)
        self._learn(index, features, hits)

    def _learn(self, index: NDArray[np.intp], features: Floats, hits: Floats) -> None:
        count = np.bincount(index, minlength=len(self._mean))
        kept = (self._fade**count)[:, None, None]
        before = kept * self._precision + (1 - kept) * self._prior
        member = (index == np.arange(len(self._mean))[:, None]).astype(np.float64)  # [D, N]
        outer = (features[:, :, None] * features[:, None, :]).reshape(len(index), -1)  # [N, 9]
        mean = self._mean
        for _ in range(_MAX_STEPS):
            predicted = _sigmoid((features * mean[index]).sum(axis=1))
            slope = member @ ((hits - predicted)[:, None] * features) + np.einsum("dij,dj->di", before, self._mean - mean)
            precision = before + (member @ ((predicted * (1 - predicted))[:, None] * outer)).reshape(before.shape)
            step = np.linalg.solve(precision, slope[:, :, None])[:, :, 0]
            length = np.abs(step).max(axis=1, keepdims=True)
            mean = _with_positive_slope(mean + step * np.minimum(1.0, _LONGEST_STEP / np.maximum(length, _LONGEST_STEP)), precision)
            if length.max() < _SHORT_STEP:
                break
        self._mean, self._precision = mean, precision

    def reliability(self) -> Reliability:
        """Chances as they were predicted before each observation was learned from, against what happened."""
        return self._calibrated.diagram()

    def raw_reliability(self) -> Reliability:
        """The same observations with the drafters' own probabilities: what calibration is worth."""
        return self._raw.diagram()


def _with_positive_slope(mean: Floats, precision: Floats) -> Floats:
    """Coefficients with b at least `_LEAST_SLOPE`; where b is raised, a and c move to their best values given b. [D, 3]"""
    lift = np.maximum(_LEAST_SLOPE - mean[:, 1], 0.0)
    if not lift.any():
        return mean
    others = np.ix_(range(len(mean)), (0, 2), (0, 2))
    shift = -np.linalg.solve(precision[others], precision[:, (0, 2), 1][:, :, None])[:, :, 0] * lift[:, None]
    lifted: Floats = mean + np.stack([shift[:, 0], lift, shift[:, 1]], axis=1)
    return lifted


def _logit_prob(prob: ArrayLike) -> Floats:
    return _logit(np.asarray(prob, np.float64), LEAST_PROB)


def _logit_score(score: ArrayLike) -> Floats:
    values = np.asarray(score, np.float64)
    return _logit(np.where(np.isnan(values), NEUTRAL_SCORE, values), LEAST_SCORE)


def _logit(values: Floats, least: float) -> Floats:
    inside = np.clip(values, least, 1.0 - least)
    logit: Floats = np.log(inside / (1.0 - inside))
    return logit


def _sigmoid(z: Floats) -> Floats:
    chance: Floats = 1.0 / (1.0 + np.exp(-z))
    return chance
