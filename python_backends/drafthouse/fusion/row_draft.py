"""The state of one request, and of each drafter that works on it, while one draft round lasts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from drafthouse.core.chance import chance, score_logit
from drafthouse.core.sampling_params import NO_TOKEN
from drafthouse.engine.contract import RowResult, RowStatus, StepRow
from drafthouse.fusion.contract import DraftPlan, DraftRow, DraftRowResult
from drafthouse.fusion.token_fusion import DraftTrie, Proposal, most_confident


@dataclass(frozen=True, slots=True)
class Judge:
    """What one drafter's probabilities are worth for one request."""

    drafter: int
    weight: float
    lines: tuple[tuple[float, float], ...]  # (intercept, slope) for the drafter's own choice and for others; () = as they are

    @staticmethod
    def of(drafter: int, row: DraftRow, plan: DraftPlan) -> Judge:
        """For one drafter of ``row``."""
        weight = min(float(row.weights[drafter]), 1.0)
        if plan.calibration is None:
            return Judge(drafter, weight, ())
        score = 0.0 if row.scores is None else score_logit(float(row.scores[drafter]))
        return Judge(drafter, weight, tuple((a + c * score, b) for a, b, c in plan.calibration[:, drafter].tolist()))

    @property
    def own_line(self) -> tuple[float, float]:
        """(intercept, slope) of the drafter's own choices; with (0, 1) a probability is its chance."""
        return self.lines[0] if self.lines else (0.0, 1.0)

    def proposal(self, token: int, prob: float, rank: int = 0) -> Proposal:
        """A candidate with its chance (a probability that is not a number counts as none)."""
        prob = 0.0 if math.isnan(prob) else min(max(prob, 0.0), 1.0)
        if self.lines:
            value = chance(*self.lines[min(rank, 1)], prob)
        else:
            value = prob
        return Proposal(token, value, self.drafter, prob, rank, self.weight)


@dataclass(slots=True, eq=False)
class Seat:
    """One drafter's part in one request's round. Written by the drafter's lane, read by the request's `RowDraft`."""

    row: RowDraft
    judge: Judge
    position: int  # absolute position of the first token that the next call sends
    status: RowStatus = RowStatus.ABSENT
    cached_len: int = 0
    score: float = 0.0  # nats over `num_scored` tokens
    num_scored: int = 0
    has_healed: bool = False  # NEEDS_PREFILL was answered once; a second time the drafter sits out
    fresh: list[list[Proposal]] = field(default_factory=list)  # per position from the trunk's end on: own choice, then other candidates
    proposed: list[tuple[int, float]] = field(default_factory=list)  # own choice and probability per trunk position, for the router

    @property
    def drafter(self) -> int:
        """Index of the drafter."""
        return self.judge.drafter

    def leave(self, status: RowStatus) -> None:
        """Sit out the rest of this request's round."""
        self.status = status
        self.fresh = []
        self.row.active.remove(self)

    def accept(self, answer: RowResult, num_steps: int) -> None:
        """Take the proposals that follow the trunk out of an OK answer; leave when there are none."""
        first = len(self.row.path)
        ids = answer.candidate_ids[first : first + num_steps].tolist()
        probs = answer.candidate_probs[first : first + num_steps].tolist()
        self.row.has_stopped |= len(ids) < num_steps
        self.fresh = [
            [self.judge.proposal(token, prob, rank) for rank, (token, prob) in enumerate(zip(*pair, strict=True))]
            for pair in zip(ids, probs, strict=True)
            if pair[0]
        ]
        self.status = RowStatus.OK
        self.position = self.row.end_position - 1
        if not self.fresh:
            self.leave(RowStatus.ERROR)


