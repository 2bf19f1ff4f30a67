"""Route by how well each drafter predicted the prompt, then by how well it did (CoSine, arXiv 2503.10325, adaptive routing)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import NO_TOKEN
from drafthouse.routing.contract import RouteResult, RouteRow
from drafthouse.routing.scores import F32, I32, agreement, choose, decayed, first_scores, harmonic, normalise_rows

MIN_SCORE = np.float32(1e-6)  # keeps the best drafter choosable however badly all of them did


@dataclass(frozen=True, slots=True)
class PromptLikelihoodOptions:
    """What can be tuned. The defaults were chosen on prompts of four fields, by tokens per round, and checked on others.

    On prompts of one field any margin from 0.7 to 0.95 gives the same text length per round within 0.5 %. A second drafter
    costs one call per token where a lone one costs one call per round, so it has to be nearly as good.
    """

    max_drafters: int = 2  # most drafters per request
    margin: float = 0.9  # a second drafter needs at least this share of the best one's score
    decay: float = 0.9  # weight that older evidence keeps per verified position
    prior: float = 0.3  # score with which the drafter that predicts the prompt best starts
    sharpness: float = 1.0  # a drafter n nats per prompt token behind starts lower by the factor exp(-sharpness · n)

    def __post_init__(self) -> None:
        """Raises ValueError for a value outside its range."""
        shares = (self.margin, self.decay, self.prior)
        if self.max_drafters < 1 or self.sharpness < 0 or not all(0 < share <= 1 for share in shares):
            raise ValueError(f"max_drafters >= 1, sharpness >= 0, margin, decay and prior in (0, 1]: {self}")


class PromptLikelihoodRouter:
    """At most ``max_drafters`` per request, chosen by a score that is carried in the call.

    A score starts from the prompt's likelihood. Every verified position at which a drafter proposed moves it towards the
    harmonic mean of the drafter's confidence and of its agreement with the target, so that neither being sure nor being
    right by luck is enough. Drafters that did not propose keep their score; one that was never scored keeps NaN.
    """

    def __init__(self, token_embeddings: NDArray[np.float32], options: PromptLikelihoodOptions | None = None) -> None:
        """Args: token_embeddings of the target, projected to few dimensions, [vocab, dim]."""
        self._unit_embeddings = normalise_rows(token_embeddings)
        self._options = options or PromptLikelihoodOptions()

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        """See `Router.route`."""
        if not rows:
            return []
        options = self._options
        carried = np.stack([row.scores for row in rows]).astype(np.float32)
        start = first_scores(np.stack([row.prompt_logprob for row in rows]).astype(np.float32), options.prior, options.sharpness)
        current = np.maximum(self._updated(rows, np.where(np.isnan(carried), start, carried)), MIN_SCORE)
        weights = choose(current, np.stack([row.allowed for row in rows]), options.max_drafters, options.margin)
        unknown = np.stack([np.isnan(row.scores) & np.isnan(row.prompt_logprob) & ~_proposed(row) for row in rows])
        new = np.where(unknown, np.float32(np.nan), current)
        return [RouteResult(scores, weight) for scores, weight in zip(new, weights, strict=True)]

    def _updated(self, rows: Sequence[RouteRow], scores: F32) -> F32:
        proposals, probs, target = _padded(rows)
        if proposals.shape[2] == 0:
            return scores
        counted = (proposals != NO_TOKEN) & (target != NO_TOKEN)[:, None, :]
        confidence = np.clip(np.nan_to_num(probs), 0, 1)
        evidence = harmonic(confidence, agreement(self._unit_embeddings, proposals, target))
        return decayed(scores, evidence, counted, self._options.decay)


def _proposed(row: RouteRow) -> NDArray[np.bool_]:
    proposed: NDArray[np.bool_] = ((row.proposals != NO_TOKEN) & (row.target_tokens != NO_TOKEN)).any(axis=1)
    return proposed


def _padded(rows: Sequence[RouteRow]) -> tuple[I32, F32, I32]:
    """Rows of unequal trunk length as arrays [R, D, K], [R, D, K], [R, K], filled up with "no token"."""
    trunk_len = max(row.proposals.shape[1] for row in rows)
    shape = (len(rows), len(rows[0].scores), trunk_len)
    proposals, target = np.full(shape, NO_TOKEN, np.int32), np.full((shape[0], trunk_len), NO_TOKEN, np.int32)
    probs = np.zeros(shape, np.float32)
    for index, row in enumerate(rows):
        length = row.proposals.shape[1]
        proposals[index, :, :length] = row.proposals
        probs[index, :, :length] = row.proposal_probs
        target[index, :length] = row.target_tokens
    return proposals, probs, target
