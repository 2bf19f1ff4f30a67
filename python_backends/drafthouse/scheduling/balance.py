"""How much to speculate: draft depth from what drafts are worth and what both stages cost.

CoSine (arXiv 2503.10325, section "adaptive speculation"): when the verification server idles, draft more; when it has a backlog, less. The
paper gives no formula; ours is the rate of a round,

    (R + expected accepted draft tokens) / (draft + verify + the rest),

from learned times and from the calibrated chances of the drafts themselves. So a setting that was never tried has a predicted rate, and
nothing has to be tried out for it. R = rows of the batch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.linear_costs import LinearCosts
from drafthouse.scheduling.token_costs import TokenCosts

Floats = NDArray[np.float64]

_DRAFT_PRIOR_NS = (4e6, 0.3e6, 0.4e6, 0.03e6)  # per call, row, step, row and step
_OTHER_PRIOR_NS = (2e6, 0.3e6)  # per round, row
_SMOOTHING = 0.1
_HIDDEN_PRICE = 0.05  # tokens that a further step has to gain even where it costs no time
_FIRST_DRAFTS = 12
_FIRST_CHANCE = 0.7  # that a draft token is accepted, before any draft was seen
# k = 0 is entered and left with hysteresis: a clear loss, several rounds in a row; then single tries, ever more seldom.
_LOSS = 1.02
_LOSING_ROUNDS = 8
_TRIAL_ROUNDS = 2
TRIAL_NODES = 2  # verified of each draft then
_FIRST_PAUSE = 4
_LONGEST_PAUSE = 96


def _round(tokens: float) -> NDArray[np.int64]:
    return np.array([round(tokens)])


class Balance:
    """Learns what rounds take and what drafts are worth; decides how deep to draft. Not thread-safe, needs no clock."""

    def __init__(self, max_depth: int) -> None:
        """Args: deepest draft."""
        self._max_depth = max_depth
        self._verify, self._draft, self._other = TokenCosts(), LinearCosts(_DRAFT_PRIOR_NS), LinearCosts(_OTHER_PRIOR_NS)
        self._reach = _FIRST_CHANCE ** np.arange(1, max_depth + 1)  # mean chance that a draft is accepted to depth 1, 2, …
        self._value = self._reach.copy()  # by how much that exceeds, on average, what it takes for a token to pay
        self._num_drafts = 0
        self._worth = 0.0
        self._tokens_per_row = float(max_depth + 1)  # verified
        self._worth_per_draft = float(self._reach.sum())  # expected accepted draft tokens
        self._last_depth = max_depth
        self._rates: dict[int, float] = {}  # by rows: expected tokens per ns, running mean
        self._num_losing = 0
        self._paused_rounds = 0
        self._pause = _FIRST_PAUSE
        self._num_trial_rounds = 0
        self._trial_tokens = self._trial_ns = 0.0

    @property
    def is_trying(self) -> bool:
        """After rounds without drafts: costs are old, so a few drafts are verified whatever they seem worth."""
        return self._num_trial_rounds > 0

    @property
    def worth(self) -> float:
        """Chance of acceptance at which verifying one more token just pays, running mean."""
        return self._worth

    @property
    def rate(self) -> float:
        """Expected tokens per ns of a batch, the best that is known; 0 before the first selection."""
        return max(self._rates.values(), default=0.0)

    def verify_ns(self, rows: int, tokens: NDArray[np.int64]) -> Floats:
        """Expected time of verifying this many tokens in all rows together, ascending, [n] -> [n]."""
        return self._verify.predict_ns(rows, tokens)

    def verify_table(self) -> list[tuple[int, float, float]]:
        """Rows, tokens and time in ns of every kind of verification seen."""
        return self._verify.table()

    def token_ns(self, rows: int, tokens: int) -> float:
        """What one more token costs a verification of so many."""
        return self._verify.slope_ns(rows, tokens)

    def overhead_ns(self, rows: int, drafted_ns: float | Floats) -> Floats:
        """The rest of a round in which drafting takes ``drafted_ns`` of the critical path; of its shape."""
        return self._other.predict_ns((1, rows)) + drafted_ns

    def draft_ns(self, rows: int, depth: int) -> float:
        """Expected time of drafting so deep for so many rows."""
        return float(self._draft.predict_ns((1, rows, depth, rows * depth))) if depth and rows else 0.0

    def decide(self, rows: int, is_even: bool, is_hidden: bool) -> int:
        """Depth of the coming drafts; 0 while drafts do not pay.

        Args:
            rows: of the coming batch.
            is_even: every request verifies as many nodes as its draft is deep; otherwise only nodes that pay are verified.
            is_hidden: drafts are made while the target verifies, so that they take no time of their own.
        """
        if self._paused_rounds > 0:
            self._paused_rounds -= 1
            self._num_trial_rounds = _TRIAL_ROUNDS + 1
            return 0
        self._num_trial_rounds = max(self._num_trial_rounds - 1, 0)
        if self._num_drafts < _FIRST_DRAFTS:  # as deep as it goes, to see what depth is worth
            return self._max_depth
        return self._even_depth(rows, is_hidden) if is_even else self._paying_depth(rows, is_hidden)

    def _even_depth(self, rows: int, is_hidden: bool) -> int:
        depths = np.arange(1, self._max_depth + 1)
        verifying = self.verify_ns(rows, rows * (1 + depths))
        drafting = np.array([self.draft_ns(rows, depth) for depth in depths.tolist()])
        if is_hidden:  # but for what takes longer than the verification
            drafting = np.maximum(drafting - verifying, 0.0)
        expected = rows * (1 + np.cumsum(self._reach))
        return 1 + int(np.argmax(expected / (verifying + self.overhead_ns(rows, drafting))))

    def _paying_depth(self, rows: int, is_hidden: bool) -> int:
        """As deep as the drafts of a batch gain more than a further step costs."""
        _, _, per_step, per_row_step = self._draft.coefficients.tolist()
        price = np.full(self._max_depth, self._rate_of(rows) * (per_step + rows * per_row_step))
        if is_hidden:  # but for what takes longer than the verification
            verify_ns = self.verify_ns(rows, _round(rows * self._tokens_per_row))[0]
            hidden = [self.draft_ns(rows, depth) <= verify_ns for depth in range(1, self._max_depth + 1)]
            price = np.where(hidden, _HIDDEN_PRICE, price)
        return max(1, int(np.count_nonzero(rows * self._value > price)))

    def goes_without(self, ready: int, lacking: int) -> bool:
        """Whether to verify the requests that have a draft now, and draft for the others meanwhile, or to wait and verify all.

        The more expected tokens per unit of time. A request that has a draft brings as many as the mean one.
        """
        if not ready or not lacking:
            return bool(ready)
        tokens = 1.0 + self._worth_per_draft
        now = ready * tokens / (self.verify_ns(ready, _round(ready * self._tokens_per_row))[0] + self.overhead_ns(ready, 0.0))
        every = ready + lacking
        time_ns = self.verify_ns(every, _round(every * self._tokens_per_row))[0]
        waiting = every * tokens / (time_ns + self.overhead_ns(every, self.draft_ns(lacking, max(self._last_depth, 1))))
        return bool(now >= waiting)

    def saw_drafts(self, rows: int, depth: int, reaches: Sequence[Sequence[float]], draft_ns: float | None) -> None:
        """A draft round: per row the chance of acceptance of its trunk to depth 1, 2, …, as far as it was grown.

        draft_ns is None when it ran beside a verification: then its time says nothing.
        """
        if draft_ns is not None:
            self.saw_drafting(rows, depth, draft_ns)
        table = np.zeros((len(reaches), min(depth, self._max_depth)))
        for row, reach in zip(table, reaches, strict=True):
            row[: len(reach)] = reach[: len(row)]
        weight = max(_SMOOTHING, 1 / (1 + self._num_drafts))
        self._num_drafts += 1
        for mean, seen in ((self._reach, table), (self._value, np.maximum(table - self._worth, 0.0))):
            deepest = table.shape[1]
            mean[:deepest] += weight * (seen.mean(axis=0) - mean[:deepest])
            if 0 < deepest < len(mean):  # deeper than was drafted: as it went on before
                before = mean[deepest - 2] if deepest > 1 else 1.0
                ratio = min(mean[deepest - 1] / max(before, 1e-9), 1.0)
                mean[deepest:] = mean[deepest - 1] * ratio ** np.arange(1, len(mean) - deepest + 1)

    def saw_sizes(self, rows: int, num_tokens: int, expected_tokens: float, depth: int) -> None:
        """What the coming verification consists of, whoever decided that."""
        self._last_depth = depth
        self._tokens_per_row += _SMOOTHING * (num_tokens / rows - self._tokens_per_row)
        self._worth_per_draft += _SMOOTHING * (expected_tokens / rows - 1 - self._worth_per_draft)

    def saw_selection(self, rows: int, expected_tokens: float, time_ns: float, worth: float) -> None:
        """What the coming verification is expected to bring, drafting included; and what one more token would have to be worth."""
        self._worth = worth if not self._worth else self._worth + _SMOOTHING * (worth - self._worth)
        rate = expected_tokens / time_ns
        if self.is_trying:
            return  # what comes of it decides, not what was expected: `saw_trial`
        before = self._rates.get(rows, rate)
        self._rates[rows] = before + _SMOOTHING * (rate - before)
        self._num_losing = self._num_losing + 1 if self._rate_alone(rows) > _LOSS * rate else 0
        if self._num_losing >= _LOSING_ROUNDS:
            self._stop_drafting()

    def saw_trial(self, rows: int, emitted: int, wall_ns: float) -> bool:
        """A round of a trial brought so many tokens. True when it was the last one and drafts have turned out to pay again."""
        self._trial_tokens += emitted
        self._trial_ns += wall_ns
        if self._num_trial_rounds > 1:
            return False
        rate, self._trial_tokens, self._trial_ns = self._trial_tokens / self._trial_ns, 0.0, 0.0
        if self._rate_alone(rows) > _LOSS * rate:
            self._stop_drafting()
            return False
        self._rates[rows], self._pause, self._num_losing = rate, _FIRST_PAUSE, 0
        return True

    def _rate_of(self, rows: int) -> float:
        """The running mean at this number of rows, or at the nearest one that was seen; 0 before the first selection."""
        nearest = min(self._rates, key=lambda seen: abs(seen - rows), default=None)
        return 0.0 if nearest is None else self._rates[nearest]

    def _rate_alone(self, rows: int) -> float:
        """Tokens per ns without drafts."""
        return rows / float(self.verify_ns(rows, np.array([rows]))[0] + self.overhead_ns(rows, 0.0))

    def _stop_drafting(self) -> None:
        self._paused_rounds, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        self._num_losing = 0

    def saw_verification(self, rows: int, tokens: int, verify_ns: float) -> None:
        """A verification of so many tokens in all rows together."""
        self._verify.observe(rows, tokens, verify_ns)

    def saw_drafting(self, rows: int, depth: int, draft_ns: float) -> None:
        """What drafting so deep took, apart from what came of it."""
        self._draft.observe((1, rows, depth, rows * depth), draft_ns)

    def saw_round(self, rows: int, tokens: int, verify_ns: float, other_ns: float) -> None:
        """A finished round: tokens that were verified in all rows together, and the time that was neither draft nor verification."""
        self.saw_verification(rows, tokens, verify_ns)
        self._other.observe((1, rows), other_ns)
