"""The two ways the target works for a request: prefill, and verification of a draft tree."""

import logging
import secrets
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drafthouse.core.clock import now_ns
from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.engine.contract import EngineLimits, RowResult, RowStatus, StepCall, StepResult, StepRow
from drafthouse.pipeline.ahead import continued
from drafthouse.pipeline.chances import Verdict
from drafthouse.pipeline.commit import commit
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.links import TargetLink, beside, both
from drafthouse.pipeline.speculation import Speculation
from drafthouse.pipeline.stage_draft import DraftStage
from drafthouse.pipeline.stage_route import RouteStage
from drafthouse.pipeline.state import Draft, Feedback, RequestState
from drafthouse.pipeline.stats import RoundStats, VerifiedDraft
from drafthouse.pipeline.verify import target_tokens, walk

logger = logging.getLogger(__name__)
_NO_TREE = DraftTree()
TARGET_ITSELF = -1  # the source of tokens that no drafter proposed


@dataclass(frozen=True, slots=True)
class _Chunk:
    state: RequestState
    row: StepRow
    is_last: bool  # reaches the last committed token, so its sample is the next token


class PrefillStage:
    """Computes committed tokens the target does not hold: new prompts, and requests whose cache was lost."""

    def __init__(self, target: TargetLink, drafts: DraftStage, limits: EngineLimits, config: PipelineConfig) -> None:
        self._target = target
        self._drafts = drafts
        self._limits = limits
        self._config = config

    def is_due(self, state: RequestState) -> bool:
        """Whether the request has to be prefilled before it can be verified.

        What a verification leaves uncached, its accepted path and the bonus token, fits the next one: a draft that was continued while it
        was verified may be deeper than any that is asked for at a time.
        """
        return state.num_output_tokens == 0 or state.num_uncached > self._limits.max_step_tokens

    async def run(self, active: Sequence[RequestState], stats: RoundStats) -> None:
        """One chunk for each request that is due, within the round's budget; the last chunk gives a token.

        The drafters take in the same chunk at the same time. Raises EngineError.
        """
        chunks = self._plan([state for state in active if state.is_running and self.is_due(state)])
        if not chunks:
            return
        started_ns = now_ns()
        states = [chunk.state for chunk in chunks]
        ends = [chunk.row.prefix_len + chunk.row.num_committed for chunk in chunks]
        call = StepCall(
            [chunk.row for chunk in chunks],
            num_steps=int(any(chunk.is_last for chunk in chunks)),
            return_logprobs=any(state.request.return_log_probs for state in states),
        )
        for state in states:
            state.first_scheduled_time_ns = state.first_scheduled_time_ns or time.time_ns()
        result = await beside(self._target.step(call), self._drafts.take_in(states, ends))
        for chunk, answer in zip(chunks, result.rows, strict=True):
            if chunk.state.is_running:
                self._apply(chunk, answer, stats)
        stats.prefill_session_ns += result.session_ns
        stats.prefill_wall_ns += now_ns() - started_ns

    def _plan(self, due: Sequence[RequestState]) -> list[_Chunk]:
        chunks: list[_Chunk] = []
        budget = self._config.max_prefill_tokens
        for state in due:
            start = state.num_tokens - state.num_uncached
            end = min(start + self._limits.max_step_tokens, state.num_tokens)
            if chunks and end - start > budget:
                break
            budget -= end - start
            row = StepRow(state.request_uid, start, state.tokens[start:end], end - start, sampling=state.request.sampling)
            chunks.append(_Chunk(state, row, is_last=end == state.num_tokens))
        return chunks

    def _apply(self, chunk: _Chunk, answer: RowResult, stats: RoundStats) -> None:
        state = chunk.state
        if not _was_computed(state, answer, int(chunk.is_last), self._config.max_stalled_rounds, stats):
            return
        stats.num_prefill_rows += 1
        stats.num_prefill_tokens += chunk.row.num_committed
        if chunk.is_last:
            token = int(answer.sampled[0])
            stats.num_prefill_emitted += commit(state, [token], [TARGET_ITSELF], [float(answer.logprobs[0])])
            if state.draft is not None:  # made before the cache was lost
                state.draft = continued(state.draft, [token])


