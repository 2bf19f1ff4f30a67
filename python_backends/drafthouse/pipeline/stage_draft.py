"""Have the drafters propose: intake of prompts, and one draft tree per request and round."""

from collections.abc import Sequence

import numpy as np

from drafthouse.core.clock import now_ns
from drafthouse.core.tree import DraftTree
from drafthouse.engine.contract import EngineLimits, RowStatus
from drafthouse.fusion.contract import DraftRow, DraftRowResult
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.links import FusionLink
from drafthouse.pipeline.stage_route import RouteStage
from drafthouse.pipeline.state import Draft, RequestState
from drafthouse.pipeline.stats import RoundStats


class DraftStage:
    """Writes `RequestState.draft`. Drafter trouble shows only as an empty draft."""

    def __init__(self, fusion: FusionLink, routes: RouteStage, limits: EngineLimits, config: PipelineConfig) -> None:
        self._fusion = fusion
        self._routes = routes
        self._limits = limits
        self._config = config

    async def run(self, states: Sequence[RequestState], stats: RoundStats) -> None:
        """Propose a tree for every request that may have one."""
        started_ns = now_ns()
        for state in states:
            state.draft = None
        drafting = [state for state in states if self._budget(state) > 0]
        await self._routes.first(drafting)
        drafting = [state for state in drafting if state.is_running]  # the router took time, too
        rows = [row for state in drafting if (row := self._row(state, self._budget(state), state.num_tokens)) is not None]
        if rows:
            await self._propose(drafting, rows, stats)
        stats.draft_wall_ns += now_ns() - started_ns

    async def take_in(self, states: Sequence[RequestState], ends: Sequence[int]) -> None:
        """Let the drafters read ``tokens[:end]`` of new requests and score the prompt; proposes nothing."""
        reading: list[RequestState] = []
        rows: list[DraftRow] = []
        for state, end in zip(states, ends, strict=True):
            if state.is_running and state.num_output_tokens == 0 and self._wanted(state) > 0:
                row = self._row(state, 0, end)
                if row is not None:
                    reading.append(state)
                    rows.append(row)
        result = await self._fusion.draft(rows) if rows else None
        if result is None:
            return
        for state, row, answer in zip(reading, rows, result.rows, strict=True):
            _note_cached_len(state, row, answer)
            state.prompt_logprob += answer.prompt_logprob
            state.num_scored += answer.num_scored

    def _wanted(self, state: RequestState) -> int:
        """Longest draft of which every token could be emitted."""
        asked = state.request.num_draft_tokens
        wanted = self._config.num_draft_tokens if asked is None else asked
        return min(wanted, state.num_remaining - 1) if state.allowed.any() else 0

    def _budget(self, state: RequestState) -> int:
        """Longest draft that also fits the target's next call."""
        return min(self._wanted(state), self._max_nodes(state))

    def _max_nodes(self, state: RequestState) -> int:
        return min(self._limits.max_step_tokens - state.num_uncached, self._limits.usable_context - state.num_tokens)

    def _row(self, state: RequestState, num_draft_tokens: int, end: int) -> DraftRow | None:
        """The tokens below ``end`` that the slowest participating drafter lacks; None when nobody takes part."""
        weights = state.allowed.astype(np.float32) if state.weights is None else state.weights
        working = weights > 0.0
        if not working.any():
            return None
        prefix_len = min(int(state.drafter_cached_len[working].min()), end - 1)
        return DraftRow(
            request_uid=state.request_uid,
            prefix_len=prefix_len,
            tokens=state.tokens[prefix_len:end],
            num_draft_tokens=num_draft_tokens,
            weights=weights,
            sampling=state.request.sampling,
        )

    async def _propose(self, drafting: Sequence[RequestState], rows: Sequence[DraftRow], stats: RoundStats) -> None:
        result = await self._fusion.draft(rows)
        if result is None:
            return
        stats.draft_session_ns += result.draft_session_ns
        by_uid = {state.request_uid: state for state in drafting}
        for row, answer in zip(rows, result.rows, strict=True):
            state = by_uid[row.request_uid]
            _note_cached_len(state, row, answer)
            tree = usable_tree(answer.tree, self._max_nodes(state), self._limits.vocab_size)
            trunk_len = min(answer.proposals.shape[1], len(tree))
            if len(tree):
                state.draft = Draft(tree, answer.proposals[:, :trunk_len], answer.proposal_probs[:, :trunk_len])


def usable_tree(tree: DraftTree, max_nodes: int, vocab_size: int) -> DraftTree:
    """The first ``max_nodes`` nodes of ``tree`` (parents come first, so they are a tree), or none if it is malformed."""
    num_nodes = min(len(tree), max_nodes)
    tokens, parents = tree.tokens[:num_nodes], tree.parents[:num_nodes]
    in_order = (parents < np.arange(num_nodes)) & (parents >= -1) & (tokens >= 0) & (tokens < vocab_size)
    if not in_order.all():
        return DraftTree()
    return DraftTree(tokens, parents, tree.confidence[:num_nodes], tree.source[:num_nodes])


def _note_cached_len(state: RequestState, row: DraftRow, answer: DraftRowResult) -> None:
    """Remember what each drafter that was asked holds now; unknown counts as nothing, which is always safe."""
    asked = row.weights > 0.0
    held = (answer.drafter_status == RowStatus.OK) | (answer.drafter_status == RowStatus.NEEDS_PREFILL)
    state.drafter_cached_len = np.where(asked, np.where(held, answer.cached_len, 0), state.drafter_cached_len)
