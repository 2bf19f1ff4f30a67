"""Which token comes next: argmax(logits / temperature + Gumbel noise) over what bans, top-k and top-p leave.

The choice is a pure function of a node's logits, its position, its bans and the request's sampling parameters. That is what makes the
text independent of drafters, batch and scheduling: the target chooses at every node of a draft tree what it would have chosen alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.sampling.filters import MAX_ROWS, surviving_tokens
from drafthouse.sampling.noise import NoiseCache, gumbel_at

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive nodes of one request."""

    params: SamplingParams
    positions: IntArray  # [n], absolute position of the token being chosen


@dataclass(frozen=True, slots=True)
class Ban:
    """Tokens that a node must not choose."""

    node: int
    token_ids: IntArray


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen at M nodes, with C candidates each (see ``RowResult``)."""

    sampled: NDArray[np.int32]  # [M]
    logprobs: FloatArray  # [M], of the raw logits; NaN where a node's logits are not finite
    candidate_ids: NDArray[np.int32]  # [M, C]
    candidate_probs: FloatArray  # [M, C]


def choose(
    logits: FloatArray, segments: Sequence[Segment], noise: NoiseCache, num_candidates: int = 0, bans: Sequence[Ban] = ()
) -> Choices:
    """Chooses at every node of ``logits [M, V]``; the segments' nodes come in the order of the rows.

    Candidates are ranked by the same noisy score, survivors of the filters first; what the filters took away follows by its logit.
    Ties go to the lower token id. Greedy requests (temperature 0) take the highest logit.
    """
    scores = _without_banned(logits, bans)
    if all(segment.params.temperature == 0 for segment in segments):
        temperatures = None
        ranked, is_scratch = scores, scores is not logits
    else:
        temperatures = _per_node([segment.params.temperature for segment in segments], segments, np.float32)
        scores = scores / np.where(temperatures > 0, temperatures, np.float32(1))[:, None]
        ranked, is_scratch = _noisy_scores(scores, segments, temperatures, noise), True
    top = _best(ranked, scores, max(1, num_candidates), is_scratch)
    log_total = _log_sum_exp(logits)
    nodes = np.arange(len(logits))[:, None]
    chosen = logits[nodes, top]
    logprobs = chosen[:, 0] - log_total
    if not num_candidates:
        return Choices(top[:, 0].astype(np.int32), logprobs, np.empty((len(top), 0), np.int32), np.empty((len(top), 0), np.float32))
    if temperatures is not None:
        divisor = np.where(temperatures > 0, temperatures, np.float32(1))[:, None]
        log_total = _log_sum_exp(logits / divisor)
        chosen = chosen / divisor
    return Choices(top[:, 0].astype(np.int32), logprobs, top.astype(np.int32), np.exp(chosen - log_total[:, None]))


def log_probs_of(logits: FloatArray, token_ids: IntArray) -> FloatArray:
    """Natural log-softmax ``[n]`` of ``logits [n, V]`` at one token id per row."""
    picked: FloatArray = logits[np.arange(len(logits)), token_ids] - _log_sum_exp(logits)
    return picked


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    peak = logits.max(axis=1, keepdims=True)
    shifted = logits - peak
    np.exp(shifted, out=shifted)
    total: FloatArray = np.log(shifted.sum(axis=1)) + peak[:, 0]
    return total


def _per_node(values: Sequence[float], segments: Sequence[Segment], dtype: type[Scalar]) -> NDArray[Scalar]:
    return np.repeat(np.array(values, dtype), [len(segment.positions) for segment in segments])


def _without_banned(logits: FloatArray, bans: Sequence[Ban]) -> FloatArray:
    """The logits themselves, or a copy with -inf at what is banned."""
    if not bans:
        return logits
    scores = logits.copy()
    for ban in bans:
        scores[ban.node, ban.token_ids] = -np.inf
    return scores


def _noisy_scores(scaled: FloatArray, segments: Sequence[Segment], temperatures: FloatArray, noise: NoiseCache) -> FloatArray:
    """Scores ``[M, V]`` to rank by: plain where greedy, with noise elsewhere, -inf where a filter took a token away."""
    ranked = scaled.copy()
    top_k = _per_node([segment.params.top_k for segment in segments], segments, np.int64)
    top_p = _per_node([segment.params.top_p for segment in segments], segments, np.float64)
    seeds = [segment.params.seed for segment in segments]
    seed_of = np.repeat(np.arange(len(segments)), [len(segment.positions) for segment in segments])
    positions = np.concatenate([segment.positions for segment in segments])
    sampled = temperatures > 0
    filtered = sampled & ((top_k > 0) | (top_p < 1.0))
    unfiltered = np.flatnonzero(sampled & ~filtered)
    if len(unfiltered):
        ranked[unfiltered] += noise.rows([(seeds[seed_of[node]], int(positions[node])) for node in unfiltered])
    nodes = np.flatnonzero(filtered)
    for start in range(0, len(nodes), MAX_ROWS):
        part = nodes[start : start + MAX_ROWS]
        rows, token_ids = surviving_tokens(scaled[part], top_k[part], top_p[part])
        survivors = part[rows]
        ranked[part] = -np.inf
        values = scaled[survivors, token_ids]
        ranked[survivors, token_ids] = values + gumbel_at(seeds, seed_of[survivors], positions[survivors], token_ids)
    return ranked


def _best(ranked: FloatArray, fallback: FloatArray, count: int, is_scratch: bool) -> IntArray:
    """Token ids ``[M, count]`` from the highest rank down; where only -inf is left, the highest ``fallback`` that was not taken."""
    if count == 1:
        best_only: IntArray = ranked.argmax(axis=1)[:, None]
        return best_only
    top = np.empty((len(ranked), count), np.int64)
    nodes = np.arange(len(ranked))
    work = ranked if is_scratch else ranked.copy()
    exhausted = np.zeros((len(ranked), count), np.bool_)
    for place in range(count):
        best = work.argmax(axis=1)
        exhausted[:, place] = work[nodes, best] == -np.inf
        work[nodes, best] = -np.inf
        top[:, place] = best
    for node in np.flatnonzero(exhausted.any(axis=1)):
        taken = top[node, ~exhausted[node]]
        rest = fallback[node].copy()
        rest[taken] = -np.inf
        for place in range(len(taken), count):
            top[node, place] = rest.argmax()
            rest[top[node, place]] = -np.inf
    return top
