"""Rows that the engine extends with its own samples: what is fed back next, where it lies, and when it is enough.

A grown token lies behind everything before it in the row's cache, and sees all of it.
"""

from collections.abc import Sequence

from drafthouse.engine.batch import Task, TreeView
from drafthouse.engine.contract import GrowthStop


class Growth:
    """One row that grows. A ``Part`` of the network call that feeds its latest token back."""

    num_new = 1
    view: TreeView | None = None

    def __init__(self, task: Task, place: int) -> None:
        """``place``: of the sample after the row's last token among all that the step call chose."""
        self.task = task
        self.slot, self.end = task.slot, task.end
        self.place = place
        self.num_fed = 0
        self.token_ids: list[int] = []  # to be fed back
        self._chance = task.row.chance  # of everything before the next sample

    @property
    def start(self) -> int:
        return self.task.base + self.node - 1

    @property
    def last_start(self) -> int:
        return self.end - 1

    @property
    def node(self) -> int:
        """The output node at which it wants the next sample: the token that was fed last."""
        return self.task.num_draft + self.num_fed

    def feed(self, sampled: Sequence[int], probs: Sequence[float], stop: GrowthStop | None) -> bool:
        """Takes the sample as the next token, to be computed; False when it grows no further."""
        token = sampled[self.place]
        if stop is not None:
            self._chance *= stop.chance(probs[self.place])
            if token in self.task.row.sampling.end_ids or not self._chance >= stop.min_chance:
                return False
        self.token_ids = [token]
        self.num_fed += 1
        return True

    def keep(self) -> None:
        """What was fed last has been computed: the cache holds it as a draft."""
        self.task.entry.extend_draft(self.token_ids[0])
