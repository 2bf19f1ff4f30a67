"""From admitted rows to network calls: which rows share a call, and what goes into its inputs."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.contract import StepRow
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.session import BoundStep
from drafthouse.engine.slots import CacheEntry, SlotTable

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
    """One network call: tasks on neighbouring slots, padded to ``num_tokens``; idle slots between them run along."""

    tasks: Sequence[Task]
    num_tokens: int
    idle: Mapping[int, int] = field(default_factory=dict)  # slot → cache row from which it may be overwritten

    @property
    def first_slot(self) -> int:
        return self.tasks[0].entry.slot

    @property
    def num_rows(self) -> int:
        return len(self.tasks) + len(self.idle)

    @property
    def rows(self) -> list[int]:
        """The tasks' rows in the network call."""
        return [task.entry.slot - self.first_slot for task in self.tasks]


def plan_runs(tasks: Sequence[Task], costs: CallCosts, slots: SlotTable) -> list[Run]:
    """Splits tasks by length, so that decoding does not pay for prefill, then into runs of neighbouring slots."""
    if len(tasks) == 1:
        return [Run(tasks, costs.padded(tasks[0].num_new))]
    by_class: dict[int, list[Task]] = {}
    for task in tasks:
        by_class.setdefault(((task.num_new - 1) // _DECODE_TOKENS).bit_length(), []).append(task)
    busy = {task.entry.slot for task in tasks}
    runs: list[Run] = []
    for _, members in sorted(by_class.items()):
        members.sort(key=lambda task: task.entry.slot)
        runs += _neighbours(members, costs, slots, busy)
    return runs


def _neighbours(tasks: Sequence[Task], costs: CallCosts, slots: SlotTable, busy: Set[int]) -> list[Run]:
    """Runs of tasks (sorted by slot), with short gaps bridged where that costs less than another network call."""
    longest = costs.padded(max(task.num_new for task in tasks))
    runs: list[Run] = []
    part, idle = [tasks[0]], dict[int, int]()
    for task in tasks[1:]:
        gap = range(part[-1].entry.slot + 1, task.entry.slot)
        spare = {slot: slots.spare_row(slot) for slot in gap} if len(gap) <= costs.max_gap and busy.isdisjoint(gap) else None
        if spare is not None and all(row + longest <= slots.context_len for row in spare.values()):
            part.append(task)
            idle |= spare
        else:
            runs.append(_run(part, idle, costs, longest))
            part, idle = [task], {}
    return [*runs, _run(part, idle, costs, longest)]


def _run(tasks: Sequence[Task], idle: Mapping[int, int], costs: CallCosts, longest: int) -> Run:
    """A run no longer than ``longest``, for which its idle slots were found to have room: fewer tokens may be padded to more."""
    return Run(tasks, min(costs.padded(max(task.num_new for task in tasks)), longest), idle)


class InputWriter:
    """Writes token ids, positions, cache rows and masks of a call into its bound buffers."""

    def __init__(self, context_len: int) -> None:
        self._columns = np.arange(context_len)

    def write(self, step: BoundStep, run: Run) -> None:
        """Inputs of a run. Rows shorter than the call are padded with token 0, which nothing sees but later padding."""
        for row, task in zip(run.rows, run.tasks, strict=True):
            step.input_ids[row, : task.num_new] = task.row.tokens[task.reused :]
            step.input_ids[row, task.num_new :] = 0
            step.write_indices[row] = task.start
        self._write_idle(step, run)
        self.write_chains(step)
        for row, task in zip(run.rows, run.tasks, strict=True):
            if task.shape is not None:
                first = task.row.num_committed - task.reused
                step.position_ids[row, first : task.num_new] = task.base - 1 + task.shape.depth
                step.attn_mask[row, 0, first : task.num_new, task.base : task.base + task.num_draft] = task.shape.sees

    def write_next(self, step: BoundStep, run: Run, token_ids: NDArray[np.int32], positions: IntArray) -> None:
        """Inputs that feed one token per task back, at ``positions``."""
        step.input_ids[:] = 0
        step.input_ids[run.rows, 0] = token_ids
        step.write_indices[run.rows] = positions
        self._write_idle(step, run)
        self.write_chains(step)

    def _write_idle(self, step: BoundStep, run: Run) -> None:
        for slot, cache_row in run.idle.items():
            step.input_ids[slot - run.first_slot] = 0
            step.write_indices[slot - run.first_slot] = cache_row

    def write_chains(self, step: BoundStep) -> None:
        """Every token follows the one before it and sees everything up to itself."""
        np.add(step.write_indices[:, None], self._columns[: step.input_ids.shape[1]], out=step.position_ids)
        np.less_equal(self._columns, step.position_ids[:, :, None], out=step.attn_mask[:, 0])
