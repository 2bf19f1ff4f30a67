"""Runs the rows of a step call to their end: network calls, a token at every output node, further steps where they were asked for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse.engine.batch import InputWriter, IntArray, NetworkCall, PartT, Run, Task, plan_runs
from drafthouse.engine.contract import EngineError, RowResult, RowStatus, StepCall
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.growth import Growth
from drafthouse.engine.manifest import EngineManifest
from drafthouse.engine.session import BoundStep, Logits, Session
from drafthouse.engine.slots import SlotTable
from drafthouse.sampling.bans import BanTable, end_ban
from drafthouse.sampling.choose import Ban, Choices, Segment

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(slots=True)
class _Work:
    """A step call on its way: what was chosen so far, and what went wrong."""

    call: StepCall
    rounds: list[Choices] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # of every choice so far: its task, by index in the call
    sampled: list[int] = field(default_factory=list)  # every choice so far
    probs: list[float] = field(default_factory=list)  # and its probability, where growing asks for it
    scores: dict[int, tuple[float, int]] = field(default_factory=dict)  # by task
    failed: dict[int, RowResult] = field(default_factory=dict)  # by task
    idle: dict[int, int] = field(default_factory=dict)  # slots that ran along, and the cache row from which they were written

    def score(self, task: Task) -> tuple[float, int]:
        return self.scores.get(task.index, (0.0, 0))


class Runner:
    """Owns what network calls need besides the slots: the session, the chooser, the bans."""

    def __init__(self, session: Session, manifest: EngineManifest, token_bytes: Sequence[bytes], slots: SlotTable) -> None:
        self._session = session
        self._slots = slots
        self._writer = InputWriter(manifest.context_len, slots.num_slots * manifest.max_step_tokens)
        self._chooser = session.make_chooser()
        self._bans = BanTable(token_bytes)
        self._offsets = np.arange(manifest.context_len)
        self.session_ns = 0  # inside the session since the caller last set it to zero

    def run(self, tasks: Sequence[Task], call: StepCall, costs: CallCosts) -> list[RowResult]:
        """Answers the tasks, in their order. A failing runtime makes an ERROR of each that shared the network call, and what was
        committed before stays valid."""
        work = _Work(call)
        growths: list[Growth] = []
        for run in plan_runs(tasks, costs, self._slots):
            growths += self._run_rows(run, work)
        self._grow(growths, work, costs)
        return self._answers(tasks, work)

    def rehearse(self, num_rows: int, num_tokens: int, num_packed: int) -> None:
        """Runs a call on the first slots that no request asked for, to see how long it takes; only while they are free."""
        step = self._session.bind(0, num_rows, num_tokens, num_packed)
        self._writer.write_chains(step)
        step.unpack_indices[:] = 0
        step.pack_indices[:] = 0
        step.run()

    def _run_rows(self, run: Run, work: _Work) -> list[Growth]:
        """One network call over what the caller sent, and the choices at its output nodes; returns the rows that are to grow."""
        tasks, call = run.tasks, work.call
        step = self._execute(run, tasks, work)
        if step is None:
            return []
        for task in tasks:
            task.entry.commit(task.row, task.shape is None)
        if call.return_prompt_logprob:
            for end, task in zip(_packed_ends(tasks), tasks, strict=True):
                work.scores[task.index] = self._prompt_score(step.logits[end - task.num_new : end], task)
        if not call.num_steps:
            return []
        first = len(work.owners)
        positions = [self._output_positions(task) for task in tasks]
        self._choose(self._output_logits(step, run), tasks, positions, [range(task.num_draft + 1) for task in tasks], work)
        growths: list[Growth] = []
        for task in tasks:
            first += task.num_draft + 1
            if task.num_extensions:
                growths.append(Growth(task, first - 1))
        return growths

    def _grow(self, growths: Sequence[Growth], work: _Work, costs: CallCosts) -> None:
        """Feeds samples back, those of all rows together, until the steps are done or nothing grows any more."""
        before = list(growths)
        runs: list[NetworkCall[Growth]] = []
        for _ in range(work.call.num_steps - 1):
            alive = [growth for growth in before if growth.task.index not in work.failed]
            alive = [growth for growth in alive if growth.feed(work.sampled, work.probs, work.call.stop)]
            if not alive:
                return
            if len(alive) < len(before) or not runs:
                runs = plan_runs(alive, costs, self._slots)
            before = alive
            for run in runs:
                self._run_grown(run, work)

    def _run_grown(self, run: NetworkCall[Growth], work: _Work) -> None:
        """One network call over what rows sampled last, and the choices that follow."""
        growths = run.tasks
        tasks = [growth.task for growth in growths]
        step = self._execute(run, tasks, work)
        if step is None:
            return
        for growth in growths:
            growth.keep()
        first = len(work.owners)
        positions = [self._offsets[task.base + growth.node :][:1] for task, growth in zip(tasks, growths, strict=True)]
        self._choose(step.logits[: len(growths)], tasks, positions, [(growth.node,) for growth in growths], work)
        for place, growth in enumerate(growths, first):
            growth.place = place

    def _execute(self, run: NetworkCall[PartT], tasks: Sequence[Task], work: _Work) -> BoundStep | None:
        """Runs the network; None when the runtime failed."""
        step = self._session.bind(run.first_slot, run.num_rows, run.num_tokens, run.num_packed)
        self._writer.write(step, run)
        work.idle |= run.idle
        begin = time.perf_counter_ns()
        try:
            step.run()
        except EngineError as error:
            self._drop(run, tasks)
            work.failed |= {task.index: _failed(task, "session", str(error)) for task in tasks}
            return None
        self.session_ns += time.perf_counter_ns() - begin
        return step

    def _drop(self, run: NetworkCall[PartT], tasks: Sequence[Task]) -> None:
        """Forgets what a call that broke off may have written: everything behind the committed tokens, and where idle slots ran along."""
        for task in tasks:
            task.entry.forget_drafts()
            self._session.clear_slot(task.slot, task.entry.committed_len)
        for slot, cache_row in run.idle.items():
            self._session.clear_slot(slot, cache_row)

    def _output_logits(self, step: BoundStep, run: Run) -> Logits:
        """``[M, V]``, the logits of all tasks' output nodes: each one's last committed token and its draft."""
        ends = _packed_ends(run.tasks)
        if all(task.num_draft + 1 == task.num_new for task in run.tasks):
            return step.logits[: ends[-1]]
        return self._chooser.join([step.logits[end - task.num_draft - 1 : end] for end, task in zip(ends, run.tasks, strict=True)])

    def _output_positions(self, task: Task) -> IntArray:
        """Absolute positions of the tokens that are chosen at the row's output nodes."""
        if task.shape is None:
            return self._offsets[task.base : task.base + task.num_draft + 1]
        return task.base + np.concatenate(([0], task.shape.depth))

    def _prompt_score(self, logits: Logits, task: Task) -> tuple[float, int]:
        """Sum of log p over the committed tokens whose predecessor was computed in this call, and how many there were."""
        predicted = task.row.tokens[task.reused + 1 : task.row.num_committed].astype(np.int64)
        if not len(predicted):
            return 0.0, 0
        return float(self._chooser.log_probs_of(logits[: len(predicted)], predicted).sum(dtype=np.float64)), len(predicted)

    def _choose(
        self, logits: Logits, tasks: Sequence[Task], positions: Sequence[IntArray], nodes: Sequence[Sequence[int]], work: _Work
    ) -> None:
        """Chooses after every output node: ``logits [M, V]``, and by task the samples' ``positions`` and the output ``nodes``."""
        segments: list[Segment] = []
        bans: list[Ban] = []
        first = 0
        for task, place, own in zip(tasks, positions, nodes, strict=True):
            params = task.row.sampling
            segments.append(Segment(params, place))
            if params.bad_words or (params.end_ids and task.base < params.min_end_position):
                bans += self._bans_of(task, first, place.tolist(), own)
            first += len(own)
            work.owners += [task.index] * len(own)
        call = work.call
        num_candidates = max(call.num_candidates, 1) if call.stop else call.num_candidates
        choices = self._chooser.choose(logits, segments, num_candidates, bans, call.return_logprobs)
        work.rounds.append(choices)
        work.sampled += choices.sampled.tolist()
        if call.stop:
            work.probs += choices.candidate_probs[:, 0].tolist()

    def _bans_of(self, task: Task, first: int, positions: Sequence[int], nodes: Sequence[int]) -> list[Ban]:
        """What each of the row's output nodes (logits rows from ``first`` on) must not choose, given its own path."""
        params = task.row.sampling
        if not params.bad_words:
            return [Ban(first + place, end_ban(params, position)) for place, position in enumerate(positions)]
        committed = task.entry.tokens[: task.entry.committed_len].tolist()
        paths = [[], *task.entry.draft_paths()]
        pairs = enumerate(zip(nodes, positions, strict=True))
        return [Ban(first + place, self._bans.banned(params, committed + paths[node], position)) for place, (node, position) in pairs]

    def _answers(self, tasks: Sequence[Task], work: _Work) -> list[RowResult]:
        """The answers in the order of ``tasks``, each with its choices in the order in which they were made."""
        if not work.rounds:
            return [work.failed.get(task.index) or _without_choice(task, *work.score(task)) for task in tasks]
        order = np.argsort(np.array(work.owners), kind="stable")
        sampled, logprobs, candidate_ids, candidate_probs = (
            _joined([getattr(choices, name) for choices in work.rounds])[order]
            for name in ("sampled", "logprobs", "candidate_ids", "candidate_probs")
        )
        ends = np.cumsum(np.bincount(work.owners, minlength=1 + max(task.index for task in tasks))).tolist()
        candidate_ids, candidate_probs = candidate_ids[:, : work.call.num_candidates], candidate_probs[:, : work.call.num_candidates]
        answers: list[RowResult] = []
        is_finite = bool(np.isfinite(logprobs).all())
        for task in tasks:
            place = slice(ends[task.index - 1] if task.index else 0, ends[task.index])
            if not is_finite and task.index not in work.failed and not np.isfinite(logprobs[place]).all():
                self._empty(task, work)
            answer = work.failed.get(task.index)
            if answer is None:
                choices = sampled[place], logprobs[place], candidate_ids[place], candidate_probs[place]
                answer = RowResult(RowStatus.OK, task.base, *choices, *work.score(task))
            answers.append(answer)
        return answers

    def _empty(self, task: Task, work: _Work) -> None:
        """Fails a task whose logits are not finite, and clears whatever they may have reached."""
        task.entry.forget_all()
        self._session.clear_slot(task.slot)
        for slot, cache_row in work.idle.items():
            self._session.clear_slot(slot, cache_row)
        work.failed[task.index] = _failed(task, "logits", "not finite")


def _packed_ends(tasks: Sequence[Task]) -> list[int]:
    """Where each task's tokens end among the packed ones."""
    return list(accumulate(task.num_new for task in tasks))


def _joined(parts: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def empty_result(status: RowStatus, cached_len: int, error: str = "") -> RowResult:
    """An answer without a choice."""
    none_chosen = np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
    return RowResult(status, cached_len, *none_chosen, error=error)


def _without_choice(task: Task, prompt_logprob: float, num_scored: int) -> RowResult:
    return replace(empty_result(RowStatus.OK, task.base), prompt_logprob=prompt_logprob, num_scored=num_scored)


def _failed(task: Task, field: str, reason: str) -> RowResult:
    problem = str(ServerError(ErrorCode.INTERNAL, field, reason))
    return empty_result(RowStatus.ERROR, task.entry.committed_len, problem)