class VerifyStage:
    """Has the target verify the chosen part of every draft in one call, and commits what it chose."""

    def __init__(self, target: TargetLink, routes: RouteStage, speculation: Speculation, config: PipelineConfig) -> None:
        self._target = target
        self._routes = routes
        self._speculation = speculation
        self._config = config

    async def run(self, states: Sequence[RequestState], stats: RoundStats, beside_it: Awaitable[None] | None = None) -> None:
        """One verification for each request; at least one token for each row the target could compute.

        The router hears about the rounds before at the same time: its answer is a round old when it is used, and costs no time. So does
        ``beside_it``, which is over when this returns. Raises EngineError.
        """
        started_ns = now_ns()
        return_logprobs = any(state.request.return_log_probs for state in states)
        trees = [_chosen_tree(state) for state in states]
        call = StepCall([_verify_row(state, tree) for state, tree in zip(states, trees, strict=True)], return_logprobs=return_logprobs)
        others = self._routes.refresh(states)
        result = await beside(self._step(call, stats), others if beside_it is None else both(others, beside_it))
        for state, tree, answer in zip(states, trees, result.rows, strict=True):
            if state.is_running and _was_computed(state, answer, 1 + len(tree), self._config.max_stalled_rounds, stats):
                # Of the committed tokens only the last is computed: the others were drafts that the target has in its cache.
                stats.num_verified_tokens += 1 + len(tree)
                self._apply(state, tree, answer, stats)
        stats.verify_session_ns += result.session_ns
        stats.verify_wall_ns += now_ns() - started_ns

    async def _step(self, call: StepCall, stats: RoundStats) -> StepResult:
        """The target's call by itself: what runs beside it may take longer."""
        started_ns = now_ns()
        result = await self._target.step(call)
        stats.target_wall_ns += now_ns() - started_ns
        return result

    def _apply(self, state: RequestState, tree: DraftTree, answer: RowResult, stats: RoundStats) -> None:
        path = walk(tree, answer.sampled)
        outputs = list(path.outputs)
        emitted: list[int] = answer.sampled[outputs].tolist()
        sources = [int(tree.source[node]) for node in path.accepted]
        num_emitted = commit(state, emitted, [*sources, TARGET_ITSELF], answer.logprobs[outputs].tolist())
        num_accepted = min(num_emitted, len(path.accepted))
        state.num_verifications += 1
        state.num_drafted += len(tree)
        state.num_accepted += num_accepted
        stats.num_verified_rows += 1
        stats.num_verified_emitted += num_emitted
        stats.num_drafted += len(tree)
        stats.num_accepted += num_accepted
        if state.draft is not None:
            if len(tree):
                stats.num_drafts += 1
                accepted = tuple(sources[:num_accepted])
                stats.verified_drafts.append(VerifiedDraft(state.scores, state.draft.proposals, tree.source, accepted))
            nodes = state.chosen[list(path.accepted)].tolist()
            self._tell(state, state.draft, dict(zip((ROOT, *nodes), emitted, strict=True)))
            state.draft = continued(state.draft, emitted)

    def _tell(self, state: RequestState, draft: Draft, choices: Mapping[int, int]) -> None:
        """Report to router and calibration. choices: what the target chose after the root and after each accepted node."""
        tree = draft.tree
        # Of the trunk what was verified, or would have been next: the rest was drafted ahead.
        verified = set(state.chosen.tolist())
        columns = [column for column, node in enumerate(draft.trunk.tolist()) if node in verified or int(tree.parents[node]) in choices]
        wanted = target_tokens(draft.trunk[columns], tree.parents, choices)
        state.feedback.append(Feedback(draft.proposals[:, columns], draft.proposal_probs[:, columns], wanted))
        tested = np.array([node for node, parent in enumerate(tree.parents.tolist()) if parent in choices], np.int64)
        if len(tested):
            wanted = target_tokens(tested, tree.parents, choices)
            source = tree.source[tested]
            hit = tree.tokens[tested] == wanted
            self._speculation.saw(Verdict(source, tree.ranks[tested], tree.probs[tested], state.scores[source], hit))


def _chosen_tree(state: RequestState) -> DraftTree:
    return _NO_TREE if state.draft is None else state.draft.tree.taking(state.chosen)


def _verify_row(state: RequestState, tree: DraftTree) -> StepRow:
    """The committed tokens the target lacks, then the draft tree with its parents shifted behind them."""
    start = state.num_tokens - state.num_uncached
    committed = state.tokens[start : state.num_tokens]
    num_committed = len(committed)
    if not len(tree):
        return StepRow(state.request_uid, start, committed, num_committed, sampling=state.request.sampling)
    tokens = np.concatenate((committed, tree.tokens))
    # The root, -1, becomes the last committed token by the same shift.
    parents = np.concatenate((np.arange(-1, num_committed - 1, dtype=np.int32), tree.parents + np.int32(num_committed)))
    return StepRow(state.request_uid, start, tokens, num_committed, parents, state.request.sampling)


def _was_computed(state: RequestState, answer: RowResult, num_outputs: int, max_stalled_rounds: int, stats: RoundStats) -> bool:
    """Note what the target holds now. False when the row has to be tried again, or never (`RequestState.error`)."""
    if answer.status is RowStatus.OK and len(answer.sampled) >= num_outputs and answer.cached_len > 0:
        num_again = state.note_cached(min(answer.cached_len, state.num_tokens))
        if num_again:
            stats.num_recomputed_tokens += num_again
            stats.recomputed_by_queue[state.queue] += num_again
        state.num_stalled_rounds = 0
        return True
    if answer.status in (RowStatus.NEEDS_PREFILL, RowStatus.NO_SLOT):
        if answer.status is RowStatus.NEEDS_PREFILL:
            stats.num_lost_caches += 1
            state.target_cached_len = min(answer.cached_len, state.num_tokens - 1)
        state.num_stalled_rounds += 1
        if state.num_stalled_rounds > max_stalled_rounds:
            state.error = ServerError(ErrorCode.UNAVAILABLE, "target", answer.status.name, "try again later")
        return False
    error_id = secrets.token_hex(4)
    logger.error("error %s: the target refused a row (%r, %d outputs): %s", error_id, answer.status, len(answer.sampled), answer.error)
    state.error = internal_error(error_id)
    return False


def internal_error(error_id: str) -> ServerError:
    """What a user sees of a bug: an id under which the log tells the rest."""
    return ServerError(ErrorCode.INTERNAL, "request", error_id, "see the server log under this id")
