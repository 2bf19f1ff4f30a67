"""Measures what the replay charges: engines by themselves in this process, messages by the counters of a real server."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from drafthouse.engine.contract import RowStatus, StepCall, StepRow
from drafthouse.engine.engine import ModelEngine
from drafthouse_load.replay.costs import EngineCosts, HopCost, HopCosts
from drafthouse_load.replay.models import TARGET, ReplayModel, ReplayModels

ROUNDS = 5  # over all decoding shapes: a disturbance hits every shape's samples alike, and the median drops it
_DRAFTER_FACTOR = 3  # more rounds: calls of less than a millisecond: cheap, and easily disturbed
_PREFILL_ROUNDS = 3
_LONGEST_VERIFICATION = 17  # committed token and a draft of 16
_PREFILL_LENGTHS = (24, 32, 48, 64)
_PREFILL_ROWS = (1, 2, 4, 8)
_MOST_ROWS_EACH = 8  # beyond, every other one
_STEPS = (1, 2, 4, 8)
_CONTEXT = 64  # committed tokens before the measured ones: between a short prompt and the end of a long answer
_UNEQUAL = ((4, 2, 16), (8, 2, 16), (8, 4, 16))  # rows, of which half have the one length and half the other

Lengths = tuple[int, ...]  # tokens of each row of a call


def decode_shapes(slots: int, max_step_tokens: int) -> list[Lengths]:
    """Rows of equal length, one by one as times are not monotone, and a few of unequal lengths."""
    rows = [*range(1, min(slots, _MOST_ROWS_EACH) + 1), *range(_MOST_ROWS_EACH + 2, slots + 1, 2)]
    equal = [(length,) * count for count in rows for length in range(1, min(_LONGEST_VERIFICATION, max_step_tokens) + 1)]
    fitting = [shape for shape in _UNEQUAL if shape[0] <= slots and shape[2] <= max_step_tokens]
    return equal + [(short,) * (count // 2) + (long,) * (count // 2) for count, short, long in fitting]


def prefill_shapes(slots: int, max_step_tokens: int) -> list[Lengths]:
    """Rows of prefill's lengths."""
    return [(length,) * rows for rows in _PREFILL_ROWS if rows <= slots for length in _PREFILL_LENGTHS if length <= max_step_tokens]


def record_engine(model: ReplayModel, is_drafter: bool, progress: Callable[[], None], rounds: int) -> EngineCosts:
    """One engine alone, as it is configured to be served (threads, slots): medians of session times, a fit of the time around them.

    ``progress`` is called after each of the rounds.
    """
    engine = model.load()
    bench = _Bench(engine)
    size = model.slots, engine.limits.max_step_tokens
    samples: dict[Lengths, list[float]] = {}
    around: list[Sample] = []
    for number in range(rounds):
        calls = [bench.call(lengths, 1, is_drafter) for lengths in decode_shapes(*size)]
        if is_drafter:
            calls += [bench.call((1,) * rows, steps, True) for rows in range(1, model.slots + 1) for steps in _STEPS]
        around += calls
        prefill = [bench.call(lengths, 1, True) for lengths in prefill_shapes(*size)] if number < _PREFILL_ROUNDS else []
        for sample in (*calls, *prefill):
            if sample.num_runs == 1:
                samples.setdefault(sample.lengths, []).append(sample.session_ms)
        progress()
    medians = {lengths: median(own) for lengths, own in samples.items()}
    equal = {(len(lengths), lengths[0]): round(ms, 4) for lengths, ms in medians.items() if len(set(lengths)) == 1}
    unequal = {lengths: ms for lengths, ms in medians.items() if len(set(lengths)) > 1}
    call_ms, run_ms, output_ms = fit_around(around, is_drafter)
    full = EngineCosts(model.num_threads, equal, 0.0, call_ms, run_ms, output_ms)
    return replace(full, place_ms=fit_place(full, unequal))


def record_engines(models: ReplayModels, progress: Callable[[], None], rounds: int = ROUNDS) -> dict[str, EngineCosts]:
    """Target and drafters. Drafters of one shape and configuration share a recording: the weights do not change the time.

    ``progress`` is called `num_recordings` times.
    """
    costs = {TARGET: record_engine(models.target, False, progress, rounds)}
    for group in _like_shaped(models.drafters):
        recorded = record_engine(models.drafters[group[0]], True, progress, rounds * _DRAFTER_FACTOR)
        costs |= dict.fromkeys(group, recorded)
    return costs


def num_recordings(models: ReplayModels, rounds: int = ROUNDS) -> int:
    """How often `record_engines` reports progress."""
    return rounds * (1 + _DRAFTER_FACTOR * len(_like_shaped(models.drafters)))


