"""How deep the target follows a draft: the chance that depth 1, 2, … is accepted, by number of drafters, learned online.

Three memories work together. The slow one knows the shape (which depth loses how much, what a further drafter adds); the fast one knows
by how much the present text deviates from it; the shortest one notices when that no longer holds. K = deepest draft, R = rows of a round.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SLOW_ROWS = 3000
_FAST_ROWS = 200
_FIRST_CHANCE = 0.6  # that a draft token is accepted, before anything was seen
_PSEUDO_TRIALS = 8.0  # what the shallower depth (or all drafters together) count as evidence
_FAST_PSEUDO_TRIALS = 4.0
_HIGHEST_CHANCE = 0.995
_SHORT_ROWS = 16
_SURPRISE = 4.0  # standard deviations between outcomes and expectation over the shortest memory


class Survival:
    """Estimates s_d, the chance that a draft is accepted to depth d at least. Not thread-safe.

    Depth by depth, as a product of conditional chances, so that what is learned with short drafts also holds for long ones. A depth
    with little evidence is drawn towards the one above it, and a number of drafters with little evidence towards all of them together.
    """

    def __init__(self, max_depth: int, max_drafters: int) -> None:
        self._hits = np.zeros((max_drafters + 1, max_depth))  # slow memory, by number of drafters
        self._trials = np.zeros((max_drafters + 1, max_depth))
        self._fast_hits = self._fast_expected = 0.0  # expected by the slow memory
        self._short_hits = self._short_expected = 0.0
        self._surprise = self._variance = 0.0  # hits beyond the estimate of the moment, over the shortest memory
        self._chances: list[Floats | None] = [None] * (max_drafters + 1)

    def observe(self, num_drafters: int, asked: Ints, accepted: Ints, depth_probs: Floats | None, stale_factor: float) -> bool:
        """Learn from a verified round.

        Args:
            num_drafters: that took part, at most.
            asked: how deep each row's draft was asked to be, [R]. A draft that came out shorter counts as not accepted below its end.
            accepted: how deep it was accepted, [R].
            depth_probs: calibrated chance that the row is accepted to depth 1, 2, … at least: the sum of the path probabilities of its
                verified nodes at that depth, [R, >= max asked]. Averaged with the outcome it halves the noise. None = outcomes alone.
            stale_factor: what the fast memory's evidence is worth before this round is added, 1 = all of it.

        Returns:
            True when the text has changed: acceptance is far from what was expected, and older evidence has been dropped.
        """
        depth = min(int(asked.max(initial=0)), self._hits.shape[1])
        if depth == 0:
            return False
        depths = np.arange(1, depth + 1)
        reached = (accepted[:, None] >= depths).astype(np.float64)  # [R, depth]
        if depth_probs is not None:
            reached = (reached + np.minimum.accumulate(np.clip(depth_probs[:, :depth], 0.0, 1.0), axis=1)) / 2
        counted = asked[:, None] >= depths
        hits = np.where(counted, reached, 0.0).sum(axis=0)
        trials = np.where(counted, np.concatenate([np.ones((len(asked), 1)), reached[:, :-1]], axis=1), 0.0).sum(axis=0)
        changed = self._follow(hits, trials, self._slow_chances(num_drafters)[:depth], len(asked), stale_factor)
        kept = (1 - 1 / _SLOW_ROWS) ** len(asked)
        self._hits[num_drafters] *= kept
        self._trials[num_drafters] *= kept
        self._hits[num_drafters, :depth] += hits
        self._trials[num_drafters, :depth] += trials
        self._chances = [None] * len(self._chances)
        return changed

    def _follow(self, hits: Floats, trials: Floats, slow: Floats, num_rows: int, stale_factor: float) -> bool:
        """Update the fast memory, and see whether the shortest one contradicts it. hits, trials, slow chances by depth."""
        chances = np.minimum(slow * self._deviation(), _HIGHEST_CHANCE)
        num_hits, expected = float(hits.sum()), float((trials * slow).sum())
        kept = (1 - 1 / _SHORT_ROWS) ** num_rows
        self._short_hits = kept * self._short_hits + num_hits
        self._short_expected = kept * self._short_expected + expected
        self._surprise = kept * self._surprise + num_hits - float((trials * chances).sum())
        self._variance = kept * kept * self._variance + float((trials * chances * (1 - chances)).sum())
        kept = stale_factor * (1 - 1 / _FAST_ROWS) ** num_rows
        self._fast_hits = kept * self._fast_hits + num_hits
        self._fast_expected = kept * self._fast_expected + expected
        if abs(self._surprise) <= _SURPRISE * math.sqrt(self._variance):
            return False
        self._fast_hits, self._fast_expected = self._short_hits, self._short_expected
        self._surprise = self._variance = 0.0
        return True

    def _deviation(self) -> float:
        pseudo_hits = self._pseudo_hits()
        return (self._fast_hits + pseudo_hits) / (self._fast_expected + pseudo_hits)

    def _pseudo_hits(self) -> float:
        """The fast memory's evidence for no deviation."""
        hits, trials = float(self._hits[:, :1].sum()), float(self._trials[:, :1].sum())
        return _FAST_PSEUDO_TRIALS * (hits + _FIRST_CHANCE) / (trials + 1)

    def expected_tokens(self, num_drafters: int, optimism: float = 0.0) -> Floats:
        """Tokens that a row is expected to emit, the target's own one included, with a draft of depth 0, 1, …, K. [K + 1]

        ``optimism`` > 0: if acceptance were that many standard deviations better than estimated.
        """
        slow = self._slow_chances(num_drafters)
        deviation = self._deviation()
        if optimism and len(slow):
            doubt = math.sqrt(max(1 - float(slow[0]) * deviation, 0.05) / (self._fast_expected + self._pseudo_hits()))
            deviation *= 1 + optimism * doubt
        chances = np.minimum(slow * deviation, _HIGHEST_CHANCE)
        expected = np.ones(len(chances) + 1)
        expected[1:] += np.cumsum(np.cumprod(chances))
        return expected

    def _slow_chances(self, num_drafters: int) -> Floats:
        known = self._chances[num_drafters]
        if known is not None:
            return known
        chances, above = [], _FIRST_CHANCE
        all_hits, all_trials = self._hits.sum(axis=0).tolist(), self._trials.sum(axis=0).tolist()
        columns = zip(self._hits[num_drafters].tolist(), self._trials[num_drafters].tolist(), all_hits, all_trials, strict=True)
        for hits, trials, every_hit, every_trial in columns:
            above = (every_hit + _PSEUDO_TRIALS * above) / (every_trial + _PSEUDO_TRIALS)
            chances.append((hits + _PSEUDO_TRIALS * above) / (trials + _PSEUDO_TRIALS))
        known = self._chances[num_drafters] = np.array(chances)
        return known
