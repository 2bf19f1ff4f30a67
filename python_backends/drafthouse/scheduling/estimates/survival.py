"""How likely an output is to go on, from outputs that ended and outputs that were cut: a life table.

The product-limit estimator of Kaplan and Meier (J. Am. Stat. Assoc. 53, 1958) on bins that are one token wide at first and grow
geometrically, with a Beta prior on the hazard of every bin; so the weight of the prior is felt where few requests are left at risk and
nowhere else.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

_NUM_EXACT = 32  # bins of one token
_GROWTH = 1.1  # from one bin's width to the next
LONGEST = 1 << 17  # tokens; longer outputs count as this long


def _edges() -> tuple[int, ...]:
    edges = list(range(_NUM_EXACT + 1))
    while edges[-1] < LONGEST:
        edges.append(min(max(edges[-1] + 1, round(edges[-1] * _GROWTH)), LONGEST))
    return tuple(edges)


EDGES = _edges()  # bin i holds the lengths EDGES[i] < L <= EDGES[i + 1]
NUM_BINS = len(EDGES) - 1
WIDTHS = tuple(float(high - low) for low, high in pairwise(EDGES))
_RESCALE_AT = 1e12


def prior_hazards(mean: float) -> list[float]:
    """Hazards of P(L > t) = (mean / (t + mean))², for which E[L − t | L > t] = t + mean: the longer it has run, the longer it will.

    Nothing is known about a request that outlived all others but that; [NUM_BINS].
    """
    return [1.0 - ((low + mean) / (high + mean)) ** 2 for low, high in pairwise(EDGES)]


class LifeTable:
    """Counts of lengths by bin; an old one counts 1/e after ``memory`` further ones."""

    __slots__ = ("_censored", "_ended", "_exposed", "_growth", "_last", "_num_ended", "_num_tokens", "_partial", "_weight")

    def __init__(self, memory: float) -> None:
        self._ended, self._censored, self._partial = [0.0] * NUM_BINS, [0.0] * NUM_BINS, [0.0] * NUM_BINS
        self._growth = 1.0 + 1.0 / memory  # of the weight of one observation: the same as if all older ones faded
        self._weight = 1.0
        self._num_ended = self._exposed = self._num_tokens = 0.0
        self._last = -1  # highest bin with a count

    def add(self, length: int, finished: bool) -> None:
        """Count an output of ``length`` >= 1 tokens that ended there, or that is only known to be longer."""
        length = min(length, LONGEST)
        weight = self._weight = self._weight * self._growth
        bin_no = bisect_right(EDGES, length - 1) - 1
        if finished:
            self._ended[bin_no] += weight
            self._num_ended += weight
        else:
            self._censored[bin_no] += weight
            self._partial[bin_no] += weight * (length - EDGES[bin_no]) / WIDTHS[bin_no]  # part of the bin that it is known to have lived
        self._exposed += weight
        self._num_tokens += weight * length
        self._last = max(self._last, bin_no)
        if weight > _RESCALE_AT:
            self._rescale()

    def _rescale(self) -> None:
        factor = 1.0 / self._weight
        for counts in (self._ended, self._censored, self._partial):
            counts[:] = [count * factor for count in counts]
        self._num_ended, self._exposed, self._num_tokens = self._num_ended * factor, self._exposed * factor, self._num_tokens * factor
        self._weight = 1.0

    @property
    def num_requests(self) -> float:
        """Requests counted, faded ones for what is left of them."""
        return self._exposed / self._weight

    def mean_tokens(self, prior_mean: float, strength: float) -> float:
        """Tokens generated per natural end, as if ``strength`` ends had been seen at ``prior_mean`` tokens each.

        The maximum-likelihood mean of a constant hazard, censored outputs included.
        """
        return (self._num_tokens / self._weight + strength * prior_mean) / (self._num_ended / self._weight + strength)

    def hazards(self, prior: Sequence[float], strength: float) -> list[float]:
        """P(it ends in bin i | it reached bin i), as if ``strength`` requests had been seen in every bin at the hazards ``prior``."""
        hazards = list(prior)
        later, pseudo = 0.0, strength * self._weight
        ended, censored, partial = self._ended, self._censored, self._partial
        for i in range(self._last, -1, -1):
            at_risk = later + ended[i] + partial[i]
            hazards[i] = (ended[i] + pseudo * prior[i]) / (at_risk + pseudo)
            later += ended[i] + censored[i]
        return hazards


class SurvivalCurve:
    """P(L > t), and the expected rest of an output; linear inside a bin."""

    __slots__ = ("_alive", "_area", "_slope")

    def __init__(self, alive: Sequence[float], slope: Sequence[float], area: Sequence[float]) -> None:
        """All up to a common factor.

        Args:
            alive: P(L > t) at the edges, [NUM_BINS + 1]; slope: its change per token in every bin, [NUM_BINS];
            area: the sum of P(L > t) over all t from an edge on, [NUM_BINS + 1].
        """
        self._alive, self._slope, self._area = alive, slope, area

    @classmethod
    def from_hazards(cls, hazards: Sequence[float]) -> Self:
        """Args: hazards: [NUM_BINS], each in [0, 1)."""
        alive, slope = [1.0], []
        for hazard, width in zip(hazards, WIDTHS, strict=True):
            slope.append(-alive[-1] * hazard / width)
            alive.append(alive[-1] * (1.0 - hazard))
        area, total = [0.0] * (NUM_BINS + 1), 0.0
        for i in range(NUM_BINS - 1, -1, -1):
            width = WIDTHS[i]
            total += width * (alive[i] + slope[i] * (width - 1.0) / 2.0)
            area[i] = total
        return cls(alive, slope, area)

    def masses(self) -> list[float]:
        """P(L in bin i), [NUM_BINS]; the last bin has all that is longer."""
        alive = self._alive
        masses = [low - high for low, high in pairwise(alive)]
        masses[-1] += alive[NUM_BINS]
        return masses

    def remaining(self, num_tokens: int, cap: int) -> float:
        """E[min(L, cap) − num_tokens | L > num_tokens] = Σ P(L > s) / P(L > num_tokens) over num_tokens <= s < cap; 0 at the cap."""
        if num_tokens >= min(cap, LONGEST):
            return 0.0
        edges, alives, slopes = EDGES, self._alive, self._slope
        i = bisect_right(edges, num_tokens) - 1
        inside, alive, slope = num_tokens - edges[i], alives[i], slopes[i]
        expected = self._area[i] - inside * (alive + slope * (inside - 1) / 2.0)
        now = alive + inside * slope
        if cap < LONGEST:
            i = bisect_right(edges, cap) - 1
            inside = cap - edges[i]
            expected -= self._area[i] - inside * (alives[i] + slopes[i] * (inside - 1) / 2.0)
        return expected / now