def _like_shaped(drafters: Mapping[str, ReplayModel]) -> list[list[str]]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, model in drafters.items():
        own = model.manifest
        key = (own.num_layers, own.hidden_size, own.num_params, own.precision, own.context_len, model.slots, model.num_threads)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step call."""

    lengths: Lengths
    num_runs: int
    num_outputs: int
    session_ms: float
    around_ms: float


class _Bench:
    """Step calls of any shape on one engine, every one of them computed from its first token on."""

    def __init__(self, engine: ModelEngine) -> None:
        self._engine = engine
        self._random = np.random.default_rng(0)
        prefix = self._random.integers(1, engine.limits.vocab_size, _CONTEXT, dtype=np.int32)
        for start in range(0, _CONTEXT, engine.limits.max_step_tokens):
            part = prefix[start : start + engine.limits.max_step_tokens]
            engine.step(StepCall([StepRow(uid, start, part, len(part)) for uid in range(1, engine.limits.slots + 1)], 0))

    def call(self, lengths: Lengths, num_steps: int, is_committed: bool) -> Sample:
        """One call with fresh tokens: all committed, as a drafter or a prefill gets them, or one committed token and a draft behind it."""
        rows = []
        for uid, length in enumerate(lengths, start=1):
            tokens = self._random.integers(1, self._engine.limits.vocab_size, length, dtype=np.int32)
            rows.append(StepRow(uid, _CONTEXT, tokens, length if is_committed else 1))
        call = StepCall(rows, num_steps, int(is_committed), return_logprobs=False)
        began_ns = time.perf_counter_ns()
        result = self._engine.step(call)
        wall_ns = time.perf_counter_ns() - began_ns
        if any(row.status is not RowStatus.OK for row in result.rows):
            raise RuntimeError(f"the engine refused a call of {lengths}: {[row.error or row.status.name for row in result.rows]}")
        outputs = sum(len(row.sampled) for row in result.rows)
        return Sample(lengths, num_steps, outputs, result.session_ns / 1e6, (wall_ns - result.session_ns) / 1e6)


def fit_place(full: EngineCosts, unequal: Mapping[Lengths, float]) -> float:
    """Milliseconds per empty place, from calls of unequal rows against calls of equal ones with as many tokens; not below 0."""
    per_place = [0.0]
    for lengths, ms in unequal.items():
        rows, places, packed = len(lengths), max(lengths), sum(lengths)
        per_place.append((ms - full.session(rows, places, packed)) / (rows * places - packed))
    return round(max(float(np.mean(per_place[1:] or per_place)), 0.0), 4)


def fit_around(samples: Sequence[Sample], is_drafter: bool) -> tuple[float, float, float]:
    """Milliseconds per call, per network call and per output node: least squares on medians, none below 0.

    The target never extends its own rows, so there a call is one network call, and the second figure is 0.
    """
    by_size: dict[tuple[int, int], list[float]] = {}
    for sample in samples:
        by_size.setdefault((sample.num_runs, sample.num_outputs), []).append(sample.around_ms)
    times = np.array([median(own) for own in by_size.values()])
    runs, outputs = np.array(list(by_size), np.float64).T
    columns = [np.ones(len(times)), outputs, *([runs] if is_drafter else [])]
    call_ms, output_ms, *run_ms = np.linalg.lstsq(np.stack(columns, axis=1), times, rcond=None)[0].clip(0.0).round(4).tolist()
    return call_ms, run_ms[0] if run_ms else 0.0, output_ms


@dataclass(frozen=True, slots=True)
class HopPoint:
    """Where the time of a sequential mode's mean round went, on a real server. Milliseconds."""

    rows: float  # requests per verification
    drafted: float  # draft tokens per request and round; 0 where nobody drafts
    verify_other_ms: float  # around the target's session, on `cosine`'s clock
    draft_other_ms: float  # around the drafter's sessions
    pipeline_ms: float  # neither draft nor verify


def hops_from(points: Sequence[HopPoint], target: EngineCosts, drafter: EngineCosts, fanout: HopCost) -> HopCosts:
    """What messages cost, from rounds with one call each of `fusion`, one drafter and `target`.

    What a stage takes besides its sessions, less what its engine takes around them by itself (`record_engine`), is messages and
    waking up with cold caches. The draft stage's two messages (`cosine` → `fusion` → drafter) are not told apart: without fusion's own
    work for the drafter (``fanout``), each gets half.
    The router was not asked in these modes; its message counts like a drafter's. Over several concurrencies, each is a line in rows.

    Raises ValueError without a point that drafted.
    """
    drafting = [point for point in points if point.drafted > 0]
    if not drafting:
        raise ValueError("no mode with a drafter was measured")
    verify = [(point.rows, point.verify_other_ms - target.around(1, round(point.rows * (1 + point.drafted)))) for point in points]
    draft = []
    for point in drafting:
        engine_ms = drafter.around(round(point.drafted), round(point.rows * point.drafted))
        draft.append((point.rows, (point.draft_other_ms - engine_ms - fanout.ms(point.rows)) / 2))
    half = _line(draft)
    pipeline = _line([(point.rows, point.pipeline_ms) for point in points])
    return HopCosts(_line(verify), fusion=half, drafter=half, router=half, pipeline=pipeline, fanout=fanout)


def _line(points: Sequence[tuple[float, float]]) -> HopCost:
    """Least squares with a slope that is not below 0; a constant where all points have about the same number of rows."""
    rows, times = np.array(points).T
    if np.ptp(rows) < 0.5:
        return HopCost(round(max(float(times.mean()), 0.0), 4))
    slope = max(float(np.polyfit(rows, times, 1)[0]), 0.0)
    return HopCost(round(max(float((times - slope * rows).mean()), 0.0), 4), round(slope, 4))
