"""How much to speculate: draft depth and number of drafters from the balance of the two stages.

CoSine (arXiv 2503.10325, section "adaptive speculation"): when the verification server idles, more drafters and tokens; when it has a
backlog, fewer. The paper gives no formula. Ours is a model: per batch size B, depth k and number of drafters m,

    rate = B · (1 + Σ_{d <= k} s_d(m)) / (draft(m, B, k) + verify(B, T) + other),   max(draft, verify) where the stages overlap,

from learned times and acceptance. The best k runs, 0 included; a setting is left for a better one only when the gain is large or lasts,
and other promising settings are tried for a round or two. How many nodes of which tree are verified is for `tetris` to say.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.cycle_costs import CycleCosts
from drafthouse.scheduling.stage_costs import StageCosts, bucket
from drafthouse.scheduling.survival import Survival

Floats = NDArray[np.float64]

_DECIDE_EVERY = 4  # rounds
# A predicted gain counts beyond the slack; what it adds up to over decisions has to pass the threshold: 3 % takes three decisions.
_SLACK = 0.01
_THRESHOLD = 0.06
_FADING = 0.7  # of that sum, when the current setting is the best after all
_SETTLED = 8  # rounds in a setting before it may be left
# Trying others: what is unknown about a setting speaks for it.
_UNSEEN_BONUS = 0.2
_FEW_SEEN_BONUS = 0.1
_STALE_BONUS = 0.06
_STALE_AFTER = 1024  # rounds at which that bonus is complete
_FIRST_TRIALS_EVERY = 8  # rounds, as long as unseen settings look promising
_TRIALS_EVERY = 32  # rounds; doubles while trials change nothing
_TRIALS_AT_LEAST_EVERY = 256
_TRIALS_AT_LEAST_EVERY_WITHOUT_DRAFTS = 128
_STALE_EVIDENCE = 0.7  # worth of old acceptance when k = 0 is interrupted to try again
_TRIAL_ROUNDS = 2  # one time may be an accident, and drafters that sat out catch up in the first round
_LONG_TRIAL_ROWS = 32  # verified rows after which a trial has shown what drafts are worth
_OPTIMISM = 1.0  # standard deviations
_ENOUGH = 2  # observations


@dataclass(frozen=True, slots=True)
class SpeculationPlan:
    """What the coming round does."""

    num_draft_tokens: int  # depth k; 0 = the target alone
    max_drafters: int  # per request, at least 1
    explores: bool = False  # a trial: verify the draft as asked, so that its width is measured


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What a round took and brought. R = rows the target verified."""

    plan: SpeculationPlan  # as decided for this round
    batch_size: int
    num_tokens: int  # T of the verification: tokens of its longest row, committed ones included
    draft_ns: float  # wall time of drafting; 0 when nothing was drafted
    verify_ns: float
    other_ns: float  # the rest of the round
    asked: NDArray[np.int64]  # [R], depth asked for, at most the plan's; less for a request that allows less
    accepted: NDArray[np.int64]  # [R], draft tokens emitted
    depth_probs: Floats | None = None  # [R, >= k], see `Survival.observe`


@dataclass(slots=True)
class _Seen:
    count: int = 0
    last_round: int = 0


@dataclass(slots=True)
class _Local:
    """What is decided apart for each batch bucket."""

    plan: SpeculationPlan
    trial: SpeculationPlan | None = None  # under way
    num_trial_rounds: int = 0
    num_rounds: int = 0
    last_decision: int = 0  # round of the controller, as the next
    last_change: int = -_SETTLED
    gained: float = 0.0
    until_trial: int = _FIRST_TRIALS_EVERY
    trials_every: int = _TRIALS_EVERY
    seen: dict[tuple[int, int], _Seen] = field(default_factory=dict)  # by depth and drafters
    num_changes: int = 0


