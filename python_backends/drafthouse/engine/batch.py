"""From admitted rows to network calls: which rows share a call, and what goes into its inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.contract import StepRow
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.session import BoundStep
from drafthouse.engine.slots import CacheEntry, SlotTable

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

# What is estimated to save less than this share of two calls is not worth leaving the plain way for.
_CLEARLY = 0.9


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


@dataclass(frozen=True, slots=True)
class TreeView:
    """What the tokens of a row see when they are not a chain: the committed tokens, and these of the ``m`` nodes behind them."""

    first: int  # of the row's tokens; those before it are a chain
    positions: IntArray  # [n]
    base: int  # cache row of the first node
    sees: NDArray[np.bool_]  # [n, m]


class Part(Protocol):
    """What one row brings into a network call."""

    @property
    def slot(self) -> int: ...

    @property
    def token_ids(self) -> list[int]:
        """``[num_new]``, at least one"""
        ...

    @property
    def num_new(self) -> int: ...

    @property
    def start(self) -> int:
        """Cache row, and position, of the first of them."""
        ...

    @property
    def last_start(self) -> int:
        """The highest ``start`` that this plan is kept for."""
        ...

    @property
    def end(self) -> int:
        """The first cache row behind everything that this step call writes for the row."""
        ...

    @property
    def view(self) -> TreeView | None:
        """None where every token sees all before it."""
        ...


PartT = TypeVar("PartT", bound=Part)


@dataclass(slots=True)
class Task:
    """One row of the call that is going to be run."""

    index: int  # in StepCall.rows
    row: StepRow
    entry: CacheEntry
    reused: int  # of row.tokens, already in the cache
    shape: DraftShape | None  # None = the draft is a chain
    num_extensions: int = 0  # cache rows for what the engine adds by itself

    @property
    def slot(self) -> int:
        return self.entry.slot

    @property
    def token_ids(self) -> list[int]:
        """Those that are computed."""
        token_ids: list[int] = self.row.tokens[self.reused :].tolist()
        return token_ids

    @property
    def start(self) -> int:
        """Cache row, and position, of the first token that is computed."""
        return self.row.prefix_len + self.reused

    @property
    def last_start(self) -> int:
        return self.start

    @property
    def end(self) -> int:
        """The first cache row behind those that the task fills."""
        return self.row.prefix_len + len(self.row.tokens) + self.num_extensions

    @property
    def view(self) -> TreeView | None:
        if self.shape is None:
            return None
        return TreeView(self.row.num_committed - self.reused, self.base - 1 + self.shape.depth, self.base, self.shape.sees)

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


@dataclass(slots=True)
class NetworkCall(Generic[PartT]):
    """Tasks on neighbouring slots, in their order; idle slots between them run along without tokens."""

    tasks: Sequence[PartT]
    num_tokens: int  # places per row
    num_packed: int  # tokens in all, those that only pad among them
    idle: Mapping[int, int] = field(default_factory=dict)  # slot → cache row from which it may be overwritten
    rows: list[int] = field(init=False)  # the tasks' rows in the network call

    def __post_init__(self) -> None:
        self.rows = [task.slot - self.tasks[0].slot for task in self.tasks]

    @property
    def first_slot(self) -> int:
        return self.tasks[0].slot

    @property
    def num_rows(self) -> int:
        return len(self.tasks) + len(self.idle)


Run = NetworkCall[Task]


def plan_runs(tasks: Sequence[PartT], costs: CallCosts, slots: SlotTable) -> list[NetworkCall[PartT]]:
    """Splits off long tasks (prefill) where that is estimated to pay, then cuts into runs of neighbouring slots."""
    if len(tasks) == 1:
        return [_run(tasks, {}, costs)]
    by_length = sorted(tasks, key=lambda task: task.num_new)
    split = _cheapest_split([task.num_new for task in by_length], costs)
    spare = {task.slot: task.end for task in tasks}
    runs: list[NetworkCall[PartT]] = []
    for members in (by_length[:split], by_length[split:]):
        if members:
            runs += _neighbours(sorted(members, key=lambda task: task.slot), costs, slots, spare)
    return runs


def _cheapest_split(lengths: Sequence[int], costs: CallCosts) -> int:
    """How many of the shortest rows (``lengths`` ascending) make a call of their own, the others a second one; all for a single call."""
    count, total = len(lengths), sum(lengths)
    best = count
    if lengths[0] == lengths[-1]:
        return best
    best_ms = _CLEARLY * costs.call_ms(count, lengths[-1], total)
    shorter = 0
    for place in range(1, count):
        shorter += lengths[place - 1]
        if lengths[place] == lengths[place - 1]:
            continue
        parts_ms = costs.call_ms(place, lengths[place - 1], shorter) + costs.call_ms(count - place, lengths[-1], total - shorter)
        if parts_ms < best_ms:
            best, best_ms = place, parts_ms
    return best


def _neighbours(tasks: Sequence[PartT], costs: CallCosts, slots: SlotTable, spare: Mapping[int, int]) -> list[NetworkCall[PartT]]:
    """Runs of tasks (sorted by slot), with gaps bridged where that costs less than another network call.

    ``spare``: for slots with a task in this network call or another one, the first cache row that stays unused.
    """
    longest = max(costs.min_tokens, *(task.num_new for task in tasks))
    last_row = slots.context_len - longest
    runs: list[NetworkCall[PartT]] = []
    part, idle = [tasks[0]], dict[int, int]()
    for task in tasks[1:]:
        gap = {slot: spare.get(slot, slots.spare_row(slot)) for slot in range(part[-1].slot + 1, task.slot)}
        has_room = max(part[-1].last_start, task.last_start, *gap.values()) <= last_row
        if has_room and (not gap or _pays(part, len(idle) + len(gap), task, longest, costs)):
            part.append(task)
            idle |= gap
        else:
            runs.append(_run(part, idle, costs))
            part, idle = [task], {}
    return [*runs, _run(part, idle, costs)]


def _pays(part: Sequence[Part], num_idle: int, task: Part, longest: int, costs: CallCosts) -> bool:
    """Whether one call with ``num_idle`` idle rows is estimated to cost clearly less than one for ``part`` and one for ``task``."""
    packed = sum(member.num_new for member in part)
    one = costs.call_ms(len(part) + 1 + num_idle, longest, packed + task.num_new)
    two = costs.call_ms(len(part), longest, packed) + costs.call_ms(1, task.num_new, task.num_new)
    return one < _CLEARLY * two


def _run(tasks: Sequence[PartT], idle: Mapping[int, int], costs: CallCosts) -> NetworkCall[PartT]:
    lengths = [task.num_new for task in tasks]
    return NetworkCall(tasks, max(*lengths, costs.min_tokens), costs.padded(sum(lengths)), idle)


class InputWriter:
    """Writes token ids, positions, cache rows and masks of a call into its bound buffers."""

    def __init__(self, context_len: int, max_places: int) -> None:
        """``max_places``: rows times places of the largest call."""
        self._columns = np.arange(context_len)
        self._numbers = np.arange(max_places)
        self._laid_out: tuple[object, object] = (None, None)

    def write(self, step: BoundStep, run: NetworkCall[PartT]) -> None:
        """Inputs of a run. Nobody else may write into ``step`` while the same run is written again and again."""
        if self._laid_out[0] is not step or self._laid_out[1] is not run:
            self._laid_out = None, None
            self._lay_out(step, run)
            self._laid_out = step, run
        token_ids: list[int] = []
        for task in run.tasks:
            token_ids += task.token_ids
        step.input_ids[: len(token_ids)] = token_ids
        step.write_indices[run.rows] = [task.start for task in run.tasks]
        self.write_chains(step)
        for row, task in zip(run.rows, run.tasks, strict=True):
            view = task.view
            if view is not None:
                step.position_ids[row, view.first : task.num_new] = view.positions
                step.attn_mask[row, 0, view.first : task.num_new, view.base : view.base + view.sees.shape[1]] = view.sees

    def _lay_out(self, step: BoundStep, run: NetworkCall[PartT]) -> None:
        """Where tokens and rows lie. An empty place of a row repeats the row's own first token: what is wrong with one row stays in it."""
        rows, lengths = run.rows, [task.num_new for task in run.tasks]
        places = step.unpack_indices.shape[1]
        step.input_ids[:] = 0
        step.pack_indices[:] = 0
        step.unpack_indices[:] = 0
        begin = 0
        for row, length in zip(rows, lengths, strict=True):
            packed = self._numbers[begin : begin + length]
            step.unpack_indices[row] = begin
            step.unpack_indices[row, :length] = packed
            step.pack_indices[begin : begin + length] = self._numbers[row * places : row * places + length]
            begin += length
        for slot, cache_row in run.idle.items():
            step.write_indices[slot - run.first_slot] = cache_row

    def write_chains(self, step: BoundStep) -> None:
        """Every token follows the one before it in its row and sees everything up to itself."""
        np.add(step.write_indices[:, None], self._columns[: step.position_ids.shape[1]], out=step.position_ids)
        np.less_equal(self._columns[: step.attn_mask.shape[3]], step.position_ids[:, :, None], out=step.attn_mask[:, 0])
