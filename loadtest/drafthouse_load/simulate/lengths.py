"""Lengths that are made up: by name a distribution of positive numbers with mean 1."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PARETO_ALPHA = 1.5
PARETO_RANGE = 100.0  # longest over shortest
LOGNORMAL_SIGMA = 1.0


def exponential(count: int, rng: np.random.Generator) -> Floats:
    """Exponential, mean 1."""
    return rng.exponential(size=count)


def bounded_pareto(count: int, rng: np.random.Generator) -> Floats:
    """Pareto with tail exponent `PARETO_ALPHA`, cut at `PARETO_RANGE` times the shortest; mean 1."""
    tail = 1 - rng.random(count) * (1 - PARETO_RANGE**-PARETO_ALPHA)
    sizes: Floats = pareto_shortest() * tail ** (-1 / PARETO_ALPHA)
    return sizes


def pareto_shortest() -> float:
    """The shortest length of `bounded_pareto`: the one that makes the mean 1."""
    alpha, span = PARETO_ALPHA, PARETO_RANGE
    shortest: float = (alpha - 1) / alpha * (1 - span**-alpha) / (1 - span ** (1 - alpha))
    return shortest


def lognormal(count: int, rng: np.random.Generator) -> Floats:
    """Log-normal with `LOGNORMAL_SIGMA`, mean 1."""
    return rng.lognormal(-(LOGNORMAL_SIGMA**2) / 2, LOGNORMAL_SIGMA, count)


DISTRIBUTIONS: Mapping[str, Callable[[int, np.random.Generator], Floats]] = {
    "exponential": exponential,
    "bounded-pareto": bounded_pareto,
    "lognormal": lognormal,
}
