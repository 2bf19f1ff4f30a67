"""Drafters that are right about two times in three, fused into trees with branches."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.engine.contract import RowStatus
from drafthouse.fusion.contract import DraftCall, DraftResult, DraftRow, DraftRowResult
from drafthouse.routing.contract import RouteResult, RouteRow, RouteState
from fakes.pipeline_model import VOCAB_SIZE, next_token, path_hash

DRAFTERS = ("code", "math", "drama", "general")


def usually_right(path: Sequence[int], drafter: int, _: DraftRow) -> bool:
    """What a drafter gets wrong: every third token, as good as at random."""
    return path_hash(path, salt=drafter + 77) % 3 > 0


class FakeFusion:
    """Keeps each drafter's committed tokens, and checks that what it is sent continues them.

    ``calls`` are those with rows; ``before_draft`` hears of them before anything else, and calls hang while ``gate`` is not set.
    """

    def __init__(self, num_drafters: int = len(DRAFTERS)) -> None:
        self.num_drafters = num_drafters
        self.held: list[dict[int, list[int]]] = [{} for _ in range(num_drafters)]
        self.calls: list[DraftCall] = []
        self.failing = False
        self.slots: int | None = None  # of each drafter; None = enough
        self.alive = [True] * num_drafters
        self.edit_tree: Callable[[DraftTree], DraftTree] = lambda tree: tree
        self.is_right: Callable[[Sequence[int], int, DraftRow], bool] = usually_right
        self.confidence = 0.5
        self.before_draft: Callable[[DraftCall], None] = lambda call: None
        self.draft_s: Callable[[DraftCall], float] = lambda call: 0.0  # how long a call takes, on the loop's clock
        self.gate = asyncio.Event()
        self.gate.set()

    async def draft(self, call: DraftCall) -> DraftResult:
        await asyncio.sleep(0)
        if call.rows:
            self.before_draft(call)
            await self.gate.wait()
            if (draft_s := self.draft_s(call)) > 0.0:
                await asyncio.sleep(draft_s)
        if self.failing:
            raise RuntimeError("fusion is gone")
        for uid in call.release_uids:
            for held in self.held:
                held.pop(uid, None)
        if call.rows:
            self.calls.append(call)
        return DraftResult([self._row(row) for row in call.rows], draft_session_ns=500)

    def _row(self, row: DraftRow) -> DraftRowResult:
        assert row.weights.shape == (self.num_drafters,)
        assert row.weights.dtype == np.float32
        assert (row.weights > 0).any()
        status = np.full(self.num_drafters, RowStatus.ABSENT, np.int32)
        cached_len = np.zeros(self.num_drafters, np.int32)
        scored = np.zeros(self.num_drafters, np.int32)
        path: list[int] | None = None
        workers: list[int] = []
        for drafter in np.flatnonzero(row.weights > 0).tolist():
            if not self.alive[drafter]:
                continue
            if self.slots is not None and row.request_uid not in self.held[drafter] and len(self.held[drafter]) >= self.slots:
                status[drafter] = RowStatus.NO_SLOT
                continue
            held = self.held[drafter].get(row.request_uid, [])
            if row.prefix_len > len(held):
                status[drafter], cached_len[drafter] = RowStatus.NEEDS_PREFILL, len(held)
                continue
            tokens = held[: row.prefix_len] + row.tokens.tolist()
            assert tokens[: len(held)] == held[: len(tokens)]
            scored[drafter] = max(len(tokens) - len(held), 0)
            self.held[drafter][row.request_uid] = path = tokens
            status[drafter], cached_len[drafter] = RowStatus.OK, len(tokens)
            workers.append(drafter)
        tree, trunk, proposals = self._tree(row, path, workers)
        log_prob = np.array([-float(drafter + 1) * scored[drafter] for drafter in range(self.num_drafters)], np.float32)
        probs = np.where(proposals >= 0, np.float32(0.5), np.float32(0.0))
        return DraftRowResult(self.edit_tree(tree), trunk, status, cached_len, proposals, probs, log_prob, scored)

    def _tree(self, row: DraftRow, path: list[int] | None, workers: Sequence[int]) -> tuple[DraftTree, np.ndarray, np.ndarray]:
        """The base with a trunk of new nodes behind its leaf, and what the other workers would have said beside each."""
        num_steps = row.num_draft_tokens if path is not None else 0
        proposals = np.full((self.num_drafters, num_steps), -1, np.int32)
        tokens, parents, sources = row.base.tokens.tolist(), row.base.parents.tolist(), row.base.source.tolist()
        chances = row.base.confidence.tolist()
        here = row.leaf
        before: list[int] = []
        while here != ROOT:
            before.insert(0, tokens[here])
            here = parents[here]
        here, trunk, branches = row.leaf, list[int](), list[tuple[int, int, int]]()
        for step in range(num_steps):
            assert path is not None
            context = [*path, *before]
            proposed = [self._guess(context, drafter, row) for drafter in workers]
            proposals[workers, step] = proposed
            branches += [(token, here, drafter) for drafter, token in zip(workers[1:], proposed[1:], strict=True) if token != proposed[0]]
            tokens.append(proposed[0])
            parents.append(here)
            sources.append(workers[0])
            before.append(proposed[0])
            here = len(tokens) - 1
            trunk.append(here)
        for token, parent, drafter in branches:
            if (token, parent) not in set(zip(tokens, parents, strict=True)):
                tokens.append(token)
                parents.append(parent)
                sources.append(drafter)
        columns = [np.array(column, np.int32) for column in (tokens, parents, sources)]
        chances = [*chances, *[self.confidence] * num_steps, *[(1 - self.confidence) * self.confidence] * len(tokens)][: len(tokens)]
        tree = DraftTree(columns[0], columns[1], np.array(chances, np.float32), columns[2])
        return tree, np.array(trunk, np.int32), proposals

    def _guess(self, path: list[int], drafter: int, row: DraftRow) -> int:
        right = next_token(path, row.sampling)
        return right if self.is_right(path, drafter, row) else 1 + (right + drafter) % (VOCAB_SIZE - 1)


class FakeRouter:
    """Prefers the drafters that predicted the prompt best, then moves on by one each time it is told of a round."""

    def __init__(self) -> None:
        self.calls: list[Sequence[RouteRow]] = []
        self.failing = False

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        await asyncio.sleep(0)
        if self.failing:
            raise RuntimeError("the router is gone")
        self.calls.append(rows)
        return [self._result(row) for row in rows]

    def _result(self, row: RouteRow) -> RouteResult:
        num_drafters = len(row.allowed)
        assert row.proposals.shape == row.proposal_probs.shape == (num_drafters, len(row.target_tokens))
        weights = np.zeros(num_drafters, np.float32)
        first = int(row.state[0, RouteState.AGE])  # how often it has been told
        for offset in range(2):
            weights[(first + offset) % num_drafters] = 1.0
        if not (weights * row.allowed).any():
            weights[:] = row.allowed
        state = row.state.copy()
        state[:, RouteState.AGE] += 1
        return RouteResult(state, weights, np.full(num_drafters, 0.5, np.float32))
