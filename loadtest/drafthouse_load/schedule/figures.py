"""From answers to the rows of the report, and how far they can be trusted: pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse_load.schedule.measure import Block, Capacity
from drafthouse_load.schedule.requests import ServedRequest
from drafthouse_load.stats import Counters

_MS = 1e3
_RESAMPLES = 2000
_RUN = 20  # neighbours that are resampled together: whoever waits, waits with them; a fifth of the requests where there are few
_PERCENTILES = (2.5, 97.5)
_DIGITS = 4

Floats = NDArray[np.float64]
Key = tuple[str, int, float]  # policy, max_batch, load


@dataclass(frozen=True)
class PolicySample:
    """One policy at one `max_batch` and load, over its blocks."""

    key: Key
    blocks: tuple[Block, ...]  # in order of their numbers

    @property
    def served(self) -> list[ServedRequest]:
        """In order of arrival, block after block."""
        return [one for block in self.blocks for one in block.served]

    @property
    def latency_ms(self) -> Floats:
        """[requests], in the same order."""
        return np.array([_MS * one.latency_s for one in self.served])

    @property
    def makespan_s(self) -> float:
        """Of all blocks."""
        return sum(block.makespan_s for block in self.blocks)


def samples_of(blocks: Sequence[Block]) -> list[PolicySample]:
    """One per policy, `max_batch` and load, in order of first appearance; blocks of one are put in the order of their requests."""
    groups: dict[Key, list[Block]] = {}
    for block in blocks:
        groups.setdefault((block.policy, block.max_batch, block.load), []).append(block)
    return [PolicySample(key, tuple(sorted(own, key=lambda block: block.served[0].planned.number))) for key, own in groups.items()]


def row(sample: PolicySample) -> dict[str, object]:
    """One entry of the report's `policies`, without what the simulator says."""
    policy, max_batch, load = sample.key
    latency_ms, served = sample.latency_ms, sample.served
    p50, p95, p99 = np.percentile(latency_ms, (50, 95, 99))
    readings = [block.reading for block in sample.blocks]
    counters = sum((reading.counters for reading in readings), Counters())
    rounds = max(counters.rounds, 1)
    return {
        "policy": policy,
        "max_batch": max_batch,
        "load": load,
        "requests": len(served),
        "latency_mean": _rounded(latency_ms.mean()),
        "latency_mean_ci95": interval(latency_ms[picks(len(served))].mean(axis=1)),
        "latency_p50": _rounded(p50),
        "latency_p95": _rounded(p95),
        "latency_p99": _rounded(p99),
        "ttft_mean": _rounded(_MS * float(np.mean([one.ttft_s for one in served]))),
        "completed_tokens": sum(one.completion.num_output_tokens for one in served),
        "makespan_s": _rounded(sample.makespan_s),
        "preemptions": sum(reading.preemptions for reading in readings),
        "evictions": sum(reading.evictions for reading in readings),
        "recomputed_tokens": sum(reading.recomputed_tokens for reading in readings),
        "estimation_error": _mean_error(sample.blocks),
        "length_error": [dict(block.errors.length) for block in sample.blocks],
        "estimation": [dict(block.errors.estimation) for block in sample.blocks],
        "tokens_per_verification": _rounded(counters.emitted_tokens / max(counters.verified_rows, 1)),
        "rows_per_round": _rounded(counters.verified_rows / rounds),
        "round_ms": _rounded(counters.round_wall_ns / rounds / 1e6),
        "sent_late_ms_max": _rounded(_MS * max(one.sent_s - one.due_s for one in served)),
        "latency_mean_by_domain": _by_domain(served),
    }


def predicted(sample: PolicySample, latency_ms: Floats) -> dict[str, float]:
    """A predicted mean, and how far it is beside the measured one."""
    mean = float(latency_ms.mean())
    return {"latency_mean": _rounded(mean), "error": _rounded(mean / float(sample.latency_ms.mean()) - 1)}


def _mean_error(blocks: Sequence[Block]) -> float | None:
    """Relative error of execution times at the moment they were first estimated on a stable acceptance, weighted by requests."""
    own = [block.errors.estimation["at_perceptible"] for block in blocks]
    known = [(error["num_requests"], error["relative"]) for error in own if error["num_requests"]]
    total = sum(count for count, _ in known)
    return _rounded(sum(count * value for count, value in known) / total) if total else None


