"""The figures of one arm at one concurrency, measured or replayed, and how far they can be trusted: pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse_load.ablate.measure import Block
from drafthouse_load.records import round_times
from drafthouse_load.replay.result import ReplayResult
from drafthouse_load.stats import Counters

_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
_NS_PER_S = 1e9
_DIGITS = 4


@dataclass(frozen=True)
class Sample:
    """What a comparison rests on: one arm at one concurrency."""

    arm: str
    concurrency: int
    figures: Mapping[str, object]  # the report's, without intervals
    tokens_per_s: float
    latency_ms_mean: float
    latency_ms: NDArray[np.float64]  # [prompts], mean over repeats
    tokens: NDArray[np.float64]  # [prompts], mean over repeats


def measured_sample(blocks: Sequence[Block], num_draft_tokens: int | None) -> Sample:
    """The repeats of one arm at one concurrency."""
    requests = [request for block in blocks for request in block.requests]
    wall_s = sum(block.wall_s for block in blocks)
    counters = sum((block.counters for block in blocks), Counters())
    tokens_per_s = sum(block.num_tokens for block in blocks) / wall_s
    latencies = [1e3 * request.duration_s for request in requests]
    times = round_times(counters)
    figures = _row(
        tokens_per_s=tokens_per_s,
        latencies_ms=latencies,
        accepted_len_mean=_ratio(counters.emitted_tokens, counters.verified_rows),
        verify_idle_share=1 - (counters.verify_session_ns + counters.prefill_session_ns) / _NS_PER_S / wall_s,
        draft_idle_share=1 - (counters.draft_session_ns + counters.ahead_session_ns) / _NS_PER_S / wall_s,
    ) | {
        "num_draft_tokens": num_draft_tokens,
        "acceptance_rate": round(_ratio(counters.accepted, counters.drafted), _DIGITS),
        "drafted_per_verification": round(_ratio(counters.drafted, counters.verified_rows), _DIGITS),
        "rows_per_verification": round(_ratio(counters.verified_rows, counters.rounds), _DIGITS),
        "round_ms": {part: round(getattr(times, part), _DIGITS) for part in ("draft", "verify", "other", "total")},
        "tokens_per_s_by_block": [round(block.num_tokens / block.wall_s, 2) for block in blocks],
        "latency_ms_mean_by_domain": _by_domain([request.domain for request in requests], latencies),
        "requests": len(requests),
    }
    count = 1 + max(request.prompt_index for request in requests)
    sums = np.zeros((3, count))  # repeats, milliseconds, tokens
    for request in requests:
        sums[:, request.prompt_index] += (1, 1e3 * request.duration_s, request.num_output_tokens)
    first = blocks[0]
    return Sample(first.arm, first.concurrency, figures, tokens_per_s, float(np.mean(latencies)), sums[1] / sums[0], sums[2] / sums[0])


def replayed_sample(arm: str, concurrency: int, result: ReplayResult, num_draft_tokens: int | None, domains: Sequence[str]) -> Sample:
    """One replay: it repeats itself exactly, so once is enough. ``domains`` by prompt."""
    sums = result.sums
    figures = _row(
        tokens_per_s=result.tokens_per_s,
        latencies_ms=result.latencies_ms,
        accepted_len_mean=result.accepted_len_mean,
        verify_idle_share=result.verify_idle_share,
        draft_idle_share=result.draft_idle_share,
    ) | {
        "num_draft_tokens": num_draft_tokens,
        "acceptance_rate": round(_ratio(sums.num_accepted, sums.num_drafted), _DIGITS),
        "drafted_per_verification": round(_ratio(sums.num_drafted, sums.num_verified_rows), _DIGITS),
        "rows_per_verification": round(_ratio(sums.num_verified_rows, result.num_verifications), _DIGITS),
        "overlap_share": round(result.overlap_share, _DIGITS),
        "latency_ms_mean_by_domain": _by_domain(domains, result.latencies_ms),
        "requests": len(result.records),
    }
    tokens = np.array([record.num_output_tokens for record in result.records], np.float64)
    latencies = np.array(result.latencies_ms)
    return Sample(arm, concurrency, figures, result.tokens_per_s, float(latencies.mean()), latencies, tokens)


def _row(
    *, tokens_per_s: float, latencies_ms: Sequence[float], accepted_len_mean: float, verify_idle_share: float, draft_idle_share: float
) -> dict[str, object]:
    """The figures that measured and replayed rows share; docs/metrics.md defines them."""
    values = {
        "tokens_per_s": tokens_per_s,
        "latency_ms_mean": float(np.mean(latencies_ms)),
        "latency_ms_p95": float(np.percentile(latencies_ms, 95)),
        "accepted_len_mean": accepted_len_mean,
        "verify_idle_share": verify_idle_share,
        "draft_idle_share": draft_idle_share,
    }
    return {name: round(value, _DIGITS) for name, value in values.items()}


def _by_domain(domains: Sequence[str], latencies_ms: Sequence[float]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for domain, latency_ms in zip(domains, latencies_ms, strict=True):
        groups.setdefault(domain, []).append(latency_ms)
    return {domain: round(float(np.mean(own)), _DIGITS) for domain, own in groups.items()}


def row(sample: Sample) -> dict[str, object]:
    """One entry of the report's `results`: the figures with 95 % intervals, bootstrapped over prompts."""
    picks = _picks(len(sample.latency_ms))
    latency_ms = sample.latency_ms[picks].mean(axis=1)
    speed = _speed(sample, picks)
    intervals = {
        "tokens_per_s_ci95": _interval(speed * (sample.tokens_per_s / _speed_of_all(sample))),
        "latency_ms_mean_ci95": _interval(latency_ms),
    }
    return {"mode": sample.arm, "concurrency": sample.concurrency, **sample.figures, **intervals}


