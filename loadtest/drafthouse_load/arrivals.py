"""When requests come: at random or as a trace has them. Open loop: nobody waits for an answer before the next one is sent."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse_load.simulate.trace import Trace


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of an open loop."""

    at_s: float  # from the start of the load
    num_output_tokens: int | None = None  # as the trace has it; None = the text's own length


def poisson(rate_per_s: float, seed: int) -> Iterator[Arrival]:
    """Requests without end, their gaps exponential with mean 1/``rate_per_s`` (> 0)."""
    rng = np.random.default_rng(seed)
    at_s = 0.0
    while True:
        at_s += float(rng.exponential(1.0 / rate_per_s))
        yield Arrival(at_s)


def from_trace(trace: Trace, speed: float) -> Iterator[Arrival]:
    """The trace's requests once, ``speed`` (> 0) times as fast as they came."""
    for at_s, num_output_tokens in zip(trace.arrival_s.tolist(), trace.output_len.tolist(), strict=True):
        yield Arrival(at_s / speed, num_output_tokens)


def poisson_given_count(num_requests: int, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times of a Poisson process, given that exactly ``num_requests`` fall into [0, ``duration_s``]: uniform and sorted.

    The offered load is then the one asked for and not, with a few hundred requests, 5 to 10 % beside it.
    """
    return np.sort(rng.uniform(0.0, duration_s, num_requests))
