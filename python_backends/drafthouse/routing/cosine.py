"""CoSine's adaptive routing (arXiv 2503.10325, adaptive routing): confidence and verified agreement, exploring and exploiting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import NO_TOKEN
from drafthouse.routing.contract import RouteResult, RouteRow, RouteState
from drafthouse.routing.scores import (
    F32,
    I32,
    Mask,
    agreement,
    beside_peers,
    best_first,
    harmonic,
    later_weights,
    normalise_rows,
    relative_likelihood,
    running_mean,
)

LEAST, MOST = np.float32(1e-3), np.float32(1 - 1e-3)  # signals and scores stay inside: every drafter stays choosable
USUAL = np.array([0.45, 0.6], np.float32)[:, None, None]  # both signals of a drafter before anything was verified
POOL_EVIDENCE = np.float32(2)  # positions that this is worth
MOST_BEHIND_NATS = 1.0  # per prompt token; beyond, a drafter is simply another field's


@dataclass(frozen=True, slots=True)
class CosineOptions:
    """What can be tuned. The defaults were searched on the prompts of tests/data/prompts.jsonl and checked on others.

    ``exploit_weight`` and ``explore_weight`` are CoSine's two coefficients: while a request explores, drafters are ranked by
    exploit_weight · score + explore_weight · sqrt(log(1 + N) / (1 + n)), N verified positions (no more than the decay remembers),
    n those at which the drafter proposed.
    """

    max_drafters: int = 3  # most drafters per request while it exploits; a call may ask for fewer
    explore_drafters: int = 0  # most while it explores, 0 = all; a call may ask for fewer
    margin: float = 0.85  # exploiting, a further drafter needs at least this share of the best one's score
    explore_below: float = 2.0  # a request explores while its rounds accept fewer draft tokens than this, or than half of their drafts
    explore_weight: float = 0.2
    exploit_weight: float = 1.0
    decay: float = 0.93  # weight that evidence keeps per verified position, whoever proposed there
    prior_evidence: float = 4.0  # verified positions that the prompt's likelihood is worth when generation starts
    sharpness: float = 0.3  # a drafter n nats per prompt token behind starts lower by the factor exp(-sharpness · n)
    unknown_evidence: float = 2.0  # verified positions that the mean of all drafters is worth: what an unknown one is taken for
    peer_share: float = 0.9  # how much of what all drafters at a position have in common is put down to the text

    def __post_init__(self) -> None:
        """Raises ValueError for a value outside its range."""
        shares = ("margin", "decay", "peer_share")
        amounts = ("explore_below", "explore_weight", "exploit_weight", "prior_evidence", "sharpness", "unknown_evidence")
        if self.max_drafters < 1 or self.explore_drafters < 0:
            raise ValueError(f"max_drafters must be >= 1 and explore_drafters >= 0, not {self.max_drafters} and {self.explore_drafters}")
        for name in shares:
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], not be {getattr(self, name)}")
        for name in amounts:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number >= 0, not {getattr(self, name)}")


class _Carried(NamedTuple):
    """The routing state of all rows by column."""

    signals: F32  # [2, R, D]
    evidence: F32  # [R, D]
    age: F32  # [R, D]


class _Verdicts(NamedTuple):
    """What was verified since the last call."""

    signals: F32  # [2, R, D, K]
    counted: Mask  # [R, D, K], the drafter proposed and the position was reached
    reached: Mask  # [R, K]


class CosineRouter:
    """Per request and drafter two decayed signals, confidence and verified agreement, combined harmonically.

    What counts is evidence by verified position. It loses weight with every further one, also for drafters that sat out: what is not
    renewed fades into the mean of all drafters, so that a request whose text changes its field tries others without being told.
    Before anything is verified the prompt's likelihood stands in. A request explores while its last accepted length is low.
    """

    def __init__(self, token_embeddings: NDArray[np.float32], options: CosineOptions | None = None) -> None:
        """Args: token_embeddings of the target, projected to few dimensions, [vocab, dim]."""
        self._unit_embeddings = normalise_rows(token_embeddings)
        self._options = options or CosineOptions()

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        """See `Router.route`."""
        if not rows:
            return []
        options = self._options
        logprob = np.stack([row.prompt_logprob for row in rows])
        prior = relative_likelihood(logprob, options.sharpness, MOST_BEHIND_NATS)
        carried = _columns(np.stack([row.state for row in rows]))
        verdicts = self._verdicts(rows)
        if verdicts is not None:
            carried = self._absorbed(carried, self._estimates(carried, prior), verdicts)
        scores = np.minimum(np.maximum(harmonic(self._estimates(carried, prior)), LEAST), MOST)
        weights = self._chosen(rows, scores, carried)
        state = np.stack((*carried.signals, carried.evidence, carried.age), axis=2)
        return [RouteResult(*parts) for parts in zip(state, weights, scores, strict=True)]

    def _verdicts(self, rows: Sequence[RouteRow]) -> _Verdicts | None:
        proposals, probs, target = _padded(rows)
        reached = target != NO_TOKEN
        if not reached.any():
            return None
        confidence = np.fmin(np.fmax(probs, np.float32(0)), np.float32(1))  # a probability that is not a number is none
        signals = np.stack((confidence, agreement(self._unit_embeddings, proposals, target)))
        return _Verdicts(signals, (proposals != NO_TOKEN) & reached[:, None, :], reached)

    def _absorbed(self, carried: _Carried, expected: F32, verdicts: _Verdicts) -> _Carried:
        options, counted = self._options, verdicts.counted
        weights = counted * later_weights(verdicts.reached, options.decay)[:, None, :]
        num_reached = verdicts.reached.sum(axis=1, dtype=np.float32)[:, None]
        held = carried.evidence * np.float32(options.decay) ** num_reached
        total = held + weights.sum(axis=2)
        new = beside_peers(verdicts.signals, expected, counted, options.peer_share)
        return _Carried(running_mean(carried.signals, new, weights, held, total), total, carried.age + num_reached)

    def _estimates(self, carried: _Carried, prior: F32) -> F32:
        """Each signal of each drafter [2, R, D], from its evidence, the prompt's likelihood and what is known of all drafters."""
        options, evidence = self._options, carried.evidence
        unknown = np.float32(options.unknown_evidence)
        from_prompt = np.float32(options.prior_evidence) * np.float32(options.decay) ** carried.age
        known = carried.signals * evidence
        pool = (known.sum(axis=2, keepdims=True) + USUAL * POOL_EVIDENCE) / (evidence.sum(axis=1, keepdims=True) + POOL_EVIDENCE)
        total = np.maximum(evidence + from_prompt + unknown, LEAST)
        mixed: F32 = (known + (from_prompt * prior + unknown) * pool) / total
        return np.minimum(np.maximum(mixed, LEAST), MOST)

    def _chosen(self, rows: Sequence[RouteRow], scores: F32, carried: _Carried) -> F32:
        """Routing weights [R, D]: the best of the chosen ones has 1, others their share of its score, who sits out 0."""
        options = self._options
        allowed = np.stack([row.allowed for row in rows])
        explorers = [self._is_exploring(row) for row in rows]
        exploring = np.array(explorers)[:, None]
        seats = np.array([self._seats(row, explores) for row, explores in zip(rows, explorers, strict=True)])[:, None]
        share = scores / np.maximum(np.where(allowed, scores, 0).max(axis=1, keepdims=True), LEAST)
        memory = np.float32(1 / max(1 - options.decay, 1e-6))
        curiosity = np.sqrt(np.log1p(np.minimum(carried.age, memory)) / (1 + carried.evidence))
        value = np.float32(options.exploit_weight) * scores + np.float32(options.explore_weight) * exploring * curiosity
        value[(share >= 1) & (seats > 1)] = np.inf  # who is best keeps a seat: exploring costs at most the others
        rank = best_first(np.where(allowed, value, -np.inf))
        takes_part = allowed & (rank < seats) & (exploring | (share >= options.margin))
        taken = share * takes_part
        weights: F32 = taken / np.maximum(taken.max(axis=1, keepdims=True), LEAST)
        return weights

    def _is_exploring(self, row: RouteRow) -> bool:
        # Half of a short draft is no worse than the threshold's part of a long one.
        return row.num_rounds == 0 or row.accepted_len < min(self._options.explore_below, row.drafted_len / 2)

    def _seats(self, row: RouteRow, is_exploring: bool) -> int:
        most = self._options.explore_drafters if is_exploring else self._options.max_drafters
        return min(most or len(row.allowed), row.max_drafters or len(row.allowed))


def _columns(state: F32) -> _Carried:
    """[R, D, S]; whatever is not a number, or out of range, counts as nothing known."""
    if not np.isfinite(state).all():
        state = np.nan_to_num(state, nan=0.0, posinf=0.0, neginf=0.0)
    columns = np.maximum(np.moveaxis(state, 2, 0), np.float32(0))
    return _Carried(columns[: RouteState.EVIDENCE], columns[RouteState.EVIDENCE], columns[RouteState.AGE])


def _padded(rows: Sequence[RouteRow]) -> tuple[I32, F32, I32]:
    """Rows of unequal trunk length as arrays [R, D, K], [R, D, K], [R, K], filled up with "no token"."""
    trunk_len = max(row.proposals.shape[1] for row in rows)
    shape = (len(rows), len(rows[0].allowed), trunk_len)
    proposals, target = np.full(shape, NO_TOKEN, np.int32), np.full((shape[0], trunk_len), NO_TOKEN, np.int32)
    probs = np.zeros(shape, np.float32)
    for index, row in enumerate(rows):
        length = row.proposals.shape[1]
        proposals[index, :, :length] = row.proposals
        probs[index, :, :length] = row.proposal_probs
        target[index, :length] = row.target_tokens
    return proposals, probs, target
