"""Drafters that answer, but so late that every round would be theirs: left out for a while, then tried again.

A round waits for its slowest drafter. So a drafter has to keep up with the others that drafted in the same round; one that drafted by
itself, with what calls usually take. What slows all of them down, such as a busy machine, is nobody's fault,
and neither is a constant distance: a call may take some time longer than the others' in any case (`FusionOptions.patience_s`), and the
longer, the longer the rest of a round is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from drafthouse.fusion.pacing import SMOOTHING, Pace

FACTOR = 4.0  # calls that take less than so many times the others' are no trouble
ROUNDS_BEFORE_LEFT_OUT = 3  # slow ones, each of which the next normal one makes up for
FIRST_PAUSE_NS = 500_000_000
LONGEST_PAUSE_NS = 30_000_000_000
PAUSE_PER_DELAY = 20  # a pause lasts at least so many times what the drafter took, so that attempts cost little


REST_SHARE = 0.5  # of the time between two draft rounds: a call may always exceed the others' by that
IDLE_NS = 2_000_000_000  # from then on nothing was to be drafted


class Rest:
    """What passes between two draft rounds, mostly a verification, as an exponential mean."""

    def __init__(self) -> None:
        self.mean_ns = 0.0
        self._ended_ns = -IDLE_NS

    def begin(self, now_ns: int) -> None:
        """A draft round begins."""
        rest_ns = now_ns - self._ended_ns
        if rest_ns < IDLE_NS:
            self.mean_ns += (SMOOTHING if self.mean_ns else 1.0) * (rest_ns - self.mean_ns)

    def end(self, now_ns: int) -> None:
        """It has ended."""
        self._ended_ns = now_ns


@dataclass(slots=True)
class Work:
    """One drafter's calls in one round."""

    wall_ns: int = 0
    num_calls: int = 0
    num_steps: int = 0  # drafted tokens in a row, summed over calls
    num_drafted: int = 0  # over all requests
    num_read: int = 0  # tokens taken in, over all requests

    def drafted(self, wall_ns: int, num_steps: int, num_rows: int) -> None:
        """Book a call that drafts ``num_steps`` tokens for each of ``num_rows`` requests."""
        self.wall_ns += wall_ns
        self.num_calls += 1
        self.num_steps += num_steps
        self.num_drafted += num_steps * num_rows

    def took_in(self, wall_ns: int, num_tokens: int) -> None:
        """Book a call in which so many tokens were read."""
        self.wall_ns += wall_ns
        self.num_calls += 1
        self.num_read += num_tokens

    def times(self, other: "Work") -> float:
        """How many times as much as ``other`` this is, at most, and at least once."""
        tokens = (self.num_drafted + self.num_read) / (other.num_drafted + other.num_read)
        return max(1.0, tokens, self.num_steps / max(other.num_steps, 1))


@dataclass(slots=True)
class Usual:
    """What one drafter's calls have taken lately."""

    drafting: Pace = field(default_factory=Pace)
    intake: Pace = field(default_factory=Pace)

    @property
    def hop_ns(self) -> float:
        """What a call takes beyond the session; infinite when none was seen."""
        pace = self.drafting if self.drafting.is_known else self.intake
        return pace.hop_ns if pace.is_known else math.inf

    def session_ns(self, work: Work) -> float:
        """What so much work usually takes inside the session."""
        return work.num_steps * self.drafting.step_ns + work.num_read * self.intake.step_ns


@dataclass(slots=True)
class Tardiness:
    """One drafter's record."""

    limit: int = ROUNDS_BEFORE_LEFT_OUT
    num_slow: int = 0  # slow rounds that no normal one has made up for, at most ``limit``
    back_at_ns: int = 0  # left out until then
    pause_ns: int = FIRST_PAUSE_NS  # the next one

    def is_out(self, now_ns: int) -> bool:
        """Whether the drafter sits out now."""
        return now_ns < self.back_at_ns

    def note(self, is_slow: bool, took_ns: int, now_ns: int) -> bool:
        """Hear of a round in which it drafted, and for how long; returns whether it is left out from now on.

        After a pause one slow round is enough for the next pause, twice as long; as many normal rounds as it took to be left out
        give it a clean record.
        """
        if not is_slow:
            self.num_slow = max(self.num_slow - 1, 0)
            if self.num_slow == 0:
                self.pause_ns = FIRST_PAUSE_NS
            return False
        self.num_slow = min(self.num_slow + 1, self.limit)
        if self.num_slow < self.limit:
            return False
        pause_ns = min(max(self.pause_ns, PAUSE_PER_DELAY * took_ns), LONGEST_PAUSE_NS)
        self.back_at_ns = now_ns + pause_ns
        self.pause_ns = min(2 * pause_ns, LONGEST_PAUSE_NS)
        return True


def judged(works: Mapping[int, Work], usual: Sequence[Usual], patience_ns: float) -> dict[int, bool]:
    """Who took much longer in one round than it should have: by drafter, as far as there is anything to compare with.

    Args:
        works: by drafter, of those that worked in this round and answered every call.
        usual: what calls take, by drafter.
        patience_ns: by how much a call may always exceed the others'.
    """
    verdicts: dict[int, bool] = {}
    for drafter, work in works.items():
        due_ns = _due_ns(drafter, work, works, usual)
        if math.isfinite(due_ns):
            verdicts[drafter] = work.wall_ns > max(FACTOR * due_ns, due_ns + patience_ns * work.num_calls)
    return verdicts


def _due_ns(drafter: int, work: Work, works: Mapping[int, Work], usual: Sequence[Usual]) -> float:
    """What the drafter's calls would have taken the fastest of the others in this round.

    Without others: the shortest way that any drafter has, and its own usual time for the work, which depends on how large it is.
    """
    others = [other for index, other in works.items() if index != drafter and (other.num_steps > 0) == (work.num_steps > 0)]
    if others:
        return min(other.wall_ns * work.times(other) for other in others)
    return work.num_calls * min(known.hop_ns for known in usual) + usual[drafter].session_ns(work)
