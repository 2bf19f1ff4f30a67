"""Measures what the replay charges: engines by themselves in this process, messages by the counters of a real server."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import NO_TOKEN
from drafthouse.engine.contract import StepCall, StepRow
from drafthouse.engine.costs import Shape
from drafthouse.engine.engine import ModelEngine
from drafthouse_load.replay.costs import EngineCosts
from drafthouse_load.replay.engine import MIN_STEP_TOKENS
from drafthouse_load.replay.models import TARGET, ReplayModel, ReplayModels

ROUNDS = 3  # over all shapes: a disturbance hits every shape's samples alike, and the median drops it
_LONGEST_VERIFICATION = 17  # committed token and a draft of 16
_PREFILL_LENGTHS = (24, 32, 48, 64)
_PREFILL_ROWS = (1, 2, 4, 8)
_MOST_ROWS_EACH = 8  # beyond, every other one
_STEPS = (1, 2, 4, 8)
_CONTEXT = 64  # committed tokens before the measured ones: between a short prompt and the end of a long answer


def shapes_to_record(slots: int, max_step_tokens: int) -> list[Shape]:
    """Rows × tokens: all that decoding needs one by one (times are not monotone), and a few of prefill."""
    rows = [*range(1, min(slots, _MOST_ROWS_EACH) + 1), *range(_MOST_ROWS_EACH + 2, slots + 1, 2)]
    decode = [(count, length) for count in rows for length in range(MIN_STEP_TOKENS, min(_LONGEST_VERIFICATION, max_step_tokens) + 1)]
    return decode + [
        (count, length) for count in _PREFILL_ROWS if count <= slots for length in _PREFILL_LENGTHS if length <= max_step_tokens
    ]


def record_engine(model: ReplayModel, is_drafter: bool, progress: Callable[[], None], rounds: int = ROUNDS) -> EngineCosts:
    """One engine alone, as it is configured to be served (threads, slots): medians of session times, a fit of the time around them."""
    engine = model.load()
    shapes = shapes_to_record(model.slots, engine.limits.max_step_tokens)
    bench = _Bench(engine)
    samples: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    around: list[_Sample] = []
    for _ in range(rounds):
        for rows, length in shapes:
            sample = bench.call(rows, length, 1, is_drafter)
            samples[rows, length].append(sample.session_ms)
            if length <= _LONGEST_VERIFICATION:
                around.append(sample)
        if is_drafter:
            around += [bench.call(rows, MIN_STEP_TOKENS, steps, True) for rows in range(1, model.slots + 1) for steps in _STEPS]
        progress()
    call_ms, run_ms, output_ms = fit_around(around, is_drafter)
    session_ms = {shape: round(median(own), 4) for shape, own in samples.items()}
    return EngineCosts(model.num_threads, session_ms, call_ms, run_ms, output_ms)


def record_engines(models: ReplayModels, progress: Callable[[], None]) -> dict[str, EngineCosts]:
    """Target and drafters. Drafters of one shape and configuration share a recording: the weights do not change the time.

    ``progress`` is called `num_recordings` times.
    """
    costs = {TARGET: record_engine(models.target, False, progress)}
    for group in _like_shaped(models.drafters):
        recorded = record_engine(models.drafters[group[0]], True, progress)
        costs |= dict.fromkeys(group, recorded)
    return costs


def num_recordings(models: ReplayModels) -> int:
    """How often `record_engines` reports progress."""
    return ROUNDS * (1 + len(_like_shaped(models.drafters)))


def _like_shaped(drafters: Mapping[str, ReplayModel]) -> list[list[str]]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, model in drafters.items():
        own = model.manifest
        key = (own.num_layers, own.hidden_size, own.num_params, own.precision, own.context_len, model.slots, model.num_threads)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class _Sample:
    num_runs: int
    num_outputs: int
    session_ms: float
    around_ms: float


class _Bench:
    """Step calls of any shape on one engine, every one of them computed from its first token on."""

    def __init__(self, engine: ModelEngine) -> None:
        self._engine = engine
        random = np.random.default_rng(0)
        self._prefix: NDArray[np.int32] = random.integers(1, engine.limits.vocab_size, _CONTEXT, dtype=np.int32)
        self._fresh = random
        for start in range(0, _CONTEXT, engine.limits.max_step_tokens):
            part = self._prefix[start : start + engine.limits.max_step_tokens]
            rows = [StepRow(uid, start, part, len(part)) for uid in range(1, engine.limits.slots + 1)]
            engine.step(StepCall(rows, 0))

    def call(self, rows: int, length: int, num_steps: int, is_drafter: bool) -> _Sample:
        """One call: a committed token and ``length - 1`` draft tokens per row for the target, committed tokens for a drafter."""
        vocab_size = self._engine.limits.vocab_size
        num_committed = length if is_drafter else 1
        step_rows = []
        for uid in range(1, rows + 1):
            tokens = self._fresh.integers(1, vocab_size, length, dtype=np.int32)
            step_rows.append(StepRow(uid, _CONTEXT, tokens, num_committed))
        call = StepCall(step_rows, num_steps, 1 if is_drafter else 0, return_logprobs=False)
        began_ns = time.perf_counter_ns()
        result = self._engine.step(call)
        wall_ns = time.perf_counter_ns() - began_ns
        outputs = sum(int(np.count_nonzero(row.sampled != NO_TOKEN)) for row in result.rows)
        return _Sample(num_steps, outputs, result.session_ns / 1e6, (wall_ns - result.session_ns) / 1e6)


def fit_around(samples: Sequence[_Sample], is_drafter: bool) -> tuple[float, float, float]:
    """Milliseconds per call, per network call and per output node: least squares on the samples' medians by shape, none below 0.

    The target never extends its own rows, so there a call is one network call, and the second figure is 0.
    """
    by_shape: dict[tuple[int, int], list[float]] = {}
    for sample in samples:
        by_shape.setdefault((sample.num_runs, sample.num_outputs), []).append(sample.around_ms)
    times = np.array([median(own) for own in by_shape.values()])
    keys = np.array(list(by_shape), np.float64)
    columns = [np.ones(len(keys)), keys[:, 0] - 1, keys[:, 1]] if is_drafter else [np.ones(len(keys)), keys[:, 1]]
    fitted = np.maximum(np.linalg.lstsq(np.stack(columns, axis=1), times, rcond=None)[0], 0.0).round(4).tolist()
    if not is_drafter:
        return fitted[0], 0.0, fitted[1]
    return max(fitted[0] - fitted[1], 0.0), fitted[1], fitted[2]
