"""Ask the router which drafters work for which request."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drafthouse.pipeline.state import Feedback, RequestState
from drafthouse.routing.contract import Router, RouteResult, RouteRow

logger = logging.getLogger(__name__)
NUM_UNROUTED_DRAFTERS = 2  # drafters that share the work when the router has not answered


class RouteStage:
    """Keeps `RequestState.weights` and `scores` up to date. Never fails: without a router the weights stay as they are."""

    def __init__(self, router: Router | None, route_every: int) -> None:
        """``route_every``: verified rounds of a request from one decision to the next; they are reported together."""
        self._router = router
        self._route_every = route_every
        self._is_failing = False

    async def first(self, states: Sequence[RequestState]) -> None:
        """Give every request that has none its first weights, from how well each drafter predicted the prompt."""
        new = [state for state in states if state.weights is None]
        if not new:
            return
        await self._route([state for state in new if _is_routable(state)])
        for state in new:
            if state.weights is None:
                state.weights = default_weights(state.allowed)

    async def refresh(self, states: Sequence[RequestState]) -> None:
        """Tell the router how the verified rounds since the last time went; its answer counts from the next draft on.

        Not after every round: the call runs beside the target, and takes time from its session where cores are few.
        """
        due = [state for state in states if len(state.feedback) >= self._route_every]
        await self._route([state for state in due if _is_routable(state)])
        for state in due:
            state.feedback = []

    async def _route(self, states: Sequence[RequestState]) -> None:
        if self._router is None or not states:
            return
        try:
            results = await self._router.route([_row(state) for state in states])
            for state, result in zip(states, results, strict=True):
                _apply(state, result)
        except Exception:
            if not self._is_failing:  # once per outage, not once per round
                logger.exception("the router fails; going on with the weights at hand")
            self._is_failing = True
        else:
            self._is_failing = False


def default_weights(allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Equal weights for the first allowed drafters: [D] -> [D]."""
    weights = np.zeros(len(allowed), np.float32)
    weights[np.flatnonzero(allowed)[:NUM_UNROUTED_DRAFTERS]] = 1.0
    return weights


def _is_routable(state: RequestState) -> bool:
    return int(np.count_nonzero(state.allowed)) > 1  # with one drafter there is nothing to choose


def _row(state: RequestState) -> RouteRow:
    rounds = state.feedback or [_nothing_verified(len(state.allowed))]
    scored = state.num_scored > 0
    mean = np.where(scored, state.prompt_logprob / np.maximum(state.num_scored, 1), np.nan)
    return RouteRow(
        request_uid=state.request_uid,
        prompt_logprob=mean.astype(np.float32),
        scores=state.scores,
        proposals=np.concatenate([verified.proposals for verified in rounds], axis=1),
        proposal_probs=np.concatenate([verified.proposal_probs for verified in rounds], axis=1),
        target_tokens=np.concatenate([verified.target_tokens for verified in rounds]),
        allowed=state.allowed,
    )


def _nothing_verified(num_drafters: int) -> Feedback:
    return Feedback(np.empty((num_drafters, 0), np.int32), np.empty((num_drafters, 0), np.float32), np.empty(0, np.int32))


def _apply(state: RequestState, result: RouteResult) -> None:
    if result.weights.shape != state.allowed.shape or not np.isfinite(result.weights).all():
        raise ValueError(f"router weights of shape {result.weights.shape} for {len(state.allowed)} drafters, or not finite")
    state.scores = result.scores
    state.weights = np.where(state.allowed, result.weights, np.float32(0.0))
