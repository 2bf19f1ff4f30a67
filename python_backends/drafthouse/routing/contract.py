"""What the pipeline asks of the router. All state travels in the call: a crash or a second instance loses nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RouteRow:
    """What is known about one request. D = number of drafters, K = trunk positions verified since the last call."""

    request_uid: int
    prompt_logprob: NDArray[np.float32]  # [D], mean nats per prompt token under each drafter (<= 0); NaN = not scored
    scores: NDArray[np.float32]  # [D], routing state as returned last time; NaN in a new request
    proposals: NDArray[np.int32]  # [D, K], proposals round after round, -1 = none
    proposal_probs: NDArray[np.float32]  # [D, K]
    target_tokens: NDArray[np.int32]  # [K], what the target chose at each trunk position, -1 = not reached
    allowed: NDArray[np.bool_]  # [D], False = pinned out by the request, or gone


@dataclass(frozen=True, slots=True)
class RouteResult:
    """The decision for one request."""

    scores: NDArray[np.float32]  # [D], new routing state
    weights: NDArray[np.float32]  # [D], 0 = sits out; positive weights scale the drafter's confidence in fusion


class Router(Protocol):
    """Anything that can route."""

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        """One result per row, in order."""
        ...
