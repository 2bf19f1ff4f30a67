"""What the pipeline asks of the router. All state travels in the call: a crash or a second instance loses nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class RouteState(IntEnum):
    """Columns of the routing state, one row per drafter. All zeros = a new request; only the router gives them meaning."""

    CONFIDENCE = 0  # the drafter's own probability of its proposals, decayed mean
    AGREEMENT = 1  # how near its proposals came to the target's tokens, decayed mean
    EVIDENCE = 2  # decayed number of verified positions at which it proposed
    AGE = 3  # verified positions of the request so far, whoever proposed


NUM_STATE = len(RouteState)


def new_route_state(num_drafters: int) -> NDArray[np.float32]:
    """The state of a request of which nothing is known: [D, S]."""
    return np.zeros((num_drafters, NUM_STATE), np.float32)


@dataclass(frozen=True, slots=True)
class RouteRow:
    """What is known about one request. D = number of drafters, S = `NUM_STATE`, K = trunk positions verified since the last call."""

    request_uid: int
    prompt_logprob: NDArray[np.float32]  # [D], mean nats per prompt token under each drafter (<= 0); NaN = not scored
    state: NDArray[np.float32]  # [D, S], as returned last time
    proposals: NDArray[np.int32]  # [D, K], proposals round after round, -1 = none
    proposal_probs: NDArray[np.float32]  # [D, K]
    target_tokens: NDArray[np.int32]  # [K], what the target chose at each trunk position, -1 = not reached
    allowed: NDArray[np.bool_]  # [D], False = pinned out by the request, or gone
    num_rounds: int = 0  # verified rounds these positions come from
    accepted_len: float = 0.0  # mean number of accepted draft tokens per such round
    drafted_len: float = 0.0  # mean length of what was drafted in such a round
    max_drafters: int = 0  # most drafters wanted for this request, 0 = as many as the router likes


@dataclass(frozen=True, slots=True)
class RouteResult:
    """The decision for one request."""

    state: NDArray[np.float32]  # [D, S], new routing state
    weights: NDArray[np.float32]  # [D], 0 = sits out; positive weights scale the drafter's confidence in fusion
    scores: NDArray[np.float32]  # [D], in (0, 1): how good each drafter is for this request, whether it takes part or not


class Router(Protocol):
    """Anything that can route."""

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        """One result per row, in order."""
        ...