def _by_domain(served: Sequence[ServedRequest]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for one in served:
        groups.setdefault(one.planned.domain, []).append(_MS * one.latency_s)
    return {domain: _rounded(float(np.mean(own))) for domain, own in groups.items()}


def ratio(ours: PolicySample, baseline: PolicySample) -> dict[str, object]:
    """One entry of `ratios`: below 1 is better. The interval resamples runs of neighbouring requests, the same ones in both."""
    own, other = ours.latency_ms, baseline.latency_ms
    chosen = picks(len(own))
    policy, max_batch, load = ours.key
    return {
        "policy": policy,
        "over": baseline.key[0],
        "max_batch": max_batch,
        "load": load,
        "latency_mean": _rounded(own.mean() / other.mean()),
        "latency_mean_ci95": interval(own[chosen].mean(axis=1) / other[chosen].mean(axis=1)),
        "latency_p99": _rounded(float(np.percentile(own, 99)) / float(np.percentile(other, 99))),
        "makespan": _rounded(ours.makespan_s / baseline.makespan_s),
    }


def picks(count: int) -> NDArray[np.int64]:
    """Which requests a resampling takes: runs of neighbours, the last followed by the first. [resamples, count]"""
    length = max(1, min(_RUN, count // 5))
    num_runs = -(-count // length)
    starts = np.random.default_rng(0).integers(count, size=(_RESAMPLES, num_runs, 1))
    return ((starts + np.arange(length)) % count).reshape(_RESAMPLES, -1)[:, :count]


def interval(values: Floats) -> list[float]:
    """95 % of the resampled values."""
    return [_rounded(value) for value in np.percentile(values, _PERCENTILES)]


def differing_texts(reference: Sequence[ServedRequest], blocks: Sequence[Block]) -> dict[str, list[int]]:
    """Per policy the requests whose answer ever differed from the reference's."""
    expected = {one.planned.number: one.completion for one in reference}
    found: dict[str, set[int]] = {block.policy: set() for block in blocks}
    for block in blocks:
        for one in block.served:
            other = expected[one.planned.number]
            if (one.completion.output_ids, one.completion.text) != (other.output_ids, other.text):
                found[block.policy].add(one.planned.number)
    return {policy: sorted(numbers) for policy, numbers in found.items()}


def length_figures(served: Sequence[ServedRequest]) -> dict[str, object]:
    """How long the texts were, and how many ended by themselves."""
    own = {
        domain: [one for one in served if one.planned.domain == domain] for domain in dict.fromkeys(one.planned.domain for one in served)
    }
    return _lengths(served) | {"by_domain": {domain: _lengths(group) for domain, group in own.items()}}


def _lengths(served: Sequence[ServedRequest]) -> dict[str, object]:
    lengths = np.array([one.completion.num_output_tokens for one in served], np.float64)
    p10, p50, p90 = np.percentile(lengths, (10, 50, 90))
    return {
        "requests": len(served),
        "mean": _rounded(lengths.mean()),
        "deviation": _rounded(lengths.std()),
        "p10": _rounded(p10),
        "p50": _rounded(p50),
        "p90": _rounded(p90),
        "max": int(lengths.max()),
        "ended_by_themselves": _rounded(float(np.mean([one.completion.finish_reason == "stop" for one in served]))),
    }


def capacity_figures(capacity: Capacity) -> dict[str, object]:
    """One entry of `capacity`."""
    counters = capacity.reading.counters
    rounds = max(counters.rounds, 1)
    return {
        "max_batch": capacity.max_batch,
        "tokens_per_s": _rounded(capacity.tokens_per_s),
        "requests_per_s": _rounded(capacity.requests_per_s),
        "tokens_per_verification": _rounded(counters.emitted_tokens / max(counters.verified_rows, 1)),
        "acceptance_rate": _rounded(counters.accepted / max(counters.drafted, 1)),
        "round_ms": _rounded(counters.round_wall_ns / rounds / 1e6),
        "rows_per_round": _rounded(counters.verified_rows / rounds),
    }


def by_key(samples: Sequence[PolicySample]) -> Mapping[Key, PolicySample]:
    """The samples by what they are of."""
    return {sample.key: sample for sample in samples}


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)