def ratio(ours: Sample, theirs: Sample) -> dict[str, object]:
    """How ``ours`` compares with ``theirs``: throughput (more is better) and mean latency (less is), each over the other's.

    The intervals resample prompts, the same ones in both. A prompt's share in the throughput is its tokens over its latency: with a
    fixed number of clients the two arms' throughputs are in the ratio of these sums, up to the run's last requests.
    """
    picks = _picks(len(ours.latency_ms))
    speed = _speed(ours, picks) / _speed(theirs, picks)
    throughput = ours.tokens_per_s / theirs.tokens_per_s
    latency = ours.latency_ms[picks].mean(axis=1) / theirs.latency_ms[picks].mean(axis=1)
    return {
        "mode": theirs.arm,
        "concurrency": theirs.concurrency,
        "throughput": round(throughput, _DIGITS),
        "throughput_ci95": _interval(speed * throughput * _speed_of_all(theirs) / _speed_of_all(ours)),
        "latency_mean": round(ours.latency_ms_mean / theirs.latency_ms_mean, _DIGITS),
        "latency_mean_ci95": _interval(latency),
    }


def ratios(samples: Sequence[Sample], ours: str) -> list[dict[str, object]]:
    """The arm ``ours`` over every other one, at each concurrency."""
    by_key = {(sample.arm, sample.concurrency): sample for sample in samples}
    return [
        ratio(by_key[ours, sample.concurrency], sample) for sample in samples if sample.arm != ours and (ours, sample.concurrency) in by_key
    ]


def _picks(count: int) -> NDArray[np.int64]:
    """The same draws for whatever is compared: [resamples, count]."""
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))


def _speed(sample: Sample, picks: NDArray[np.int64]) -> NDArray[np.float64]:
    speed: NDArray[np.float64] = sample.tokens[picks].sum(axis=1) / sample.latency_ms[picks].sum(axis=1)
    return speed


def _speed_of_all(sample: Sample) -> float:
    return float(sample.tokens.sum() / sample.latency_ms.sum())


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), _DIGITS) for value in np.percentile(values, _PERCENTILES)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
