"""Decisions that only a measurement can make, because they depend on how many cores there are.

Drafting beside a verification can cost more than it hides; further drafters and branches can cost more than they bring. What is left
open is tried in blocks of rounds, one way at a time, and the fastest way runs most of the time.
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from drafthouse.pipeline.modes import Overlap
from drafthouse.pipeline.stats import RoundStats

TRIAL_ROUNDS = 12  # of a way that is tried; its first ones are not counted
SETTLING_ROUNDS = 2
SHORT_TRIAL_ROUNDS = 6  # a trial ends here when the way is clearly slower
CLEARLY_SLOWER = 0.93
FIRST_TRIAL_AFTER = 12  # rounds in the best way before another is tried
LAST_TRIAL_AFTER = 768  # a trial that was lost makes it twice as many, one that was clearly lost four times, up to this
MEMORY = 0.5  # weight of what was measured before a block
CLEAR = 1.01  # another way has to be this much faster


class Way(NamedTuple):
    """How a round is run."""

    overlaps: bool = False  # drafts are made while others are verified
    has_company: bool = False  # several drafters and branches, not only the best drafter's chain


@dataclass(slots=True)
class _Record:
    """What one way brought at one batch size: running sums in which old blocks fade."""

    tokens: float = 0.0
    wall_ns: float = 0.0
    patience: int = FIRST_TRIAL_AFTER  # rounds from one trial to the next
    due_in: int = FIRST_TRIAL_AFTER  # rounds

    @property
    def rate(self) -> float:
        return self.tokens / self.wall_ns if self.wall_ns else 0.0

    def add(self, tokens: int, wall_ns: int) -> None:
        self.tokens = MEMORY * self.tokens + tokens
        self.wall_ns = MEMORY * self.wall_ns + wall_ns


class _Contest:
    """All ways at one batch size. The first one is taken until another has turned out to be faster."""

    def __init__(self, ways: tuple[Way, ...]) -> None:
        self._records = {way: _Record() for way in ways}
        self._best = self.current = ways[0]
        self._rounds = self._tokens = self._wall_ns = 0  # of the block under way

    def count(self, stats: RoundStats) -> None:
        """A round in the current way."""
        self._rounds += 1
        if self._rounds > SETTLING_ROUNDS:
            self._tokens += stats.num_verified_emitted
            self._wall_ns += stats.wall_ns - stats.prefill_wall_ns
        if self.current != self._best:
            if self._rounds >= TRIAL_ROUNDS or (self._rounds >= SHORT_TRIAL_ROUNDS and self._is_hopeless()):
                self._end_trial()
            return
        due = None
        for way, record in self._records.items():
            record.due_in -= 1
            if way != self._best and record.due_in <= 0 and (due is None or record.due_in < self._records[due].due_in):
                due = way
        if due is not None and self._rounds >= FIRST_TRIAL_AFTER:  # so that the best way's figure is as fresh as the other's will be
            self._close_block()
            self.current = due

    def _is_hopeless(self) -> bool:
        return self._tokens / max(self._wall_ns, 1) < CLEARLY_SLOWER * self._records[self._best].rate

    def _end_trial(self) -> None:
        self._close_block()
        tried, best = self._records[self.current], self._records[self._best]
        if tried.rate > CLEAR * best.rate:
            self._best = self.current
            for record in self._records.values():
                record.patience = record.due_in = FIRST_TRIAL_AFTER
        else:
            factor = 4 if tried.rate < CLEARLY_SLOWER * best.rate else 2
            tried.patience = min(factor * tried.patience, LAST_TRIAL_AFTER)
            tried.due_in = tried.patience
            self.current = self._best

    def _close_block(self) -> None:
        self._records[self.current].add(self._tokens, self._wall_ns)
        self._rounds = self._tokens = self._wall_ns = 0


class Ways:
    """What is left open is measured, by batch size in powers of two; one way at a time, for two at once would be one figure."""

    def __init__(self, overlap: Overlap, company: Overlap) -> None:
        """Args: on or off decides, auto measures; it begins with drafts made in turn, by one drafter each."""
        self._ways = tuple(Way(*choice) for choice in product(_open(overlap), _open(company)))
        self._contests: dict[int, _Contest] = {}
        self._here: _Contest | None = None

    def decide(self, num_rows: int) -> Way:
        """The way of the coming round of ``num_rows`` >= 1 requests."""
        if len(self._ways) == 1:
            return self._ways[0]
        size = (num_rows - 1).bit_length()
        self._here = self._contests.setdefault(size, _Contest(self._ways))
        return self._here.current

    def learn(self, stats: RoundStats) -> None:
        """Count a finished round of `decide`; what it took for prompts is left out."""
        if self._here is not None:
            self._here.count(stats)


def _open(choice: Overlap) -> tuple[bool, ...]:
    return {Overlap.OFF: (False,), Overlap.ON: (True,), Overlap.AUTO: (False, True)}[choice]
