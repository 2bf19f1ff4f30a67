"""Have the drafters propose: intake of prompts, one draft tree per request and round, and the drafts after those being verified."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.clock import now_ns
from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.engine.contract import EngineLimits, RowStatus
from drafthouse.fusion.contract import DraftPlan, DraftRow, DraftRowResult
from drafthouse.pipeline.ahead import depth_of, expected_leaf
from drafthouse.pipeline.links import FusionLink
from drafthouse.pipeline.speculation import Speculation
from drafthouse.pipeline.stage_route import RouteStage
from drafthouse.pipeline.state import Draft, RequestState
from drafthouse.pipeline.stats import RoundStats
from drafthouse.routing.gather import gather

NO_TREE = DraftTree()
LEAST_CHANCE_AHEAD = 0.1  # an outcome less likely than this is not drafted for


class DraftStage:
    """Writes `RequestState.draft`. Drafter trouble shows only as a missing draft."""

    def __init__(self, fusion: FusionLink, routes: RouteStage, speculation: Speculation, limits: EngineLimits) -> None:
        self._fusion = fusion
        self._routes = routes
        self._speculation = speculation
        self._limits = limits

    def lacking(self, states: Sequence[RequestState]) -> list[RequestState]:
        """Those that may speculate in this round and have no draft."""
        return [state for state in states if state.draft is None and self._speculation.depth(state) > 0]

    async def run(self, states: Sequence[RequestState], stats: RoundStats) -> None:
        """Propose a tree for each of these requests."""
        if not states:
            return
        started_ns = now_ns()
        if self._speculation.switches.routing:
            self._routes.max_drafters = self._speculation.most_drafters
            await self._routes.first(states)
        states = [state for state in states if state.is_running]  # the router took time, too
        session_ns = await self._propose(rows := self._new_rows(states))
        draft_ns = now_ns() - started_ns
        stats.draft_wall_ns += draft_ns
        if session_ns is not None:
            stats.draft_session_ns += session_ns
            self._speculation.saw_drafts(list(rows), draft_ns)

    async def meanwhile(self, verifying: Sequence[RequestState], others: Sequence[RequestState], stats: RoundStats) -> None:
        """While the chosen parts of some requests' drafts are verified: go on from where each is expected to end, and draft for others."""
        if self._speculation.switches.routing:
            await self._routes.first(others)
        verifying, others = ([state for state in states if state.is_running] for states in (verifying, others))  # the router took time, too
        weights = self._weights(verifying)
        rows = {state: row for state in verifying if (row := self._row_ahead(state, weights[state])) is not None}
        stats.num_drafted_ahead += len(rows)
        new = self._new_rows(others)
        session_ns = await self._propose(rows | new)
        stats.ahead_session_ns += session_ns or 0
        if new and session_ns is not None:
            self._speculation.saw_drafts(list(new), None)

    def _new_rows(self, states: Sequence[RequestState]) -> dict[RequestState, DraftRow]:
        """What to ask for where there is no draft; requests for which nobody works are left out."""
        rows: dict[RequestState, DraftRow] = {}
        for state, weights in self._weights(states).items():
            row = self._row(state, weights, self._speculation.depth(state), state.num_tokens)
            if row is not None:
                rows[state] = row
        return rows

    def _row_ahead(self, state: RequestState, weights: NDArray[np.float32]) -> DraftRow | None:
        """The continuation of a draft that is being verified; None where none is worth it."""
        if state.draft is None:
            return None
        tree = state.draft.tree
        leaf, chance = expected_leaf(tree, state.chosen)
        # What is emitted now comes off what may still be drafted.
        depth = min(self._speculation.depth(state), state.num_remaining - 2 - depth_of(tree, leaf))
        if chance < LEAST_CHANCE_AHEAD or depth < 1 or leaf == ROOT or int(tree.tokens[leaf]) in state.request.sampling.end_ids:
            return None
        return self._row(state, weights, depth, state.num_tokens, tree, leaf)

    async def take_in(self, states: Sequence[RequestState], ends: Sequence[int]) -> None:
        """Let the drafters read ``tokens[:end]`` of new requests and score the prompt; proposes nothing."""
        reading: list[RequestState] = []
        rows: list[DraftRow] = []
        for state, end in zip(states, ends, strict=True):
            if state.is_running and state.num_output_tokens == 0 and self._speculation.may_draft(state):
                row = self._row(state, self._routes.weights(state), 0, end)
                if row is not None:
                    reading.append(state)
                    rows.append(row)
        result = await self._fusion.draft(rows, DraftPlan()) if rows else None
        if result is None:
            return
        self._routes.note(rows, result.rows)
        for state, row, answer in zip(reading, rows, result.rows, strict=True):
            _note_cached_len(state, row, answer)
            state.prompt_logprob += answer.prompt_logprob
            state.num_scored += answer.num_scored

    def _row(
        self,
        state: RequestState,
        weights: NDArray[np.float32],
        num_draft_tokens: int,
        end: int,
        base: DraftTree = NO_TREE,
        leaf: int = ROOT,
    ) -> DraftRow | None:
        """The tokens below ``end`` that the slowest participating drafter lacks; None when nobody takes part."""
        working = weights > 0.0
        if not working.any():
            return None
        prefix_len = min(int(state.drafter_cached_len[working].min()), end - 1)
        return DraftRow(
            request_uid=state.request_uid,
            prefix_len=prefix_len,
            tokens=state.tokens[prefix_len:end].copy(),  # what is committed meanwhile lies behind, but this may be read later
            num_draft_tokens=num_draft_tokens,
            weights=weights,
            sampling=state.request.sampling,
            scores=state.scores,
            base=base,
            leaf=leaf,
        )

    def _weights(self, states: Sequence[RequestState]) -> dict[RequestState, NDArray[np.float32]]:
        """[D] per request, who works for it now: of those that were chosen and answer, the best few."""
        weights = {state: self._routes.weights(state) for state in states}
        most = self._speculation.max_drafters
        routed = [state for state in states if state.weights is not None and weights[state].any()]
        if most > 1:
            return weights | {state: _best(weights[state], most) for state in routed}
        if routed:
            ratings = np.stack([np.where(weights[state] > 0, state.scores, np.float32(0.0)) for state in routed])
            ratings = np.where(np.isfinite(ratings), ratings, np.float32(1.0))  # before the router's first answer all are alike
            for state, drafter in zip(routed, gather(ratings), strict=True):
                weights[state] = np.where(np.arange(len(state.allowed)) == drafter, weights[state], np.float32(0.0))
        return weights

    async def _propose(self, rows: dict[RequestState, DraftRow]) -> int | None:
        """Have these drafts made or continued; returns the drafters' session time in ns, None when nobody was asked or fusion failed."""
        if not rows:
            return None
        bases = {state: state.draft for state in rows}
        result = await self._fusion.draft(list(rows.values()), self._speculation.draft_plan())
        if result is None:
            return None
        self._routes.note(list(rows.values()), result.rows)
        for (state, row), answer in zip(rows.items(), result.rows, strict=True):
            _note_cached_len(state, row, answer)
            draft = _usable(answer, bases[state], self._limits)
            if draft is not None and state.draft is bases[state]:
                state.draft = draft
        return result.draft_session_ns


