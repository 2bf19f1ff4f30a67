"""How far predictions were from what happened."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, nan, sqrt


@dataclass(frozen=True, slots=True)
class ErrorFigures:
    """Predictions against the truth, over requests. All figures but the first are NaN before the first request.

    Attributes:
        num_requests: how many.
        mean_absolute: mean of |predicted − true|, in the unit of what was predicted.
        relative: Σ|predicted − true| / Σ true: long requests count for what they cost. We read the paper's "overall execution-time
            estimation error" (LAPS-SD, arXiv 2505.17074: 6.84 %) as this.
        mean_relative: mean of |predicted − true| / true: every request counts the same, so short ones rule it.
        bias: Σ(predicted − true) / Σ true; 0 for an unbiased prediction of a mean, however wide the truth is spread.
        log_rms: root mean square of ln(predicted / true): the sigma of a log-normal error, comparable to the simulator's.
    """

    num_requests: int
    mean_absolute: float
    relative: float
    mean_relative: float
    bias: float
    log_rms: float

    def as_dict(self) -> Mapping[str, float | None]:
        """For JSON; null where nothing was seen."""
        if not self.num_requests:
            return {name: 0 if name == "num_requests" else None for name in self.__slots__}
        return {name: getattr(self, name) for name in self.__slots__}


class ErrorMeter:
    """Sums for `ErrorFigures`."""

    __slots__ = ("_absolute", "_log_square", "_num", "_predicted", "_relative", "_true")

    def __init__(self) -> None:
        self._num = 0
        self._absolute = self._relative = self._log_square = self._predicted = self._true = 0.0

    def add(self, predicted: float, true: float) -> None:
        """One request; both > 0."""
        off = abs(predicted - true)
        self._num += 1
        self._absolute += off
        self._relative += off / true
        self._log_square += log(predicted / true) ** 2
        self._predicted += predicted
        self._true += true

    def figures(self) -> ErrorFigures:
        """Over everything added so far."""
        num, true = self._num, self._true
        if not num:
            return ErrorFigures(0, nan, nan, nan, nan, nan)
        off = self._absolute
        return ErrorFigures(num, off / num, off / true, self._relative / num, (self._predicted - true) / true, sqrt(self._log_square / num))
