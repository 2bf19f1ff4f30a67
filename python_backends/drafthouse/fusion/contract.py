"""What the pipeline asks of fusion, and what fusion asks of a drafter, wherever that drafter lives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.core.tree import DraftTree
from drafthouse.engine.contract import EngineClient


class DrafterClient(EngineClient, Protocol):
    """An EngineClient with a name. When it raises EngineError the drafter is left out; the text does not change."""

    @property
    def name(self) -> str:
        """The drafter's domain name, e.g. ``code``."""
        ...


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One request's part in a draft round.

    ``tokens`` are committed tokens from absolute position ``prefix_len`` to the last one (at least one). They reach
    back far enough for the slowest participating drafter to catch up, at any length: fusion chunks them.
    """

    request_uid: int
    prefix_len: int
    tokens: NDArray[np.int32]  # [num_tokens >= 1]
    num_draft_tokens: int  # longest trunk wanted; 0 = only take in the tokens (prompt scoring, catching up)
    weights: NDArray[np.float32]  # [num_drafters], routing weight; 0 = does not take part
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class DraftRowResult:
    """What one request got out of a draft round. D = number of drafters, K = trunk length."""

    tree: DraftTree
    drafter_status: NDArray[np.int32]  # [D], engine RowStatus; ABSENT for drafters that were not asked or not there
    cached_len: NDArray[np.int32]  # [D], committed tokens each drafter now holds (0 where unknown)
    proposals: NDArray[np.int32]  # [D, K], what each drafter proposed at each trunk position, -1 = nothing
    proposal_probs: NDArray[np.float32]  # [D, K], the drafter's own probability of its proposal
    prompt_logprob: NDArray[np.float32]  # [D], sum in nats over the committed tokens taken in during this call
    num_scored: NDArray[np.int32]  # [D]


@dataclass(frozen=True, slots=True)
class DraftCall:
    """One draft round for a batch."""

    rows: Sequence[DraftRow]
    release_uids: Sequence[int] = ()  # finished requests, forgotten by every drafter first


@dataclass(frozen=True, slots=True)
class DraftResult:
    """The answer to a draft round."""

    rows: Sequence[DraftRowResult]
    draft_session_ns: int  # session time on the critical path: per fusion point the slowest drafter, summed


class Fusion(Protocol):
    """Anything that can run a draft round."""

    async def draft(self, call: DraftCall) -> DraftResult:
        """Never raises for a drafter's fault; with no drafter left it returns empty trees."""
        ...