def _best(weights: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """The ``most`` largest weights, zero elsewhere: [D] -> [D]."""
    kept = np.zeros_like(weights)
    best = np.argsort(-weights, kind="stable")[:most]
    kept[best] = weights[best]
    return kept


def _usable(answer: DraftRowResult, base: Draft | None, limits: EngineLimits) -> Draft | None:
    """The answer as a draft that continues ``base``; None when it is empty or malformed."""
    tree, trunk = answer.tree, answer.trunk
    size, base_size = len(tree), 0 if base is None else len(base.tree)
    in_order = (tree.parents < np.arange(size)) & (tree.parents >= ROOT) & (tree.tokens >= 0) & (tree.tokens < limits.vocab_size)
    if not size or not in_order.all() or ((trunk < 0) | (trunk >= size)).any() or size < base_size:
        return None
    proposals, probs = answer.proposals[:, : len(trunk)], answer.proposal_probs[:, : len(trunk)]
    if base is None:
        return Draft(tree, trunk, proposals, probs)
    return Draft(
        tree,
        np.concatenate((base.trunk, trunk)),
        np.concatenate((base.proposals, proposals), axis=1),
        np.concatenate((base.proposal_probs, probs), axis=1),
    )


def _note_cached_len(state: RequestState, row: DraftRow, answer: DraftRowResult) -> None:
    """Remember what each drafter that was asked holds now; unknown counts as nothing, which is always safe."""
    asked = row.weights > 0.0
    held = (answer.drafter_status == RowStatus.OK) | (answer.drafter_status == RowStatus.NEEDS_PREFILL)
    state.drafter_cached_len = np.where(asked, np.where(held, answer.cached_len, 0), state.drafter_cached_len)
