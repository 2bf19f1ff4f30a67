"""Ask the router which drafters work for which request."""

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.clock import now_ns
from drafthouse.fusion.contract import DraftRow, DraftRowResult
from drafthouse.pipeline.health import DrafterHealth
from drafthouse.pipeline.state import Feedback, RequestState
from drafthouse.routing.contract import Router, RouteResult, RouteRow

logger = logging.getLogger(__name__)
NUM_UNROUTED_DRAFTERS = 2  # drafters that share the work when the router has not answered


class RouteStage:
    """Keeps a request's routing fields up to date. Never fails: without a router the weights stay as they are.

    ``max_drafters`` is the most drafters wanted per request, 0 = as many as the router likes. Whoever balances drafting and
    verifying sets it; it counts from the next decision on.
    """

    def __init__(self, router: Router | None, route_every: int) -> None:
        """``route_every``: verified rounds of a request from one decision to the next; they are reported together."""
        self.max_drafters = 0
        self._router = router
        self._route_every = route_every
        self._health = DrafterHealth()
        self._is_failing = False
        self._one_call = asyncio.Lock()  # new requests are routed beside others' news

    async def first(self, states: Sequence[RequestState]) -> None:
        """Give every request that has none its first weights, from how well each drafter predicted the prompt."""
        new = [state for state in states if state.weights is None]
        if not new:
            return
        await self._route(new)
        for state in new:
            if state.weights is None:
                state.weights = default_weights(state.allowed)

    async def refresh(self, states: Sequence[RequestState]) -> None:
        """Tell the router how the verified rounds since the last time went; its answer counts from the next draft on.

        Not after every round: the call runs beside the target, and takes time from its session where cores are few.
        """
        due = [state for state in states if len(state.feedback) >= self._route_every]
        await self._route(due)
        for state in due:
            state.feedback = []

    def weights(self, state: RequestState) -> NDArray[np.float32]:
        """The request's weights for the coming draft round, without drafters that do not answer: [D].

        Where that leaves none of the chosen ones, others that the request may use step in. A request that is pinned to drafters
        which are all gone gets zeros: it goes on without drafts, since waiting for them would hold up everyone in its batch.
        """
        available = self._health.available(len(state.allowed), now_ns())
        wanted = state.allowed.astype(np.float32) if state.weights is None else state.weights
        weights = np.where(available, wanted, np.float32(0.0))
        return weights if weights.any() else default_weights(state.allowed & available)

    def note(self, rows: Sequence[DraftRow], answers: Sequence[DraftRowResult]) -> None:
        """Hear of a draft round, to know which drafters answer."""
        self._health.note(rows, answers, now_ns())

    async def _route(self, states: Sequence[RequestState]) -> None:
        if self._router is None or not states:
            return
        async with self._one_call:
            await self._ask(self._router, states)

    async def _ask(self, router: Router, states: Sequence[RequestState]) -> None:
        available = self._health.available(len(states[0].allowed), now_ns())
        routable = [state for state in states if np.count_nonzero(state.allowed & available) > 1]  # otherwise there is no choice
        if not routable:
            return
        try:
            results = await router.route([_row(state, available, self.max_drafters) for state in routable])
            for state, result in zip(routable, results, strict=True):
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


def _row(state: RequestState, available: NDArray[np.bool_], max_drafters: int) -> RouteRow:
    rounds = state.feedback or [_nothing_verified(len(state.allowed))]
    num_rounds = len(state.feedback)
    scored = state.num_scored > 0
    mean = np.where(scored, state.prompt_logprob / np.maximum(state.num_scored, 1), np.nan)
    return RouteRow(
        request_uid=state.request_uid,
        prompt_logprob=mean.astype(np.float32),
        state=state.route_state,
        proposals=np.concatenate([verified.proposals for verified in rounds], axis=1),
        proposal_probs=np.concatenate([verified.proposal_probs for verified in rounds], axis=1),
        target_tokens=np.concatenate([verified.target_tokens for verified in rounds]),
        allowed=state.allowed & available,
        num_rounds=num_rounds,
        accepted_len=sum(map(_num_accepted, rounds)) / max(num_rounds, 1),
        drafted_len=sum(len(verified.target_tokens) for verified in rounds) / max(num_rounds, 1),
        max_drafters=max_drafters,
    )


def _num_accepted(verified: Feedback) -> int:
    """Positions at which somebody proposed what the target chose: with branches, all of them lie on the accepted path."""
    return int((verified.proposals == verified.target_tokens).any(axis=0, where=verified.proposals >= 0).sum())


def _nothing_verified(num_drafters: int) -> Feedback:
    return Feedback(np.empty((num_drafters, 0), np.int32), np.empty((num_drafters, 0), np.float32), np.empty(0, np.int32))


def _apply(state: RequestState, result: RouteResult) -> None:
    if result.weights.shape != state.allowed.shape or not np.isfinite(result.weights).all():
        raise ValueError(f"router weights of shape {result.weights.shape} for {len(state.allowed)} drafters, or not finite")
    state.route_state = result.state
    state.scores = result.scores
    state.weights = np.where(state.allowed, result.weights, np.float32(0.0))
