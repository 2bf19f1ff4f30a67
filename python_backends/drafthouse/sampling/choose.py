"""Which token comes next: argmax(logits / temperature + Gumbel noise) over what bans, top-k and top-p leave.

The choice is a pure function of a node's logits, its position, its bans and the request's sampling parameters. That is what makes the
text independent of drafters, batch and scheduling: the target chooses at every node of a draft tree what it would have chosen alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.sampling.filters import surviving_tokens
from drafthouse.sampling.noise import NoiseCache, gumbel_at
from drafthouse.sampling.scratch import Scratch

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

# Nodes filtered at once: enough to hide numpy's cost per call, few enough for the work arrays to stay in a core's cache.
_NODES_PER_PASS = 8


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
    logprobs: FloatArray  # [M], of the raw logits, or 0 when not asked for; NaN where a node's logits are not finite
    candidate_ids: NDArray[np.int32]  # [M, C]
    candidate_probs: FloatArray  # [M, C]


class Chooser:
    """Chooses tokens of one vocabulary. What it keeps (noise, work arrays) makes it faster and never changes a choice."""

    def __init__(self, vocab_size: int) -> None:
        self._noise = NoiseCache(vocab_size)
        self._scratch = Scratch(vocab_size)

    def choose(
        self, logits: FloatArray, segments: Sequence[Segment], num_candidates: int = 0, bans: Sequence[Ban] = (), with_logprobs: bool = True
    ) -> Choices:
        """Chooses at every node of ``logits [M, V]``; the segments' nodes come in the order of the rows.

        Candidates are ranked by the same noisy score, survivors of the filters first; what the filters took away follows by its logit.
        Ties go to the lower token id. Greedy requests (temperature 0) take the highest logit. Candidate probabilities are those of
        softmax(logits / temperature) before bans and filters (of softmax(logits) at temperature 0).
        """
        allowed = _without_banned(logits, bans)
        groups = group_segments(segments)
        top = np.empty((len(logits), max(1, num_candidates)), np.int64)
        probs = np.empty((len(logits), num_candidates), np.float32)
        for group in groups:
            nodes = slice(None) if len(groups) == 1 else group.nodes()
            ranked, scaled = self._scores(group, allowed[nodes])
            best = top[nodes] = self._best(ranked, scaled, top.shape[1])
            if num_candidates:
                plain = scaled if not bans else logits[nodes] / group.temperature
                probs[nodes] = np.exp(plain[np.arange(len(best))[:, None], best] - self._log_sum_exp(plain)[:, None])
        sampled = top[:, 0]
        candidates = top[:, :num_candidates].astype(np.int32)
        # Without log-probabilities a finite logit becomes 0, and one that is not becomes NaN.
        logprobs = self.log_probs_of(logits, sampled) if with_logprobs else logits[np.arange(len(logits)), sampled] * np.float32(0.0)
        return Choices(sampled.astype(np.int32), logprobs, candidates, probs)

    def join(self, parts: Sequence[FloatArray]) -> FloatArray:
        """The rows of all ``parts``, one after the other."""
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def log_probs_of(self, logits: FloatArray, token_ids: IntArray) -> FloatArray:
        """Natural log-softmax ``[n]`` of ``logits [n, V]`` at one token id per row."""
        picked: FloatArray = logits[np.arange(len(logits)), token_ids] - self._log_sum_exp(logits)
        return picked

    def _scores(self, group: "NodeGroup", logits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What to rank the group's ``logits [n, V]`` by (-inf where filtered), and logits / temperature."""
        params = group.segments[0].params
        if params.temperature == 0:
            return logits, logits
        scaled = np.divide(logits, group.temperature, out=self._scratch.floats("scaled", len(logits)))
        ranked = self._scratch.floats("ranked", len(logits))
        if params.top_k > 0 or params.top_p < 1.0:
            ranked.fill(-np.inf)
            for start in range(0, len(scaled), _NODES_PER_PASS):
                self._rank_survivors(group, scaled, ranked, slice(start, start + _NODES_PER_PASS))
        else:
            keys = [(part.params.seed, position) for part in group.segments for position in part.positions.tolist()]
            self._noise.write_rows(keys, ranked)
            ranked += scaled
        return ranked, scaled

    def _rank_survivors(self, group: "NodeGroup", scaled: FloatArray, ranked: FloatArray, part: slice) -> None:
        """Writes the noisy scores of what passes the filters into ``ranked``, for the nodes in ``part``."""
        params = group.segments[0].params
        weights = self._weights(scaled[part])
        total = weights.sum(axis=1, dtype=np.float64)
        is_listed = self._scratch.bools(len(weights))
        rows, token_ids = surviving_tokens(scaled[part], weights, total, params.top_k, params.top_p, is_listed)
        nodes = rows + part.start
        scores = scaled[nodes, token_ids]
        contested = (np.bincount(rows) > 1)[rows]  # a single survivor needs no noise to win
        if contested.any():
            owner = np.repeat(np.arange(len(group.segments)), [len(segment.positions) for segment in group.segments])[nodes[contested]]
            positions = np.concatenate([segment.positions for segment in group.segments])[nodes[contested]]
            seeds = [segment.params.seed for segment in group.segments]
            scores[contested] += gumbel_at(seeds, owner, positions, token_ids[contested])
        ranked[nodes, token_ids] = scores

    def _weights(self, scores: FloatArray) -> FloatArray:
        """``exp(scores - max)`` per row, in work memory."""
        weights = np.subtract(scores, scores.max(axis=1, keepdims=True), out=self._scratch.floats("weights", len(scores)))
        np.exp(weights, out=weights)
        return weights

    def _log_sum_exp(self, logits: FloatArray) -> FloatArray:
        total: FloatArray = np.log(self._weights(logits).sum(axis=1)) + logits.max(axis=1)
        return total

    def _best(self, ranked: FloatArray, fallback: FloatArray, count: int) -> IntArray:
        """Token ids ``[n, count]`` from the highest rank down; where only -inf is left, the highest ``fallback`` not yet taken."""
        top = np.empty((len(ranked), count), np.int64)
        top[:, 0] = ranked.argmax(axis=1)
        if count == 1:
            return top
        work = self._scratch.floats("work", len(ranked))
        np.copyto(work, ranked)
        nodes = np.arange(len(ranked))
        exhausted = np.zeros((len(ranked), count), np.bool_)
        for place in range(1, count):
            work[nodes, top[:, place - 1]] = -np.inf
            top[:, place] = work.argmax(axis=1)
            exhausted[:, place] = work[nodes, top[:, place]] == -np.inf
        if exhausted.any():
            for node in np.flatnonzero(exhausted[:, -1]):
                _fill(top[node], fallback[node], int(count - exhausted[node].sum()))
        return top


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes that share temperature and filters."""

    segments: list[Segment]
    first_nodes: list[int]  # of each segment

    @property
    def temperature(self) -> np.float32:
        """What to divide logits by: 1 for greedy requests."""
        return np.float32(self.segments[0].params.temperature or 1.0)

    def nodes(self) -> IntArray:
        """``[n]``, the rows of the logits that belong to the group, in the order of its segments."""
        ranges = [np.arange(first, first + len(part.positions)) for first, part in zip(self.first_nodes, self.segments, strict=True)]
        return np.concatenate(ranges)


def group_segments(segments: Sequence[Segment]) -> list[NodeGroup]:
    """The segments' nodes, those together that are ranked in the same way."""
    groups: dict[tuple[float, int, float], NodeGroup] = {}
    first = 0
    for segment in segments:
        params = segment.params
        key = (params.temperature, params.top_k, params.top_p) if params.temperature else (0.0, 0, 1.0)
        group = groups.get(key)
        if group is None:
            group = groups[key] = NodeGroup([], [])
        group.segments.append(segment)
        group.first_nodes.append(first)
        first += len(segment.positions)
    return list(groups.values())


def _without_banned(logits: FloatArray, bans: Sequence[Ban]) -> FloatArray:
    """The logits themselves, or a copy with -inf at what is banned."""
    if not bans:
        return logits
    scores = logits.copy()
    for ban in bans:
        scores[ban.node, ban.token_ids] = -np.inf
    return scores


def _fill(top: IntArray, fallback: FloatArray, taken: int) -> None:
    """Completes ``top`` from place ``taken`` on with the highest ``fallback`` scores that it does not hold yet."""
    rest = fallback.copy()
    rest[top[:taken]] = -np.inf
    for place in range(taken, len(top)):
        top[place] = rest.argmax()
        rest[top[place]] = -np.inf
