"""How often drafters meet at a fusion point, given how far away they are.

A fusion point costs the slowest participant's hop: what a call takes beyond the time inside the engine's session. To a node of
CoSine's speculation cluster (arXiv 2503.10325, system overview) that is the network's round trip; within one server about a
millisecond. Fusing after every token pays it per token.
"""

import math

SMOOTHING = 0.2  # weight of the newest call
OUTLIER = 4.0  # a call counts as at most so many times the mean: one that was held up says little about the way
# A round spends at most as long on its hops as on drafting. Fusing less often than that would save little and fuse little.
MAX_HOP_SHARE = 1.0
MAX_INTERVAL = 64


def tokens_between_fusion(hop_ns: float, step_ns: float, at_least: int) -> int:
    """Tokens that a drafter should write by itself between two fusion points.

    Args:
        hop_ns: what one call takes beyond the session's time.
        step_ns: session time per drafted token; 0 when nothing is known yet.
        at_least: the configured interval, never gone below.

    The result is in [at_least, max(at_least, MAX_INTERVAL)].
    """
    if hop_ns <= 0.0 or step_ns <= 0.0:
        return at_least
    return max(at_least, min(MAX_INTERVAL, math.ceil(hop_ns / (MAX_HOP_SHARE * step_ns))))


class Pace:
    """What one drafter's calls have cost lately, as exponential means. One object per drafter, for as long as fusion runs."""

    def __init__(self) -> None:
        self.hop_ns = 0.0
        self.step_ns = 0.0

    def saw(self, wall_ns: int, session_ns: int, num_steps: int) -> None:
        """Book one drafting call of ``num_steps`` tokens; a call that drafted nothing or reports nonsense is ignored."""
        if num_steps < 1 or not 0 < session_ns <= wall_ns:
            return
        self.hop_ns = _mean(self.hop_ns, wall_ns - session_ns)
        self.step_ns = _mean(self.step_ns, session_ns / num_steps)

    @property
    def is_known(self) -> bool:
        """Whether any call was seen."""
        return self.step_ns > 0.0

    def interval(self, at_least: int) -> int:
        """See `tokens_between_fusion`."""
        return tokens_between_fusion(self.hop_ns, self.step_ns, at_least)


def _mean(mean: float, newest: float) -> float:
    return mean + SMOOTHING * (min(newest, OUTLIER * mean) - mean) if mean > 0.0 else float(newest)
