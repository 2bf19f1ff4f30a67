"""The engine contract: what a caller may ask of a target or drafter engine, and what it gets back.

Callers name *requests* (``request_uid``), never cache slots. The engine remembers which tokens it holds for each
request and reuses the longest part that agrees with what the caller sends, so every call is idempotent and every
surprise (a reloaded engine, a repeated call, a drafter that sat out, a rejected draft) heals the same way: the
engine answers ``NEEDS_PREFILL`` with ``cached_len`` and the caller sends the tokens from there on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.chance import LEAST_PROB, logit
from drafthouse.core.sampling_params import SamplingParams

_LARGEST_SCORE = 700.0  # exp of more does not fit a double


class RowStatus(IntEnum):
    """What happened to one row of a step call. One row's trouble never fails the others."""

    OK = 0
    NEEDS_PREFILL = 1  # nothing was computed: send tokens from `cached_len` on
    NO_SLOT = 2  # every slot holds another request: release one first
    ERROR = 3  # this row is malformed or too long: see `error`
    ABSENT = 4  # used by fusion: this drafter was not asked, or did not answer in time


@dataclass(frozen=True, slots=True)
class StepRow:
    """One request's part in a step call.

    ``tokens[:num_committed]`` are committed (they will never be taken back); the rest is a draft tree whose node i
    follows ``tokens[parents[i]]``. ``tokens[0]`` has absolute position ``prefix_len``; a committed token's position
    follows by counting, a draft node's by its depth. ``num_committed`` is at least 1: the last committed token is
    the root of the tree and is always computed anew, because its logits give the first sample.
    """

    request_uid: int  # uint64, unique per request for the lifetime of the caller
    prefix_len: int  # committed tokens before tokens[0]; 0 when the row starts the sequence
    tokens: NDArray[np.int32]  # [num_tokens]
    num_committed: int
    parents: NDArray[np.int32] | None = None  # [num_tokens], index within `tokens`, -1 for tokens[0]; None = a chain
    sampling: SamplingParams = field(default_factory=SamplingParams)
    chance: float = 1.0  # with num_steps > 1: that the last token itself is accepted, for `GrowthStop`


@dataclass(frozen=True, slots=True)
class GrowthStop:
    """When a row stops growing: by end tokens, and by what its path is worth.

    A sampled token of candidate probability p is accepted with chance sigmoid(intercept + slope * logit(p)); `StepRow.chance` times
    those of everything sampled since must stay at or above ``min_chance`` for the token to be fed back.
    """

    slope: float
    intercept: float
    min_chance: float  # 0 = end tokens only

    def chance(self, prob: float) -> float:
        """Chance that a token of probability ``prob`` is accepted after its accepted parent."""
        score = self.intercept + self.slope * logit(prob, LEAST_PROB)
        return 1.0 / (1.0 + math.exp(-min(max(score, -_LARGEST_SCORE), _LARGEST_SCORE)))


@dataclass(frozen=True, slots=True)
class StepCall:
    """A batch of rows with the options they share."""

    rows: Sequence[StepRow]
    num_steps: int = 1  # > 1: the engine feeds its own samples back, num_steps - 1 times, to rows whose drafts are chains; 0: do not sample
    num_candidates: int = 0  # best tokens per output node to return with probabilities (drafters)
    return_logprobs: bool = True  # False saves a softmax per output node: `logprobs` is 0 then
    # Sum of log p(tokens[i+1] | ...) over the row's committed tokens; all are computed anew, so that a repeated call scores the same.
    return_prompt_logprob: bool = False
    stop: GrowthStop | None = None  # None: every row grows num_steps - 1 times, end tokens or not


@dataclass(frozen=True, slots=True)
class RowResult:
    """The answer to one row.

    The *output nodes* are the last committed token, then the row's draft nodes in order, then the self-extended nodes, each after the one
    before. ``sampled[j]`` is the token that this model chooses after output node j. Extended nodes lie in the cache as drafts do: a later
    row that sends them as committed tokens finds them there.
    """

    status: RowStatus
    cached_len: int  # committed tokens of this request that the engine holds after the call
    sampled: NDArray[np.int32]  # [num_outputs]
    logprobs: NDArray[np.float32]  # [num_outputs], log-softmax of the raw logits at `sampled` (natural log); see `return_logprobs`
    # [num_outputs, num_candidates], best first by noisy score; column 0 equals `sampled`. Where top-k and top-p leave fewer, the tokens
    # that they took away follow, best logit first: the ids of one node are always distinct and inside the vocabulary.
    candidate_ids: NDArray[np.int32]
    candidate_probs: NDArray[np.float32]  # [num_outputs, num_candidates], softmax(logits / temperature), unfiltered
    prompt_logprob: float = 0.0  # sum in nats over `num_scored` tokens
    num_scored: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The answer to a step call."""

    rows: Sequence[RowResult]
    engine_epoch: int  # new at every load of the engine
    session_ns: int  # time inside the runtime's session during this call
    slots_free: int
    slots_total: int


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a caller has to respect; read from ``engine.json`` beside the engine."""

    max_step_tokens: int  # tokens per row of one call (prefill chunk or committed tail + tree)
    usable_context: int  # highest committed length: context_len - max_step_tokens
    vocab_size: int
    slots: int


class Engine(Protocol):
    """A model with its cache: `engine.ModelEngine`, over ONNX Runtime or TensorRT."""

    @property
    def limits(self) -> EngineLimits:
        """The engine's static limits."""
        ...

    def step(self, call: StepCall) -> StepResult:
        """Run every row; never raises for one row's fault, and may be repeated with the same result."""
        ...

    def release(self, request_uids: Sequence[int]) -> None:
        """Free the slots of these requests; unknown uids are ignored, so a repeated release is harmless."""
        ...

    def status(self) -> StepResult:
        """Epoch and slot counts without computing anything (``rows`` is empty)."""
        ...


class EngineError(Exception):
    """The engine as a whole did not answer: gone, slow, or it refused the call. The message is for our log."""


class EngineClient(Protocol):
    """The way to one engine: in this process, BLS in this server, or gRPC to another one."""

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """Release, then step (a call without rows only releases). Raises EngineError, and nothing else."""
        ...
