"""What is simulated, and the requests and costs that follow from it."""

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drafthouse_load.simulate.costs import RoundCosts
from drafthouse_load.simulate.lengths import DISTRIBUTIONS
from drafthouse_load.simulate.trace import Trace
from drafthouse_load.simulate.workload import Workload, build

POISSON, FROM_TRACE = "poisson", "trace"  # arrivals
NOISY = "noisy"  # length predictor, beside the server's own
TRACE_LENGTHS = "trace"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SimulateSettings:
    """One experiment. The same seed gives the same requests whatever the load, the batch and the policy are."""

    policies: tuple[str, ...]
    num_requests: int = 100_000
    seed: int = 0
    load: float = 0.9
    batch: int = 1
    slots: int = 0  # 0: as many as it takes, no cache is ever given up
    num_draft_tokens: int = 5
    max_verified_tokens: int = 0  # of a verification, over all rows; 0: no limit
    arrivals: str = POISSON
    lengths: str = "lognormal"
    mean_length: float = 128.0  # of made-up outputs, tokens
    prompt_length: int = 512  # of every made-up prompt
    length_scale: float = 1.0
    length_predictor: str = NOISY
    length_error: float = 0.5  # σ of `NoisyLengths`
    starvation_services: float = 200.0  # starvation limit in mean services, the same for all policies
    starvation_limit_ns: int = 0  # instead, where it is not 0
    max_tokens: int = 0  # a cap, not a prediction; 0: the power of two above the longest output

    def to_json(self) -> dict[str, object]:
        """For a report."""
        return asdict(self)

    def at_load(self, load: float) -> "SimulateSettings":
        """The same at another load."""
        return replace(self, load=load)


@dataclass(frozen=True)
class Experiment:
    """Requests at a load, what rounds cost, and what the server is."""

    settings: SimulateSettings
    workload: Workload
    costs: RoundCosts

    @property
    def mean_service_ns(self) -> float:
        """Of a request alone: the unit of the starvation limit."""
        return float(self.workload.service_ns(self.costs, 1).mean())

    @property
    def starvation_limit_ns(self) -> int:
        """The same for all policies."""
        return self.settings.starvation_limit_ns or max(round(self.settings.starvation_services * self.mean_service_ns), 1)

    def at_load(self, load: float) -> "Experiment":
        """The same requests, arriving faster or slower."""
        moved = self.workload.at_load(load, self.costs, self.settings.batch)
        return replace(self, settings=self.settings.at_load(load), workload=moved)


def experiment(settings: SimulateSettings, trace: Trace | None, costs: RoundCosts) -> Experiment:
    """Draw the requests. ``trace`` is needed where lengths or arrivals come from one."""
    seeds = np.random.SeedSequence(settings.seed).spawn(3)
    for_arrivals, for_lengths, for_rounds = (np.random.default_rng(seed) for seed in seeds)
    prompts, outputs = _lengths(settings, trace, for_lengths)
    outputs = np.maximum(np.rint(outputs * settings.length_scale), 1).astype(np.int64)
    arrival_s = _arrivals(settings, trace, for_arrivals)
    workload = build(arrival_s, prompts, outputs, settings.num_draft_tokens, for_rounds)
    return Experiment(settings, workload.at_load(settings.load, costs, settings.batch), costs)


def _lengths(settings: SimulateSettings, trace: Trace | None, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Prompts and outputs, [n] each: rows of the trace at random (in its order where it gives the arrivals too), or made up."""
    count = settings.num_requests
    if settings.lengths != TRACE_LENGTHS or trace is None:
        made_up = DISTRIBUTIONS[settings.lengths](count, rng) * settings.mean_length
        return np.full(count, settings.prompt_length), made_up
    rows = np.arange(count) % len(trace) if settings.arrivals == FROM_TRACE else rng.integers(len(trace), size=count)
    return trace.prompt_len[rows], trace.output_len[rows].astype(np.float64)


def _arrivals(settings: SimulateSettings, trace: Trace | None, rng: np.random.Generator) -> Floats:
    """Times in any unit, the last one > 0. A trace is repeated as often as needed, its mean gap between two repetitions. [n]"""
    count = settings.num_requests
    if settings.arrivals == POISSON or trace is None:
        poisson: Floats = np.cumsum(rng.exponential(size=count))
        return poisson
    rows = np.arange(count)
    period_s = float(trace.arrival_s[-1]) * len(trace) / (len(trace) - 1)
    repeated: Floats = trace.arrival_s[rows % len(trace)] + period_s * (rows // len(trace))
    return repeated
