"""Decisions that only a measurement can make, because they depend on how many cores there are.

Drafting beside a verification can cost more than it hides; further drafters and branches can cost more than they bring. Both ways are run
in blocks of rounds, and the faster one most of the time.
"""

from dataclasses import dataclass

from drafthouse.pipeline.modes import Overlap
from drafthouse.pipeline.stats import RoundStats

BLOCK_ROUNDS = 12  # rounds in one way before the other is considered; the first ones of a block are not counted
SETTLING_ROUNDS = 2
FIRST_TRIAL_AFTER = 24  # rounds in the better way before the other is tried again; doubles up to
LAST_TRIAL_AFTER = 768
MEMORY = 0.5  # weight of what was measured before a block
CLEAR = 1.01  # the other way has to be this much faster


@dataclass(slots=True)
class _Way:
    """Tokens per second of one way at one batch size: running sums in which old blocks fade."""

    tokens: float = 0.0
    wall_ns: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.wall_ns if self.wall_ns else 0.0


@dataclass(slots=True)
class _Contest:
    """Both ways at one batch size."""

    ways: tuple[_Way, _Way]
    current: bool
    best: bool
    rounds: int = 0  # of the block under way
    block: int = BLOCK_ROUNDS
    trial_after: int = FIRST_TRIAL_AFTER
    tokens: int = 0
    wall_ns: int = 0


class TwoWays:
    """With ``auto`` both ways are measured in blocks of rounds, by batch size in powers of two; the faster one runs most of the time."""

    def __init__(self, overlap: Overlap, first: bool = True) -> None:
        """Args: on or off decides, auto measures; first: the way that is taken until the other has turned out to be faster."""
        self._overlap = overlap
        self._first = first
        self._contests: dict[int, _Contest] = {}
        self._here: _Contest | None = None

    def decide(self, num_rows: int) -> bool:
        """The way of the coming round of ``num_rows`` >= 1 requests."""
        if self._overlap is not Overlap.AUTO:
            return self._overlap is Overlap.ON
        size = (num_rows - 1).bit_length()
        self._here = self._contests.setdefault(size, _Contest((_Way(), _Way()), self._first, self._first))
        return self._here.current

    def learn(self, stats: RoundStats) -> None:
        """Count a finished round."""
        contest = self._here
        if self._overlap is not Overlap.AUTO or contest is None or stats.num_prefill_rows:
            return
        contest.rounds += 1
        if contest.rounds > SETTLING_ROUNDS:
            contest.tokens += stats.num_verified_emitted
            contest.wall_ns += stats.wall_ns
        if contest.rounds >= contest.block:
            _close_block(contest)


def _close_block(contest: _Contest) -> None:
    way = contest.ways[contest.current]
    way.tokens = MEMORY * way.tokens + contest.tokens
    way.wall_ns = MEMORY * way.wall_ns + contest.wall_ns
    contest.tokens = contest.wall_ns = contest.rounds = 0
    was_trial, other = contest.current != contest.best, contest.ways[not contest.best]
    if other.rate > CLEAR * contest.ways[contest.best].rate and other.tokens and contest.ways[contest.best].tokens:
        contest.best, contest.trial_after = not contest.best, FIRST_TRIAL_AFTER
    elif was_trial:
        contest.trial_after = min(2 * contest.trial_after, LAST_TRIAL_AFTER)
    contest.current = contest.best if was_trial else not contest.best
    contest.block = BLOCK_ROUNDS if contest.current != contest.best else contest.trial_after
