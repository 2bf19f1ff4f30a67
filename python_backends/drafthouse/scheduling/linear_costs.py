"""What a stage takes as a linear function of its shape, learned online.

With packed calls a stage's time hardly depends on how tokens are spread over rows, and it grows with their number: a few coefficients say
more than a table whose cells are seen now and then, and their slope says what one more token costs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MEMORY = 0.99  # weight that an observation keeps per further one: the last hundred decide
_PRIOR_SPREAD = 0.7  # standard deviation of a coefficient before anything was seen, relative to it
_NOISE = 0.1  # of one observation, relative
_OUTLIER = 3.0  # an observation counts as at most this many times what was expected: a hiccup is not a price


class LinearCosts:
    """time_ns = coefficients · features, none of them below 0: recursive least squares with forgetting, in relative errors."""

    def __init__(self, prior_ns: Sequence[float]) -> None:
        """Args: prior_ns: coefficients to begin with, all > 0. The first observation corrects their scale."""
        self._coefficients = np.array(prior_ns, np.float64)
        self._covariance = np.diag((_PRIOR_SPREAD * self._coefficients) ** 2)
        self.num_observations = 0

    @property
    def coefficients(self) -> Floats:
        """ns per unit of each feature, >= 0."""
        return np.maximum(self._coefficients, 0.0)

    def predict_ns(self, features: Sequence[float] | Floats) -> NDArray[np.float64]:
        """Expected time; features [..., n] -> [...]."""
        times: Floats = np.asarray(features, np.float64) @ self.coefficients
        return times

    def observe(self, features: Sequence[float], duration_ns: float) -> None:
        """Learn from one stage."""
        x = np.asarray(features, np.float64)
        expected = float(x @ self._coefficients)
        if not self.num_observations and expected > 0:
            scale = duration_ns / expected
            self._coefficients *= scale
            self._covariance *= scale * scale
            expected = duration_ns
        self.num_observations += 1
        seen = min(duration_ns, _OUTLIER * expected) if expected > 0 else duration_ns
        spread = self._covariance @ x
        noise = (_NOISE * max(seen, 1.0)) ** 2
        gain = spread / (noise + float(x @ spread))
        self._coefficients = self._coefficients + gain * (seen - expected)
        covariance = self._covariance - np.outer(gain, spread)
        # Forgetting, but never beyond what was not known at first: directions that are never seen must not run away.
        grown = covariance / _MEMORY
        self._covariance = grown if float(np.trace(grown)) < _trace_limit(self._coefficients) else covariance


def _trace_limit(coefficients: Floats) -> float:
    return float(((_PRIOR_SPREAD * coefficients) ** 2).sum())
