"""From what happened in a simulation to the figures of a policy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.estimates.service import EstimationError
from drafthouse_load.simulate.engine import Outcome

NUM_BATCHES = 20  # of batch means, in order of arrival
T_95 = 2.093  # Student's t, 19 degrees of freedom, two-sided 95 %
T_95_OF_6 = 2.944  # the same at 1 - 5 % / 6: six intervals all cover with at least 95 % (Bonferroni)
_DIGITS = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PolicyFigures:
    """One policy on one workload. Times in the unit of the costs (`unit`: "verifications" or "ms")."""

    name: str
    unit: str
    latency: Floats  # [n], by arrival: from arrival to the last token
    ttft: Floats  # [n], to the first token
    service: Floats  # [n], of each request alone
    makespan: float
    busy_share: float  # of the makespan
    rows_mean: float  # per round
    preemptions: int
    evictions: int
    recomputed_tokens: int
    estimation: EstimationError  # of execution times
    length_error: float | None  # of lengths, Σ |predicted - true| / Σ true
    cpu_s: float  # that simulating took

    @property
    def latency_mean(self) -> float:
        """Over all requests."""
        return float(self.latency.mean())

    @property
    def estimation_covered_share(self) -> float:
        """Of the requests, those that became perceptible: the others are in `estimation_error_at_arrival` only."""
        covered = self.estimation.at_perceptible.num_requests
        return covered / max(1, covered + self.estimation.num_never_perceptible)

    def row(self) -> dict[str, object]:
        """For a report."""
        p50, p95, p99 = np.percentile(self.latency, (50, 95, 99))
        low, high = mean_interval(self.latency)
        return {
            "name": self.name,
            "latency_mean": _rounded(self.latency_mean),
            "latency_mean_ci95": [_rounded(low), _rounded(high)],
            "latency_p50": _rounded(p50),
            "latency_p95": _rounded(p95),
            "latency_p99": _rounded(p99),
            "ttft_mean": _rounded(float(self.ttft.mean())),
            "slowdown_mean": _rounded(float((self.latency / self.service).mean())),
            "slowdown_p99": _rounded(float(np.percentile(self.latency / self.service, 99))),
            "preemptions": self.preemptions,
            "evictions": self.evictions,
            "recomputed_tokens": self.recomputed_tokens,
            "estimation_error": _rounded(self.estimation.at_perceptible.relative),
            "estimation_error_at_arrival": _rounded(self.estimation.at_arrival.relative),
            "estimation_covered_share": _rounded(self.estimation_covered_share),
            "length_error": _rounded(self.length_error),
            "completed": len(self.latency),
            "makespan": _rounded(self.makespan),
            "utilisation": _rounded(self.busy_share),
            "rows_mean": _rounded(self.rows_mean),
            "cpu_s": round(self.cpu_s, 1),
        }


def figures(
    name: str, outcome: Outcome, service_ns: Floats, unit: tuple[str, float], errors: tuple[EstimationError, float | None], cpu_s: float
) -> PolicyFigures:
    """The figures of one run.

    Args:
        service_ns: [n], what each request takes alone.
        unit: its name, and its length in ns.
        errors: of execution times and of lengths.
    """
    unit_name, unit_ns = unit
    return PolicyFigures(
        name=name,
        unit=unit_name,
        latency=(outcome.finish_ns - outcome.arrival_ns) / unit_ns,
        ttft=(outcome.first_token_ns - outcome.arrival_ns) / unit_ns,
        service=service_ns / unit_ns,
        makespan=outcome.makespan_ns / unit_ns,
        busy_share=outcome.busy_ns / outcome.makespan_ns,
        rows_mean=outcome.rows / outcome.rounds,
        preemptions=outcome.preemptions,
        evictions=outcome.evictions,
        recomputed_tokens=outcome.recomputed_tokens,
        estimation=errors[0],
        length_error=errors[1],
        cpu_s=cpu_s,
    )


def mean_interval(values: Floats, student_t: float = T_95) -> tuple[float, float]:
    """Interval of the mean by batch means: waits of neighbours depend on each other, those of long batches hardly. [n]"""
    means = _batch_means(values)
    half = student_t * float(means.std(ddof=1)) / len(means) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def mean_ratio(own: Floats, other: Floats) -> tuple[float, float, float]:
    """Mean latency over another policy's on the same requests, with its 95 % interval (batch means, paired; delta method). [n] each."""
    ratio = float(own.mean() / other.mean())
    residuals = (_batch_means(own) - ratio * _batch_means(other)) / float(other.mean())
    half = T_95 * float(residuals.std(ddof=1)) / len(residuals) ** 0.5
    return ratio, ratio - half, ratio + half


def ratios(rows: list[PolicyFigures], names: tuple[str, ...]) -> list[dict[str, object]]:
    """Mean latency of each of ``names`` over every other policy's."""
    found = list[dict[str, object]]()
    for own in (row for row in rows if row.name in names):
        for other in (row for row in rows if row.name != own.name):
            ratio, low, high = mean_ratio(own.latency, other.latency)
            interval = [_rounded(low), _rounded(high)]
            p99 = _rounded(float(np.percentile(own.latency, 99) / np.percentile(other.latency, 99)))
            found.append({"policy": own.name, "over": other.name, "latency_mean": _rounded(ratio), "ci95": interval, "latency_p99": p99})
    return found


def _batch_means(values: Floats) -> Floats:
    return np.array([part.mean() for part in np.array_split(values, min(NUM_BATCHES, len(values)))])


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), _DIGITS)
