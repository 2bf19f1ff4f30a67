"""From a point prediction to what is expected: Bayes, with the lengths seen so far as the prior.

A prediction P that is off by a factor is worth more when one knows which lengths there are: where nearly all outputs have 10 tokens, a
predicted 30 is more likely 20 than 45. With the life table of all outputs as the prior and P's scatter around a given length,

    p(L | P, L > t) ~ p(L) · p(P | L),   ln P = a + b · ln L + normal noise of deviation σ,

E[min(L, max_tokens) − t | P, L > t] is exact up to the bins. (a, b, σ) = (0, 1, σ) where P is the length times an error of known size; else
they are measured. That is the regression of predictions on lengths, not the other way round, for two reasons: it is what Bayes asks
for, and outputs that were cut can be left out of it without harm, as choosing by L does not change p(P | L). A predictor that always
says the same gets b = 0, and the prior is all there is.
"""

from array import array
from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from drafthouse.scheduling.estimates.lengths import PRIOR_MEAN_TOKENS
from drafthouse.scheduling.estimates.survival import EDGES, WIDTHS, LifeTable, SurvivalCurve, prior_hazards
from drafthouse.scheduling.policy import Schedulable

_LOW = np.array(EDGES[:-1], np.float64)
_WIDTH = np.array(WIDTHS)
_LOG_LENGTH = np.log(_LOW + (_WIDTH + 1.0) / 2.0)  # of the middle of a bin
_ALL_WRONG = 1e-4  # likelihood, relative to its peak, of a prediction however far off: the prior rules where a prediction was refuted
_LEAST_SIGMA = 0.05  # half a bin
_SCATTER_STRENGTH = 4.0  # requests' worth of belief that a prediction says nothing


@dataclass(frozen=True, slots=True)
class PosteriorOptions:
    """How `PointPosterior` learns."""

    prior_mean: float = PRIOR_MEAN_TOKENS  # tokens, before any data
    prior_strength: float = 4.0  # requests' worth of belief in it, in every bin: the first few outputs are not the only lengths there are
    prior_sigma: float = 1.0  # of ln P around what is usual for a length
    memory: float = 4000.0  # requests after which an old one counts 1/e
    freshness: float = 64.0  # the prior is rebuilt when 1 in this many of what it rests on is new

    def __post_init__(self) -> None:
        """ValueError where a value makes no sense."""
        if min(self.prior_mean, self.prior_strength, self.prior_sigma, self.freshness) <= 0 or self.memory <= 1:
            raise ValueError(f"posterior options out of range: {self}")


class PredictionScatter:
    """ln P = intercept + slope · ln L + noise of deviation sigma: given, or measured over natural ends, with forgetting."""

    __slots__ = ("_fade", "_is_known", "_num", "_sums", "_variance", "intercept", "sigma", "slope")

    def __init__(self, sigma: float | None, options: PosteriorOptions) -> None:
        self._is_known = sigma is not None
        self._fade = 1.0 - 1.0 / options.memory
        self._num, self._variance = 0.0, options.prior_sigma**2
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # x, y, xx, xy, yy; x = ln L, y = ln P
        self.intercept = 0.0
        self.slope = 0.0 if sigma is None else 1.0  # to be measured: predictions say nothing until they have been seen to
        self.sigma = options.prior_sigma if sigma is None else sigma

    def observe(self, log_length: float, log_predicted: float) -> None:
        """Learn from an output that came to its natural end; nothing when the scatter is known."""
        if self._is_known:
            return
        fade, (x, y, xx, xy, yy) = self._fade, self._sums
        num = self._num = fade * self._num + 1.0
        x, y = fade * x + log_length, fade * y + log_predicted
        xx, xy = fade * xx + log_length**2, fade * xy + log_length * log_predicted
        yy = fade * yy + log_predicted**2
        self._sums = (x, y, xx, xy, yy)
        spread, shared, scatter = xx - x * x / num, xy - x * y / num, yy - y * y / num
        self.slope = max(0.0, shared / (spread + _SCATTER_STRENGTH))
        self.intercept = (y - self.slope * x) / num
        left = max(0.0, scatter - 2.0 * self.slope * shared + self.slope**2 * spread)
        self.sigma = max(_LEAST_SIGMA, sqrt((left + _SCATTER_STRENGTH * self._variance) / (num + _SCATTER_STRENGTH)))


class PointPosterior:
    """See the module. One curve per open request, made at its first prediction (some ten µs) and asked after every round (one µs)."""

    def __init__(self, sigma: float | None = None, options: PosteriorOptions | None = None) -> None:
        """Args: sigma: of ln(P / L), when it is known; at least 0.05, half a bin. None = measured.

        Raises:
            ValueError: sigma is below that.
        """
        self._options = options = PosteriorOptions() if options is None else options
        if sigma is not None and not sigma >= _LEAST_SIGMA:
            raise ValueError(f"sigma is at least {_LEAST_SIGMA}, not {sigma}: below, the prediction itself is the better answer")
        self._scatter = PredictionScatter(sigma, options)
        self._table = LifeTable(options.memory)
        self._num_new = 0
        self._open: dict[int, tuple[float, SurvivalCurve]] = {}  # log_predicted, posterior
        self._refresh()

    def __len__(self) -> int:
        """Open requests a curve is kept for."""
        return len(self._open)

    def curve(self, request_uid: int, log_predicted: float) -> SurvivalCurve:
        """What is known of the length of a request, given its point prediction.

        The curve is kept until `observe`; it is made anew only when the prediction has moved by more than a quarter of its error.
        """
        opened = self._open.get(request_uid)
        if opened is not None and abs(opened[0] - log_predicted) <= 0.25 * self._scatter.sigma:
            return opened[1]
        curve = self._posterior(log_predicted)
        self._open[request_uid] = (log_predicted, curve)
        return curve

    def observe(self, request: Schedulable, finished: bool) -> None:
        """Learn from a request that ended, and drop its curve; see `LengthPredictor.observe`."""
        opened = self._open.pop(request.request_uid, None)
        length = request.num_output_tokens
        if length < 1 and not finished:
            return
        length = max(length, 1)
        if finished and opened is not None:
            self._scatter.observe(log(length), opened[0])
        self._table.add(length, finished)
        self._num_new += 1
        if self._num_new * self._options.freshness > self._table.num_requests:
            self._refresh()

    def _refresh(self) -> None:
        options, table = self._options, self._table
        prior = prior_hazards(table.mean_tokens(options.prior_mean, options.prior_strength))
        self._prior = np.array(SurvivalCurve.from_hazards(table.hazards(prior, options.prior_strength)).masses())
        self._num_new = 0

    def _posterior(self, log_predicted: float) -> SurvivalCurve:
        scatter = self._scatter
        off = (_LOG_LENGTH * scatter.slope + (scatter.intercept - log_predicted)) / scatter.sigma
        masses = self._prior * (np.exp(-0.5 * off * off) + _ALL_WRONG)
        alive = np.zeros(len(masses) + 1)
        alive[:-1] = masses[::-1].cumsum()[::-1]
        slope = masses / -_WIDTH
        area = np.zeros(len(masses) + 1)
        area[:-1] = (_WIDTH * (alive[:-1] + slope * ((_WIDTH - 1.0) / 2.0)))[::-1].cumsum()[::-1]
        return SurvivalCurve(*(array("d", values.tobytes()) for values in (alive, slope, area)))  # quick to index, 1 KB each
