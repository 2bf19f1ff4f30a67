"""Closed forms of the M/G/1 queue: what a simulation of one server with Poisson arrivals has to reproduce.

Sizes are service times. Sources: Kleinrock, "Queueing Systems", vol. 1 (1975), section 5.6 (Pollaczek-Khinchine), and vol. 2 (1976),
section 4.7 (foreground-background); Schrage and Miller, "The queue M/G/1 with the shortest remaining processing time discipline",
Operations Research 14 (1966).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafthouse_load.simulate import lengths

Floats = NDArray[np.float64]

_GRID = 400_000  # points of numerical integration


class SizeDistribution(Protocol):
    """Sizes with mean 1 and a density."""

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """[count]"""
        ...

    def grid(self) -> Floats:
        """Ascending points between which nothing happens abruptly; the mass outside does not matter."""
        ...

    def density(self, size: Floats) -> Floats:
        """f(x)"""
        ...

    def moment_below(self, order: int, size: Floats) -> Floats:
        """∫ t^order f(t) dt from 0 to x; order 0 is the distribution function, orders 1 and 2 are its partial moments."""
        ...


class Exponential:
    """Mean 1."""

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """[count]"""
        return lengths.exponential(count, rng)

    def grid(self) -> Floats:
        """To e^-40."""
        return np.linspace(0.0, 40.0, _GRID)

    def density(self, size: Floats) -> Floats:
        """e^-x"""
        return np.exp(-size)

    def moment_below(self, order: int, size: Floats) -> Floats:
        """By parts."""
        tail: Floats = np.ones(size.shape)
        for power in range(1, order + 1):
            tail = size**power + power * tail
        moment: Floats = (1.0, 1.0, 2.0)[order] - tail * np.exp(-size)
        return moment


class BoundedPareto:
    """Mean 1, `lengths.bounded_pareto`."""

    def __init__(self) -> None:
        self._low = lengths.pareto_shortest()
        self._high = self._low * lengths.PARETO_RANGE
        self._scale = lengths.PARETO_ALPHA * self._low**lengths.PARETO_ALPHA / (1 - lengths.PARETO_RANGE**-lengths.PARETO_ALPHA)

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """[count]"""
        return lengths.bounded_pareto(count, rng)

    def grid(self) -> Floats:
        """From the shortest to the longest, finer where there are more."""
        return np.geomspace(self._low, self._high, _GRID)

    def density(self, size: Floats) -> Floats:
        """scale · x^-(α + 1)"""
        density: Floats = self._scale * size ** -(lengths.PARETO_ALPHA + 1)
        return density

    def moment_below(self, order: int, size: Floats) -> Floats:
        """A power."""
        exponent = order - lengths.PARETO_ALPHA
        moment: Floats = self._scale * (np.minimum(size, self._high) ** exponent - self._low**exponent) / exponent
        return moment


SIZES: Mapping[str, SizeDistribution] = {"exponential": Exponential(), "bounded-pareto": BoundedPareto()}


def fcfs_mean(sizes: SizeDistribution, load: float) -> float:
    """Pollaczek-Khinchine: E[S] + λ E[S²] / (2 (1 - ρ))."""
    second = float(sizes.moment_below(2, sizes.grid()[-1:])[0])
    return 1.0 + load * second / (2 * (1 - load))


def las_mean(sizes: SizeDistribution, load: float) -> float:
    """Foreground-background: a job of size x meets the queue of jobs cut at x, and shares with them until it has x.

    T(x) = x / (1 - ρ_x) + λ E[min(S, x)²] / (2 (1 - ρ_x)²), ρ_x = λ E[min(S, x)].
    """
    return _mean_over(sizes, lambda at: _las_at(sizes, load, at))


def _las_at(sizes: SizeDistribution, load: float, at: Floats) -> Floats:
    longer: Floats = 1 - sizes.moment_below(0, at)
    cut_load: Floats = load * (sizes.moment_below(1, at) + at * longer)
    cut_second: Floats = load * (sizes.moment_below(2, at) + at * at * longer)
    slowed: Floats = 1 / (1 - cut_load)
    mean: Floats = at * slowed + cut_second * slowed * slowed / 2
    return mean


def srpt_mean(sizes: SizeDistribution, load: float) -> float:
    """Shortest remaining processing time: a wait for those that are shorter, then a residence that only shorter ones interrupt.

    T(x) = λ (∫0^x t² f + x² (1 - F(x))) / (2 (1 - ρ(x))²) + ∫0^x dt / (1 - ρ(t)), ρ(x) = λ ∫0^x t f(t) dt.
    """
    return _mean_over(sizes, lambda at: _srpt_at(sizes, load, at))


def _srpt_at(sizes: SizeDistribution, load: float, at: Floats) -> Floats:
    shorter_load = load * sizes.moment_below(1, at)
    second = load * (sizes.moment_below(2, at) + at * at * (1 - sizes.moment_below(0, at)))
    slowed = 1 / (1 - shorter_load)
    residence = at[0] + np.concatenate([[0.0], np.cumsum(np.diff(at) * (slowed[1:] + slowed[:-1]) / 2)])
    mean: Floats = second / (2 * (1 - shorter_load) ** 2) + residence
    return mean


def _mean_over(sizes: SizeDistribution, mean_at: Callable[[Floats], Floats]) -> float:
    at = sizes.grid()
    values = mean_at(at) * sizes.density(at)
    return float((np.diff(at) * (values[1:] + values[:-1]) / 2).sum())


@dataclass(frozen=True)
class Discipline:
    """A policy of known theory: its closed form, and the name under which `single_server` simulates it."""

    name: str
    mean: Callable[[SizeDistribution, float], float]


DISCIPLINES = (Discipline("fcfs", fcfs_mean), Discipline("las", las_mean), Discipline("srpt", srpt_mean))