class SpeculationController:
    """Decides before each round, learns after it. Not thread-safe; needs no clock.

    ``verify_costs`` is fed here and may be read by others (`tetris` needs it).
    """

    def __init__(
        self,
        max_draft_tokens: int,
        max_drafters: int,
        first_draft_tokens: int = 4,
        overlap: bool = False,
        verify_costs: StageCosts | None = None,
    ) -> None:
        """Args: max_* = limits of the plans; first_draft_tokens = depth to start with; overlap = drafting runs beside another batch's

        verification; verify_costs = what is known of the target's times, None = nothing.
        """
        self._max_depth = max_draft_tokens
        self._max_drafters = max(max_drafters, 1)
        self._first = SpeculationPlan(min(first_draft_tokens, max_draft_tokens), self._max_drafters)
        self.verify_costs = verify_costs or StageCosts()
        self._cycle = CycleCosts(self._max_drafters, overlap, self.verify_costs)
        self._survival = Survival(max_draft_tokens, self._max_drafters)
        self._locals: dict[int, _Local] = {}
        self._num_rounds = 0
        self._idle_drafters = True  # they have tokens to catch up with before they draft

    def decide(self, batch_size: int) -> SpeculationPlan:
        """The plan of the next round with ``batch_size`` >= 1 rows."""
        local = self._local(batch_size)
        local.num_rounds += 1
        self._num_rounds += 1
        if local.trial is not None and not self._goes_on(local, batch_size):
            local.trial = None
        if local.trial is None:
            if self._num_rounds - local.last_decision >= _DECIDE_EVERY:
                local.last_decision = self._num_rounds
                self._reconsider(local, batch_size)
            local.until_trial -= 1
            if local.until_trial <= 0:
                self._start_trial(local, batch_size)
        local.num_trial_rounds += 1
        return local.trial or local.plan

    def observe(self, outcome: RoundOutcome) -> None:
        """Learn from a finished round."""
        plan, batch = outcome.plan, outcome.batch_size
        depth, drafters = plan.num_draft_tokens, plan.max_drafters
        local = self._local(batch)
        catching_up, self._idle_drafters = self._idle_drafters and depth > 0, depth == 0
        seen = local.seen.setdefault((depth, drafters), _Seen())
        seen.count, seen.last_round = seen.count + (not catching_up), local.num_rounds
        self._cycle.observe_verify(batch, depth, outcome.num_tokens, outcome.verify_ns, outcome.other_ns)
        if depth == 0:
            return
        self._cycle.observe_draft(batch, depth, drafters, outcome.draft_ns, catching_up)
        stale = _STALE_EVIDENCE if catching_up else 1.0
        if self._survival.observe(drafters, outcome.asked, outcome.accepted, outcome.depth_probs, stale):
            for other in self._locals.values():
                other.trials_every = _TRIALS_EVERY
                other.until_trial = min(other.until_trial, _FIRST_TRIALS_EVERY)

    def rates(self, batch_size: int, num_drafters: int, optimism: float = 0.0) -> Floats:
        """Predicted tokens per ns of the whole batch with drafts of depth 0, 1, …, K; optimism as in `Survival`. [K + 1]"""
        expected = self._survival.expected_tokens(num_drafters, optimism)
        times = [self._cycle.cycle_ns(batch_size, depth, num_drafters) for depth in range(self._max_depth + 1)]
        rates: Floats = batch_size * expected / np.array(times)
        return rates

    def overhead_ns(self, batch_size: int, plan: SpeculationPlan) -> float:
        """What a round takes beside its verification: what `tetris.select_by_width` wants to know."""
        return self._cycle.overhead_ns(batch_size, plan.num_draft_tokens, plan.max_drafters)

    def statistics(self) -> dict[str, Any]:
        """Current plan and changes of it per batch bucket, expected tokens by depth, and the cost tables; can be written as JSON."""
        plans = {
            str(batch): {
                "num_draft_tokens": local.plan.num_draft_tokens,
                "max_drafters": local.plan.max_drafters,
                "changes": local.num_changes,
            }
            for batch, local in sorted(self._locals.items())
        }
        expected = {str(drafters): self._survival.expected_tokens(drafters).tolist() for drafters in range(1, self._max_drafters + 1)}
        return {"plans": plans, "expected_tokens": expected, **self._cycle.tables()}

    def _local(self, batch_size: int) -> _Local:
        local = self._locals.get(bucket(batch_size))
        if local is not None:
            return local
        drafters = self._max_drafters
        if self._locals:
            nearest = min(self._locals, key=lambda known: abs(known - batch_size))
            drafters = self._locals[nearest].plan.max_drafters
        local = self._locals[bucket(batch_size)] = _Local(self._first)
        if self.verify_costs.num_observations:
            local.plan = SpeculationPlan(int(np.argmax(self.rates(batch_size, drafters))), drafters)
        return local

    def _reconsider(self, local: _Local, batch_size: int) -> None:
        """Move to the best known setting when the gain over the current one, added up over decisions, is clear."""
        options = self._options(local, batch_size)
        current = options[local.plan.num_draft_tokens, local.plan.max_drafters]
        (depth, drafters), rate = max(options.items(), key=lambda item: item[1])
        if rate <= current:
            local.gained *= _FADING
            return
        local.gained = max(0.0, local.gained + rate / current - 1 - _SLACK)
        if local.gained >= _THRESHOLD and self._num_rounds - local.last_change >= _SETTLED:
            local.plan = SpeculationPlan(depth, drafters)
            local.gained, local.last_change = 0.0, self._num_rounds
            local.num_changes += 1
            local.trials_every = _TRIALS_EVERY
            local.until_trial = min(local.until_trial, _TRIALS_EVERY)

    def _options(self, local: _Local, batch_size: int, optimism: float = 0.0) -> dict[tuple[int, int], float]:
        """Rates of any depth with the present number of drafters, and of the present depth with one drafter more or less."""
        depth, drafters = local.plan.num_draft_tokens, local.plan.max_drafters
        options = {(other, drafters): rate for other, rate in enumerate(self.rates(batch_size, drafters, optimism).tolist())}
        if depth:
            for other in (drafters - 1, drafters + 1):
                if 1 <= other <= self._max_drafters:
                    expected = float(self._survival.expected_tokens(other)[depth])
                    options[depth, other] = batch_size * expected / self._cycle.cycle_ns(batch_size, depth, other)
        return options

    def _start_trial(self, local: _Local, batch_size: int) -> None:
        """Try the most hopeful setting; when none is, and drafts are made, one of those nearby that was tried least."""
        here = local.plan.num_draft_tokens, local.plan.max_drafters
        options = self._options(local, batch_size, _OPTIMISM if here[0] == 0 else 0.0)
        current = options.pop(here)
        if not options:
            return
        hopes = {setting: rate * (1 + self._bonus(local, setting)) for setting, rate in options.items()}
        setting = max(hopes, key=lambda option: hopes[option])
        unseen = self._seen(local, setting).count == 0
        if hopes[setting] <= current and here[0] > 0:
            # A first figure may have been an accident, and a setting may have become better than it was.
            nearby = [option for option in options if option[0] in (0, here[0] - 1, here[0] + 1)]
            setting, unseen = min(nearby, key=lambda option: self._rank_for_trial(local, option)), False
        local.trial, local.num_trial_rounds = SpeculationPlan(*setting, explores=True), 0
        local.until_trial = _FIRST_TRIALS_EVERY if unseen else local.trials_every
        longest = _TRIALS_AT_LEAST_EVERY if here[0] else _TRIALS_AT_LEAST_EVERY_WITHOUT_DRAFTS
        local.trials_every = local.trials_every if unseen else min(2 * local.trials_every, longest)

    def _goes_on(self, local: _Local, batch_size: int) -> bool:
        """A trial takes two rounds. One that interrupts k = 0 goes on as long as drafts might pay after all, as far as is known."""
        if local.trial is None or local.num_trial_rounds < _TRIAL_ROUNDS:
            return True
        if local.plan.num_draft_tokens > 0 or local.num_trial_rounds * batch_size >= _LONG_TRIAL_ROWS:
            return False
        options = self._options(local, batch_size, _OPTIMISM)
        return options[local.trial.num_draft_tokens, local.trial.max_drafters] > options[0, local.plan.max_drafters]

    @staticmethod
    def _seen(local: _Local, setting: tuple[int, int]) -> _Seen:
        return local.seen.get(setting) or _Seen()

    def _rank_for_trial(self, local: _Local, setting: tuple[int, int]) -> tuple[bool, int]:
        seen = self._seen(local, setting)
        return seen.count >= _ENOUGH, seen.last_round

    @staticmethod
    def _bonus(local: _Local, setting: tuple[int, int]) -> float:
        seen = local.seen.get(setting)
        if seen is None or seen.count == 0:
            return _UNSEEN_BONUS
        age = min(1.0, (local.num_rounds - seen.last_round) / _STALE_AFTER)
        return _FEW_SEEN_BONUS / seen.count + _STALE_BONUS * age
