"""How many cache rows of a slot the network gets to see.

ONNX Runtime's attention reads the whole cache it is given, whatever the mask says: a 0.95 M model with 8 slots takes 1.0 ms per token
with 512 rows each, and 0.5 ms with 128. So a call gets only as many rows per slot as the fullest slot needs. Changing that moves the
cache, so it goes in steps, and down only when less than half is enough. Logits are the same bits for every number.
"""

from collections.abc import Sequence

from drafthouse.engine.batch import Task
from drafthouse.engine.session import Session
from drafthouse.engine.slots import SlotTable

_NUM_STEPS = 8


class CacheWindow:
    """Keeps a session's window as large as its calls need."""

    def __init__(self, session: Session, slots: SlotTable) -> None:
        self._session = session
        self._slots = slots
        self._num_rows = slots.context_len
        self._step = -(-slots.context_len // _NUM_STEPS)

    def fit(self, tasks: Sequence[Task]) -> None:
        """Makes room for everything that a step call over ``tasks`` may write, padding and rows that run along included."""
        places = max(max(task.num_new, task.num_extensions, 2) for task in tasks)
        needed = max(self._slots.rows_in_use(), *(task.end for task in tasks)) + places
        num_rows = min(-(-needed // self._step) * self._step, self._slots.context_len)
        if num_rows > self._num_rows or 2 * num_rows < self._num_rows:
            self.resize(num_rows)

    def resize(self, num_rows: int) -> None:
        self._session.resize(num_rows)
        self._num_rows = num_rows
