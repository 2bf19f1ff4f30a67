"""From admitted rows to network calls: which rows share a call, and what goes into its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.buckets import TokenBuckets
from drafthouse.engine.contract import StepRow
from drafthouse.engine.session import BoundStep
from drafthouse.engine.slots import CacheEntry

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

# Rows up to this many tokens share a call (decoding); longer ones (prefill) are kept apart by powers of two.
_DECODE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class DraftShape:
    """A draft tree with branches: who sees whom, and how deep each node lies."""

    sees: NDArray[np.bool_]  # [n, n], node i sees node j: itself and its ancestors
    depth: IntArray  # [n], 1 for children of the last committed token

    @staticmethod
    def of(row: StepRow) -> "DraftShape | None":
        """The shape of the row's draft nodes; None for a chain."""
        first = row.num_committed
        if row.parents is None or np.array_equal(row.parents[first:], np.arange(first - 1, len(row.tokens) - 1)):
            return None
        parents = (row.parents[first:] - first).tolist()
        sees = np.eye(len(parents), dtype=np.bool_)
        for node, parent in enumerate(parents):
            if parent >= 0:
                sees[node] |= sees[parent]
        return DraftShape(sees, sees.sum(axis=1))


@dataclass(slots=True)
class Task:
    """One row of the call that is going to be run."""

    index: int  # in StepCall.rows
    row: StepRow
    entry: CacheEntry
    reused: int  # of row.tokens, already in the cache
    shape: DraftShape | None  # None = the draft is a chain

    @property
    def start(self) -> int:
        """Cache row, and position, of the first token that is computed."""
        return self.row.prefix_len + self.reused

    @property
    def num_new(self) -> int:
        return len(self.row.tokens) - self.reused

    @property
    def base(self) -> int:
        """Committed length after this row; the position of its first sample."""
        return self.row.prefix_len + self.row.num_committed

    @property
    def num_draft(self) -> int:
        return len(self.row.tokens) - self.row.num_committed


@dataclass(frozen=True, slots=True)
class Run:
    """One network call: tasks on neighbouring slots, padded to ``num_tokens``."""

    tasks: Sequence[Task]
    num_tokens: int

    @property
    def first_slot(self) -> int:
        return self.tasks[0].entry.slot


def plan_runs(tasks: Sequence[Task], buckets: TokenBuckets) -> list[Run]:
    """Splits tasks by length, so that decoding does not pay for prefill, then into maximal runs of neighbouring slots."""
    if len(tasks) == 1:
        return [Run(tasks, buckets.padded(tasks[0].num_new))]
    by_class: dict[int, list[Task]] = {}
    for task in tasks:
        by_class.setdefault(((task.num_new - 1) // _DECODE_TOKENS).bit_length(), []).append(task)
    runs: list[Run] = []
    for _, members in sorted(by_class.items()):
        members.sort(key=lambda task: task.entry.slot)
        begin = 0
        for end in range(1, len(members) + 1):
            if end == len(members) or members[end].entry.slot != members[end - 1].entry.slot + 1:
                part = members[begin:end]
                runs.append(Run(part, buckets.padded(max(task.num_new for task in part))))
                begin = end
    return runs


class InputWriter:
    """Writes token ids, positions, cache rows and masks of a call into its bound buffers."""

    def __init__(self, context_len: int) -> None:
        self._columns = np.arange(context_len)

    def write(self, step: BoundStep, tasks: Sequence[Task]) -> None:
        """Inputs of a run. Rows shorter than the call are padded with token 0, which nothing sees but later padding."""
        for row, task in enumerate(tasks):
            step.input_ids[row, : task.num_new] = task.row.tokens[task.reused :]
            step.input_ids[row, task.num_new :] = 0
            step.write_indices[row] = task.start
        self.write_chains(step)
        for row, task in enumerate(tasks):
            if task.shape is not None:
                first = task.row.num_committed - task.reused
                step.position_ids[row, first : task.num_new] = task.base - 1 + task.shape.depth
                step.attn_mask[row, 0, first : task.num_new, task.base : task.base + task.num_draft] = task.shape.sees

    def write_next(self, step: BoundStep, token_ids: NDArray[np.int32], positions: IntArray) -> None:
        """Inputs that feed one token per row back, at ``positions``."""
        step.input_ids[:, 0] = token_ids
        step.input_ids[:, 1:] = 0
        step.write_indices[:] = positions
        self.write_chains(step)

    def write_chains(self, step: BoundStep) -> None:
        """Every token follows the one before it and sees everything up to itself."""
        np.add(step.write_indices[:, None], self._columns[: step.input_ids.shape[1]], out=step.position_ids)
        np.less_equal(self._columns, step.position_ids[:, :, None], out=step.attn_mask[:, 0])
