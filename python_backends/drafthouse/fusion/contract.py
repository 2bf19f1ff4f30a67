"""What the pipeline asks of fusion, and what fusion asks of a drafter, wherever that drafter lives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.engine.contract import EngineClient


class DrafterClient(EngineClient, Protocol):
    """An EngineClient with a name. When it raises EngineError the drafter is left out; the text does not change."""

    @property
    def name(self) -> str:
        """The drafter's domain name, e.g. ``code``."""
        ...


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """How the trees of one call are grown. The default is a chain fused as the model's configuration says."""

    fuse_every: int = 0  # tokens that drafters write by themselves between two fusion points; 0 = the fusion model's configuration
    num_siblings: int = 0  # each drafter's next best candidates that are offered beside its own token
    keep_divergent: bool = False  # what a drafter wrote after it had left the trunk stays as a branch
    max_nodes: int = 64  # of one tree; the most promising ones stay
    min_chance: float = 0.0  # a path whose chance of acceptance falls below this is not grown further
    # [2, D, 3], coefficients (a, b, c) of chance = sigmoid(a + b · logit(probability) + c · logit(routing score)): for what a drafter
    # chooses itself, and for its other candidates. None: a probability is taken for the chance.
    calibration: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One request's part in a draft round.

    ``tokens`` are committed tokens from absolute position ``prefix_len`` to the last one (at least one). They reach
    back far enough for the slowest participating drafter to catch up, at any length: fusion chunks them.

    A draft may go on from an earlier one that is still being verified: ``base`` is that tree, ``leaf`` the node of it from which
    the drafters go on.
    """

    request_uid: int
    prefix_len: int
    tokens: NDArray[np.int32]  # [num_tokens >= 1]
    num_draft_tokens: int  # longest trunk wanted beyond ``leaf``; 0 = only take in the tokens (prompt scoring, catching up)
    weights: NDArray[np.float32]  # [num_drafters], routing weight; 0 = does not take part
    sampling: SamplingParams = field(default_factory=SamplingParams)
    scores: NDArray[np.float32] | None = None  # [num_drafters], routing scores in [0, 1] for the calibration; None = not known
    base: DraftTree = field(default_factory=DraftTree)
    leaf: int = ROOT


@dataclass(frozen=True, slots=True)
class DraftRowResult:
    """What one request got out of a draft round. D = number of drafters, K = trunk tokens grown in this round."""

    # The whole tree, ``base`` included (in its order, first, whenever there is one). A new tree begins with its trunk.
    tree: DraftTree
    trunk: NDArray[np.int32]  # [K], the trunk's new nodes in order
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
    plan: DraftPlan = field(default_factory=DraftPlan)


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
