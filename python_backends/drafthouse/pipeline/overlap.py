"""Whether to draft while the target verifies: where cores are few, drafting beside a verification can cost more than it hides."""

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
    current: bool = True  # overlapped
    best: bool = True
    rounds: int = 0  # of the block under way
    block: int = BLOCK_ROUNDS
    trial_after: int = FIRST_TRIAL_AFTER
    tokens: int = 0
    wall_ns: int = 0


class OverlapChoice:
    """With ``auto`` both ways are measured in blocks of rounds, per batch size, and the faster one runs most of the time."""

    def __init__(self, overlap: Overlap) -> None:
        self._overlap = overlap
        self._contests: dict[int, _Contest] = {}
        self._here: _Contest | None = None

    def decide(self, num_rows: int) -> bool:
        """True: the coming round of ``num_rows`` requests overlaps."""
        if self._overlap is not Overlap.AUTO:
            return self._overlap is Overlap.ON
        self._here = self._contests.setdefault(num_rows, _Contest((_Way(), _Way())))
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