class RowDraft:
    """One request's tree while it grows."""

    __slots__ = (
        "_plan", "_shared_row", "_tip", "_trie", "active", "end_position",
        "has_stopped", "leaf_depth", "num_draft_tokens", "path", "row", "seats", "trunk",
    )  # fmt: skip

    def __init__(self, row: DraftRow, max_step_tokens: tuple[int, ...], plan: DraftPlan) -> None:
        self.row = row
        self.end_position = row.prefix_len + len(row.tokens)  # absolute position after the last committed token
        self.seats = [
            Seat(self, Judge.of(drafter, row, plan), row.prefix_len) for drafter, weight in enumerate(row.weights.tolist()) if weight > 0
        ]
        self.active = list(self.seats)
        self.trunk: list[int] = []  # the trunk's new nodes
        self._plan = plan
        self._trie = DraftTrie(row.base)
        self._tip = row.leaf  # the trunk's last node
        self.path = self._trie.path(row.leaf)  # draft tokens from the root to the tip
        self.leaf_depth = len(self.path)
        self.has_stopped = False  # a drafter found that nothing further is worth writing
        # The last call of a fused trunk carries the root and the whole path but its last token.
        most = min([max_step_tokens[seat.drafter] for seat in self.seats], default=0) - self.leaf_depth
        self.num_draft_tokens = max(0, min(row.num_draft_tokens, most))
        self._shared_row: StepRow | None = None

    @property
    def num_missing(self) -> int:
        """Trunk tokens still wanted; 0 when the trunk has ended, hardly anybody will get there, or nobody is left to extend it."""
        if not self.active or (self.path and self.path[-1] in self.row.sampling.end_ids):
            return 0
        if self.trunk and self._trie.reach(self._tip) < self._plan.min_chance:
            return 0
        return self.num_draft_tokens - len(self.trunk)

    def step_row(self, position: int) -> StepRow:
        """What a drafter is asked: committed tokens from ``position`` on, then the path to the tip. Shared by equal askers."""
        shared = self._shared_row
        if shared is not None and shared.prefix_len == position:
            return shared
        row = self.row
        tokens = row.tokens[position - row.prefix_len :]
        num_committed = len(tokens)
        if self.path:
            tokens = np.concatenate((tokens, np.array(self.path, np.int32)))
        self._shared_row = StepRow(row.request_uid, position, tokens, num_committed, None, row.sampling, self._trie.reach(self._tip))
        return self._shared_row

    def chunk(self, position: int, num_tokens: int) -> StepRow:
        """Committed tokens to take in, without sampling."""
        start = position - self.row.prefix_len
        tokens = self.row.tokens[start : start + num_tokens]
        return StepRow(self.row.request_uid, position, tokens, num_tokens, None, self.row.sampling)

    def extend(self) -> None:
        """Fuse what the drafters have just proposed: one token each, or what each wrote by itself since the last fusion point.

        At every position the best vote continues the trunk; a drafter that had written something else has no say in what follows it
        until the next fusion point, because it wrote that for another text.
        """
        agreeing = [seat for seat in self.active if seat.fresh]
        index = 0
        while self.num_missing > 0 and (agreeing := [seat for seat in agreeing if index < len(seat.fresh)]):
            best = most_confident([seat.fresh[index][0] for seat in agreeing])
            for seat in agreeing:
                self._branch(seat, index, best.token)
            self._tip = self._trie.add(self._tip, best)
            self.trunk.append(self._tip)
            self.path.append(best.token)
            for seat in self.active:
                own = seat.fresh[index][0] if seat in agreeing else None
                seat.proposed.append((NO_TOKEN, 0.0) if own is None else (own.token, own.prob))
            agreeing = [seat for seat in agreeing if seat.fresh[index][0].token == best.token]
            index += 1
        for seat in self.active:
            seat.fresh = []  # a row that is not asked again must not hear them twice
        self._shared_row = None

    def _branch(self, seat: Seat, index: int, trunk_token: int) -> None:
        """Add what ``seat`` offered after the tip beside the trunk's next token, and what it wrote if it left the trunk here."""
        plan, here, wanted = self._plan, self._tip, trunk_token
        if not (plan.num_siblings or plan.keep_divergent):
            return
        for own, *others in seat.fresh[index:]:
            for sibling in others[: plan.num_siblings]:
                self._trie.add(here, sibling)
            if own.token == wanted:
                return
            here, wanted = self._trie.add(here, own), NO_TOKEN
            if not plan.keep_divergent or own.token in self.row.sampling.end_ids or self._trie.reach(here) < plan.min_chance:
                return

    def result(self, num_drafters: int) -> DraftRowResult:
        """The round's outcome for this request."""
        status, cached_len, num_scored = ([blank] * num_drafters for blank in (int(RowStatus.ABSENT), 0, 0))
        score = [0.0] * num_drafters
        proposals = [[NO_TOKEN] * len(self.trunk) for _ in range(num_drafters)]
        probs = [[0.0] * len(self.trunk) for _ in range(num_drafters)]
        for seat in self.seats:
            drafter = seat.drafter
            status[drafter], cached_len[drafter] = seat.status, seat.cached_len
            score[drafter], num_scored[drafter] = seat.score, seat.num_scored
            for position, (token, prob) in enumerate(seat.proposed):
                proposals[drafter][position], probs[drafter][position] = token, prob
        tree, trunk = self._trie.tree(self.trunk, self._plan.max_nodes)
        return DraftRowResult(
            tree=tree,
            trunk=np.array(trunk, np.int32),
            drafter_status=np.array(status, np.int32),
            cached_len=np.array(cached_len, np.int32),
            proposals=np.array(proposals, np.int32).reshape(num_drafters, len(self.trunk)),
            proposal_probs=np.array(probs, np.float32).reshape(num_drafters, len(self.trunk)),
            prompt_logprob=np.array(score, np.float32),
            num_scored=np.array(num_scored, np.int32),
        )
