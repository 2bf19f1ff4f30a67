"""The state of one request, and of each drafter that works on it, while one draft round lasts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from drafthouse.core.sampling_params import NO_TOKEN
from drafthouse.engine.contract import RowResult, RowStatus, StepRow
from drafthouse.fusion.contract import DraftRow, DraftRowResult
from drafthouse.fusion.token_fusion import Proposal, build_tree, most_confident, select_branches


@dataclass(slots=True, eq=False)
class Seat:
    """One drafter's part in one request's round. Written by the drafter's lane, read by the request's `RowDraft`."""

    row: RowDraft
    drafter: int
    weight: float
    position: int  # absolute position of the first token that the next call sends
    status: RowStatus = RowStatus.ABSENT
    cached_len: int = 0
    score: float = 0.0  # nats over `num_scored` tokens
    num_scored: int = 0
    has_healed: bool = False  # NEEDS_PREFILL was answered once; a second time the drafter sits out
    fresh: list[tuple[int, float]] = field(default_factory=list)  # (token, own probability) from the trunk's end on
    proposed: list[tuple[int, float]] = field(default_factory=list)  # the same per trunk position, kept for the router
    candidates: list[list[tuple[int, float]]] = field(default_factory=list)  # per fresh position; only kept for branches

    def leave(self, status: RowStatus) -> None:
        """Sit out the rest of this request's round."""
        self.status = status
        self.fresh = []
        self.row.active.remove(self)

    def accept(self, answer: RowResult, num_steps: int, keep_candidates: bool) -> None:
        """Take the proposals that follow the trunk out of an OK answer; leave when there are none."""
        first = len(self.row.trunk)
        tokens = answer.sampled[first : first + num_steps].tolist()
        probs = answer.candidate_probs[first : first + num_steps]
        self.fresh = list(zip(tokens, probs[:, 0].tolist(), strict=False)) if probs.size else []
        self.status = RowStatus.OK
        self.position = self.row.end_position - 1
        if not self.fresh:
            self.leave(RowStatus.ERROR)
        elif keep_candidates:
            ids = answer.candidate_ids[first : first + num_steps].tolist()
            self.candidates = [list(zip(*pair, strict=True)) for pair in zip(ids, probs.tolist(), strict=True)]

    def proposal(self, token: int, prob: float) -> Proposal:
        """A token of this drafter with its weighted confidence (a probability that is not a number counts as none)."""
        confidence = 0.0 if math.isnan(prob) else min(self.weight * prob, 1.0)
        return Proposal(token, confidence, self.drafter)


class RowDraft:
    """One request's trunk while it grows."""

    __slots__ = ("_offered", "_shared_row", "active", "end_position", "max_branches", "num_draft_tokens", "row", "seats", "trunk")

    def __init__(self, row: DraftRow, max_step_tokens: tuple[int, ...], max_branches: int) -> None:
        self.row = row
        self.end_position = row.prefix_len + len(row.tokens)  # absolute position after the last committed token
        self.max_branches = max_branches
        self.seats = [Seat(self, drafter, weight, row.prefix_len) for drafter, weight in enumerate(row.weights.tolist()) if weight > 0]
        self.active = list(self.seats)
        # The last call of a fused trunk carries the root and all trunk tokens but the last.
        self.num_draft_tokens = min([row.num_draft_tokens, *(max_step_tokens[seat.drafter] for seat in self.seats)])
        self.trunk: list[Proposal] = []
        self._offered: list[list[Proposal]] = []  # every candidate per trunk position, for branches
        self._shared_row: StepRow | None = None

    @property
    def num_missing(self) -> int:
        """Trunk tokens still wanted; 0 when the trunk has ended or nobody is left to extend it."""
        if not self.active or (self.trunk and self.trunk[-1].token in self.row.sampling.end_ids):
            return 0
        return self.num_draft_tokens - len(self.trunk)

    def step_row(self, position: int) -> StepRow:
        """What a drafter is asked: committed tokens from ``position`` on, then the trunk. Shared by equal askers."""
        shared = self._shared_row
        if shared is not None and shared.prefix_len == position:
            return shared
        row = self.row
        tokens = row.tokens[position - row.prefix_len :]
        num_committed = len(tokens)
        if self.trunk:
            tokens = np.concatenate((tokens, np.array([node.token for node in self.trunk], np.int32)))
        self._shared_row = StepRow(row.request_uid, position, tokens, num_committed, None, row.sampling)
        return self._shared_row

    def chunk(self, position: int, num_tokens: int) -> StepRow:
        """Committed tokens to take in, without sampling."""
        start = position - self.row.prefix_len
        tokens = self.row.tokens[start : start + num_tokens]
        return StepRow(self.row.request_uid, position, tokens, num_tokens, None, self.row.sampling)

    def extend(self) -> None:
        """Fuse what the drafters have just proposed: one token each, or what each wrote by itself since the last fusion point.

        At every position the most confident proposal wins; a drafter that had written something else has no say in what follows it
        until the next fusion point, because it wrote that for another text.
        """
        agreeing = self.active
        index = 0
        while self.num_missing > 0 and any(index < len(seat.fresh) for seat in agreeing):
            agreeing = [seat for seat in agreeing if index < len(seat.fresh)]
            best = most_confident([seat.proposal(*seat.fresh[index]) for seat in agreeing])
            self.trunk.append(best)
            for seat in self.active:
                seat.proposed.append(seat.fresh[index] if seat in agreeing else (NO_TOKEN, 0.0))
            if self.max_branches:
                self._offered.append([seat.proposal(*candidate) for seat in agreeing for candidate in seat.candidates[index]])
            agreeing = [seat for seat in agreeing if seat.fresh[index][0] == best.token]
            index += 1
        self._shared_row = None

    def result(self, num_drafters: int) -> DraftRowResult:
        """The round's outcome for this request."""
        branches = select_branches(self.trunk, self._offered, self.max_branches) if self.max_branches else []
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
        return DraftRowResult(
            tree=build_tree(self.trunk, branches),
            drafter_status=np.array(status, np.int32),
            cached_len=np.array(cached_len, np.int32),
            proposals=np.array(proposals, np.int32),
            proposal_probs=np.array(probs, np.float32),
            prompt_logprob=np.array(score, np.float32),
            num_scored=np.array(num_scored, np.int32),
        )
