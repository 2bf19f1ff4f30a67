"""How much is drafted and how much of it is verified. Everything learned about chances and stage times is kept here."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import unsupported
from drafthouse.core.tree import DraftTree
from drafthouse.engine.contract import EngineLimits
from drafthouse.fusion.contract import DraftPlan
from drafthouse.pipeline.ahead import reach_of
from drafthouse.pipeline.chances import ENOUGH_OBSERVATIONS, Chances, Verdict
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.modes import Overlap, Trees
from drafthouse.pipeline.state import RequestState
from drafthouse.pipeline.stats import RoundStats
from drafthouse.scheduling.assignment import Candidate, Limits, Prices, WaitingRounds, assign, cost_matrix
from drafthouse.scheduling.balance import TRIAL_NODES, Balance
from drafthouse.scheduling.tetris import DraftCandidate, DraftSelection, Mask, select_by_budget, select_by_time, select_evenly

NO_TREE = DraftTree()
NEVER_FUSE = 64  # tokens between two fusion points: every drafter writes its own chain to the end
# Drafts grow somewhat beyond what pays to be verified now: what is not verified may be the next round's beginning.
GROWTH_SHARE = 0.6
MAX_MIN_CHANCE = 0.6
WELL_KNOWN = 1000  # observations
VERDICTS_PER_FIT = 32  # of requests


class Speculation:
    """Decides depth, drafters and tree shape before a round, chooses the nodes that are verified, and learns from the verdicts."""

    def __init__(self, config: PipelineConfig, limits: EngineLimits, num_drafters: int, num_usable: int, exact_trees: bool) -> None:
        """Args: num_drafters of the repository, num_usable of them in this mode; exact_trees: see `Services`.

        Raises ClientError for a mode that cannot do without trees where they are not exact.
        """
        self._config = config
        self._limits = limits
        self._num_drafters = num_drafters
        self.switches = config.switches
        if self.switches.trees is Trees.MERGED and not exact_trees:
            raise unsupported("mode", str(config.mode), "a mode whose drafts can be chains: the target's 8-bit weights round side branches")
        self._num_siblings = config.num_siblings if exact_trees else 0
        self.chances = Chances(num_drafters)
        self._balance = Balance(config.max_num_draft_tokens)
        self.is_adaptive = self.switches.adaptation and num_usable > 0 and config.num_draft_tokens > 0
        self._depth = config.num_draft_tokens  # of the coming drafts
        self._waiting = WaitingRounds()
        self.has_company = True  # several drafters and branches in this round, not only the best drafter's chain
        self._verdicts: list[Verdict] = []

    def decide(self, num_rows: int, overlaps: bool) -> None:
        """Settle the coming round of ``num_rows`` >= 1 decoding requests; overlaps: drafts are made beside a verification."""
        if self.is_adaptive:
            self._depth = self._balance.decide(num_rows, not self.switches.tetris, overlaps)

    def goes_without(self, num_ready: int, num_lacking: int) -> bool:
        """Whether requests that have a draft are verified while the others' are made, or wait for them."""
        return self._balance.goes_without(num_ready, num_lacking)

    @property
    def max_drafters(self) -> int:
        """Drafters per request in this round."""
        if not self.switches.routing:
            return self._num_drafters
        return 1 if self._is_chain else self._config.max_drafters

    @property
    def most_drafters(self) -> int:
        """Drafters per request that the router may choose, whether all of them work in this round or not."""
        return 1 if self.switches.trees is Trees.CHAIN else self._config.max_drafters

    @property
    def company(self) -> Overlap:
        """Whether several drafters and branches take part: with adaptation only where that is measured to be faster."""
        return Overlap.AUTO if self.is_adaptive and self.switches.trees is Trees.FUSED else Overlap.ON

    @property
    def _is_chain(self) -> bool:
        return self.switches.trees is Trees.CHAIN or not self.has_company

    def draft_plan(self) -> DraftPlan:
        """How trees are grown in this round."""
        switches, config = self.switches, self._config
        if switches.trees is Trees.MERGED:
            return DraftPlan(fuse_every=NEVER_FUSE, keep_divergent=True)
        calibration = self.chances.table()
        stops = switches.tetris and self.chances.num_observations >= ENOUGH_OBSERVATIONS
        min_chance = min(GROWTH_SHARE * self._balance.worth, MAX_MIN_CHANCE) if stops else 0.0
        if self._is_chain:
            return DraftPlan(min_chance=min_chance, calibration=calibration)
        return DraftPlan(
            num_siblings=self._num_siblings,
            keep_divergent=self._num_siblings > 0,
            max_nodes=config.max_tree_nodes,
            min_chance=min_chance,
            calibration=calibration,
        )

    def may_draft(self, state: RequestState) -> bool:
        """Whether this request could be speculated for at all: of a single token nothing is drafted."""
        asked = state.request.num_draft_tokens
        return state.num_remaining > 1 and bool(state.allowed.any()) and (self._config.num_draft_tokens if asked is None else asked) > 0

    def depth(self, state: RequestState) -> int:
        """The longest draft this request gets in this round, as far as it could all be emitted and fits the target's next call."""
        if not self.may_draft(state):
            return 0
        asked = state.request.num_draft_tokens
        wanted = self._depth if asked is None else asked
        return max(0, min(wanted, state.num_remaining - 1, self.max_nodes(state)))

    def max_nodes(self, state: RequestState) -> int:
        """Draft tokens that fit the target's next call."""
        return min(self._limits.max_step_tokens - state.num_uncached, self._limits.usable_context - state.num_tokens)

    def saw_drafts(self, states: Sequence[RequestState], draft_ns: int | None) -> None:
        """Learn from a draft round: these requests got new drafts, or none. draft_ns: None when it ran beside a verification."""
        reaches = []
        for state in states:
            draft = state.draft
            reaches.append([] if draft is None else reach_of(draft.tree)[draft.trunk].tolist())
        self._balance.saw_drafts(len(states), max(self.depth(state) for state in states), reaches, draft_ns)

    def choose(self, states: Sequence[RequestState], draft_ns: int) -> list[RequestState]:
        """Set `RequestState.chosen`: the nodes of each draft that the coming call verifies.

        Args:
            states: at least one, in the policy's order.
            draft_ns: what drafting took of this round.

        Returns:
            Those that are verified now: all of them, unless together they exceed a limit. The others keep their drafts and gain weight.
        """
        candidates = []
        for state in states:
            tree = NO_TREE if state.draft is None or self.depth(state) == 0 else state.draft.tree
            candidates.append(DraftCandidate(reach_of(tree), tree.parents))  # one committed token: the others are in the target's cache
        selection = self._select(candidates, states, draft_ns)
        masks: Mapping[int, Mask] = dict(enumerate(selection.masks))
        if self.is_adaptive and selection.num_tokens > self._config.max_verified_tokens > 0:
            masks = self._assign(candidates, states, draft_ns)
        for index, mask in masks.items():
            states[index].chosen = self._fitting(states[index], np.flatnonzero(mask))
        going = [states[index] for index in masks]
        self._waiting.note([state.request_uid for state in states], [state.request_uid for state in going])
        return going

    def _assign(self, candidates: Sequence[DraftCandidate], states: Sequence[RequestState], draft_ns: int) -> dict[int, Mask]:
        """Who goes into a verification that cannot take everybody, and with which nodes: by index."""
        rows, width = len(states), max(len(candidate.path_probs) for candidate in candidates) + 1
        balance, most = self._balance, self._config.max_verified_tokens
        by_rows = [
            float(balance.verify_ns(count, np.array([count]))[0] + balance.overhead_ns(count, draft_ns)) for count in range(1, rows + 1)
        ]
        # With packed calls the width of a row costs nothing by itself: its tokens have a price.
        cycle_ns = cost_matrix(lambda count, _: by_rows[count - 1], rows, width)
        offered = [
            Candidate(index, 1, candidate.path_probs, self._waiting[state.request_uid])
            for index, (candidate, state) in enumerate(zip(candidates, states, strict=True))
        ]
        prices = Prices(worth_ns=1.0 / max(balance.rate, 1e-12), token_ns=balance.token_ns(rows, most))
        found = assign(offered, cycle_ns, Limits(rows, most, width), prices)
        return {
            index: select_evenly([candidates[index]], num_nodes).masks[0]
            for index, num_nodes in zip(found.chosen, found.num_draft_tokens, strict=True)
        }

    def _select(self, candidates: Sequence[DraftCandidate], states: Sequence[RequestState], draft_ns: int) -> DraftSelection:
        switches = self.switches
        overhead_ns = float(self._balance.overhead_ns(len(states), draft_ns))
        if switches.trees is Trees.MERGED:
            selection = select_evenly(candidates, self._limits.max_step_tokens)
        elif switches.tetris and not self.is_adaptive:
            selection = select_by_budget(candidates, sum(self.depth(state) for state in states))
        elif switches.tetris and self._balance.is_trying:
            selection = select_by_budget(candidates, TRIAL_NODES * len(states))
        elif switches.tetris:
            selection, _ = select_by_time(candidates, self._balance.verify_ns, overhead_ns)
        else:
            selection = select_evenly(candidates, max(self.depth(state) for state in states))
        self._balance.saw_sizes(len(states), selection.num_tokens, selection.expected_tokens, self._depth)
        if self.is_adaptive and self._depth:
            verify_ns = float(self._balance.verify_ns(len(states), np.array([selection.num_tokens]))[0])
            time_ns = verify_ns + overhead_ns
            worth = selection.expected_tokens / time_ns * self._balance.token_ns(len(states), selection.num_tokens)
            self._balance.saw_selection(len(states), selection.expected_tokens, time_ns, worth)
        return selection

    def _fitting(self, state: RequestState, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """At most as many as fit: those most likely to be accepted, of which parents are always the likelier ones."""
        most = max(self.max_nodes(state), 0)
        if len(nodes) <= most or state.draft is None:
            return nodes
        reach = reach_of(state.draft.tree)[nodes]
        return np.sort(nodes[np.argsort(-reach, kind="stable")[:most]])

    def saw_verification(self, rows: int, tokens: int, verify_ns: float) -> None:
        """A verification outside a round: what so many tokens in all rows together take."""
        self._balance.saw_verification(rows, tokens, verify_ns)

    def saw_drafting(self, rows: int, depth: int, draft_ns: float) -> None:
        """A draft outside a round."""
        self._balance.saw_drafting(rows, depth, draft_ns)

    def saw(self, verdict: Verdict) -> None:
        """Note the outcome of one request; learned from when the round is over."""
        self._verdicts.append(verdict)

    def learn(self, stats: RoundStats) -> None:
        """Learn from a finished round."""
        # A fit costs nearly the same for many verdicts as for few: once the chances are known, several rounds share one.
        if len(self._verdicts) >= (VERDICTS_PER_FIT if self.chances.num_observations >= WELL_KNOWN else 1):
            verdicts, self._verdicts = self._verdicts, []
            self.chances.learn(verdicts)
        if self._depth and self._balance.is_trying and stats.num_verified_rows:
            wall_ns = stats.wall_ns - stats.prefill_wall_ns
            if self._balance.saw_trial(stats.num_verified_rows, stats.num_verified_emitted, wall_ns):
                self.chances.start_anew()  # what was learned held for the time when drafts did not pay
        if stats.num_verified_rows and not stats.num_prefill_rows:  # a round that also prefilled says little about what rounds take
            other_ns = max(stats.wall_ns - stats.target_wall_ns - stats.draft_wall_ns, 0)
            self._balance.saw_round(stats.num_verified_rows, stats.num_verified_tokens, stats.target_wall_ns, other_ns)

    def statistics(self) -> dict[str, object]:
        """What has been learned, for JSON: reliability of the chances and of the raw probabilities, and the table of verification times."""
        calibrated, raw = self.chances.reliability()
        return {
            "depth": self._depth,
            "worth": self._balance.worth,
            "reliability": dict(calibrated.as_dict()),
            "raw_reliability": dict(raw.as_dict()),
            "verify_ns": self._balance.verify_table(),
        }
