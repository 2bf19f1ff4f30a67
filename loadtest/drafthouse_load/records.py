"""What one request and one block of a benchmark leave behind, and the figures made from them: pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse_load.stats import Counters

_MS = 1e3
_NS_PER_MS = 1e6
_CONFIDENCE_PERCENT = 95.0
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One measured request, on the client's clock."""

    domain: str
    prompt_index: int
    ttft_s: float  # from sending to the first increment with tokens
    duration_s: float  # from sending to the end of the answer
    num_output_tokens: int
    first_chunk_tokens: int
    output_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """The requests of one domain inside one block of one mode, with the server's counters over them."""

    mode: str
    block: int
    domain: str
    wall_s: float
    requests: tuple[RequestRecord, ...]
    counters: Counters


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Mean milliseconds of a round: sessions on its critical path, and everything else on its wall clock.

    ``draft_call`` and ``verify_call`` are the parts of ``other`` that lie between a call and its session (transport,
    packing, the engine's own work around the session, waiting for a core); the rest of it is the pipeline's.
    """

    draft: float
    verify: float
    other: float
    draft_call: float
    verify_call: float

    @property
    def total(self) -> float:
        """The round's wall clock."""
        return self.draft + self.verify + self.other


def round_times(counters: Counters) -> RoundTimes:
    """Split the mean round; all zero when there was none."""
    rounds = counters.rounds or 1
    draft, verify = counters.draft_session_ns, counters.verify_session_ns
    other = counters.round_wall_ns - draft - verify
    parts = (draft, verify, other, counters.draft_wall_ns - draft, counters.verify_wall_ns - verify)
    return RoundTimes(*(part / rounds / _NS_PER_MS for part in parts))


def figures(segments: Sequence[Segment]) -> dict[str, object]:
    """The report's figures of one mode (or one mode and domain).

    ``tokens_per_s``: output tokens of all streams over the wall clock of their blocks, prefill included.
    ``decode_tokens_per_s_per_stream``: tokens after the first increment over the time after it.
    ``ttft_ms_*``: sending the request to its first increment, on the client's clock.
    ``accepted_len_mean``: tokens emitted per request and verification, with the bonus token; prefill's token not counted.
    ``acceptance_rate``: accepted over drafted tokens, both as verified by the target.
    ``round_ms``: server side, per round without prefill: see `RoundTimes`. ``other_share`` is other over total.
    """
    requests = [request for segment in segments for request in segment.requests]
    counters = sum((segment.counters for segment in segments), Counters())
    times = round_times(counters)
    ttft_ms = [_MS * request.ttft_s for request in requests]
    decode_s = sum(request.duration_s - request.ttft_s for request in requests)
    decode_tokens = sum(request.num_output_tokens - request.first_chunk_tokens for request in requests)
    return {
        "tokens_per_s": _rounded(tokens_per_s(segments)),
        "decode_tokens_per_s_per_stream": _rounded(decode_tokens / decode_s if decode_s > 0 else 0.0),
        "ttft_ms_p50": _rounded(float(np.percentile(ttft_ms, 50))),
        "ttft_ms_p90": _rounded(float(np.percentile(ttft_ms, 90))),
        "accepted_len_mean": _rounded(_ratio(counters.emitted_tokens, counters.verified_rows)),
        "acceptance_rate": _rounded(_ratio(counters.accepted, counters.drafted)),
        "round_ms": {name: _rounded(getattr(times, name)) for name in ("draft", "verify", "other", "total")},
        "other_ms": {name: _rounded(getattr(times, name)) for name in ("draft_call", "verify_call")},
        "other_share": _rounded(times.other / times.total if times.total > 0 else 0.0),
        "rounds": counters.rounds,
        "requests": len(requests),
        "output_tokens": sum(request.num_output_tokens for request in requests),
    }


def tokens_per_s(segments: Sequence[Segment]) -> float:
    """Output tokens of all streams per second of wall clock, prefill included."""
    tokens = sum(request.num_output_tokens for segment in segments for request in segment.requests)
    wall_s = sum(segment.wall_s for segment in segments)
    return tokens / wall_s if wall_s > 0 else 0.0


def speed_ratio(fast: Sequence[Segment], slow: Sequence[Segment], rng: np.random.Generator) -> dict[str, object]:
    """tokens/s of ``fast`` over ``slow`` with a 95 % interval, bootstrapped over prompts (both modes resampled alike)."""
    pairs = _time_by_prompt(fast), _time_by_prompt(slow)
    shared = sorted(pairs[0].keys() & pairs[1].keys())
    value = tokens_per_s(fast) / tokens_per_s(slow) if tokens_per_s(slow) > 0 else 0.0
    table = np.array([[*pairs[0][key], *pairs[1][key]] for key in shared])  # [num_prompts, 4]: tokens, s, tokens, s
    low, high = _interval(table, rng) if len(shared) > 1 else (value, value)
    return {"value": _rounded(value), "ci95": [_rounded(low), _rounded(high)], "prompts": len(shared)}


def _interval(table: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    picks = rng.integers(len(table), size=(_RESAMPLES, len(table)))
    sums = table[picks].sum(axis=1)  # [resamples, 4]
    ratios = (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])
    tail = (100.0 - _CONFIDENCE_PERCENT) / 2
    low, high = np.percentile(ratios, [tail, 100.0 - tail])
    return float(low), float(high)


def _time_by_prompt(segments: Sequence[Segment]) -> dict[int, tuple[float, float]]:
    totals: dict[int, tuple[float, float]] = {}
    for segment in segments:
        for request in segment.requests:
            tokens, seconds = totals.get(request.prompt_index, (0.0, 0.0))
            totals[request.prompt_index] = (tokens + request.num_output_tokens, seconds + request.duration_s)
    return totals


def differing_prompts(segments: Sequence[Segment], reference: str) -> dict[str, list[int]]:
    """Per mode the prompts whose tokens ever differed from the first answer of mode ``reference``."""
    expected: dict[int, tuple[int, ...]] = {}
    for segment in segments:
        if segment.mode == reference:
            expected = {request.prompt_index: request.output_ids for request in segment.requests} | expected
    found: dict[str, set[int]] = {segment.mode: set() for segment in segments}
    for segment in segments:
        differing = (request.prompt_index for request in segment.requests if request.output_ids != expected.get(request.prompt_index))
        found[segment.mode].update(differing)
    return {mode: sorted(indices) for mode, indices in found.items()}


def by_key(segments: Sequence[Segment], key: str) -> Mapping[str, list[Segment]]:
    """The segments by mode or domain, in order of first appearance."""
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        groups.setdefault(getattr(segment, key), []).append(segment)
    return groups


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _rounded(value: float) -> float:
    return round(value, 4)
