"""What drafters' probabilities are worth as chances of acceptance: learned from every verdict, for all drafters and for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.calibration import NUM_COEFFICIENTS, Calibration, Reliability

# Before anything was seen. A drafter's own choice is the target's more often than its probability says, because both take the best token.
_FIRST_OWN = (1.5, 1.0, 0.0)
_FIRST_OTHER = (0.0, 1.0, 0.0)
_SHARED_OBSERVATIONS = 40.0  # what all drafters together count for when one of them is judged
ENOUGH_OBSERVATIONS = 64  # from here on chances decide what is not worth growing


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one verified request tells about chances. N = nodes whose parent the target accepted, verified or not."""

    source: NDArray[np.int32]  # [N], drafter
    rank: NDArray[np.int32]  # [N], 0 = the drafter's own choice
    prob: NDArray[np.float32]  # [N]
    score: NDArray[np.float32]  # [N], routing score of the drafter for this request
    hit: NDArray[np.bool_]  # [N], the target chose it


class Chances:
    """A calibration per drafter, drawn towards one of all drafters by how little is known of the one."""

    def __init__(self, num_drafters: int) -> None:
        """Nothing seen yet."""
        self._num_drafters = num_drafters
        first = np.array([[_FIRST_OWN] * (num_drafters + 1), [_FIRST_OTHER] * (num_drafters + 1)])  # the last of each: all together
        self._first = first.reshape(-1, NUM_COEFFICIENTS)
        self._lines = Calibration.from_table(self._first)
        self._count = np.zeros((2, num_drafters), np.int64)

    @property
    def num_observations(self) -> int:
        """Proposals whose outcome is known."""
        return int(self._count.sum())

    def table(self) -> NDArray[np.float32]:
        """`DraftPlan.calibration`, [2, D, 3]."""
        lines = self._lines.table().reshape(2, self._num_drafters + 1, NUM_COEFFICIENTS)
        own = (self._count / (self._count + _SHARED_OBSERVATIONS))[:, :, None]
        table: NDArray[np.float32] = (own * lines[:, :-1] + (1 - own) * lines[:, -1:]).astype(np.float32)
        return table

    def learn(self, verdicts: Sequence[Verdict]) -> None:
        """Learn from the requests of one round."""
        if not verdicts:
            return
        source, rank, prob, score, hit = (np.concatenate([getattr(verdict, name) for verdict in verdicts]) for name in Verdict.__slots__)
        kind = (rank > 0).astype(np.int64)
        np.add.at(self._count, (kind, source), 1)
        width = self._num_drafters + 1
        index = np.concatenate((kind * width + source, kind * width + self._num_drafters))
        self._lines.observe(index, *(np.concatenate((column, column)) for column in (prob, score, hit)))

    def start_anew(self) -> None:
        """Forget what was learned; what was predicted and came true stays on record."""
        self._lines.restart(self._first)
        self._count[:] = 0

    def reliability(self) -> tuple[Reliability, Reliability]:
        """Predicted against observed: as calibrated, and the raw probabilities. Every proposal counts twice."""
        return self._lines.reliability(), self._lines.raw_reliability()
