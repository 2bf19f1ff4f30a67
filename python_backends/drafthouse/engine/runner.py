"""Runs one network call to its end: inputs, session, a token at every output node, further steps where they were asked for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse.engine.batch import FloatArray, InputWriter, IntArray, Run, Task
from drafthouse.engine.contract import EngineError, RowResult, RowStatus, StepCall
from drafthouse.engine.manifest import EngineManifest
from drafthouse.engine.session import BoundStep, Session
from drafthouse.sampling.bans import BanTable, end_ban
from drafthouse.sampling.choose import Ban, Choices, Chooser, Segment

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class _Round:
    """Choices at some output nodes of every task; those of task i end before ``ends[i]``."""

    choices: Choices
    ends: IntArray

    def last_tokens(self) -> NDArray[np.int32]:
        tokens: NDArray[np.int32] = self.choices.sampled[self.ends - 1]
        return tokens

    def of_task(self, index: int) -> slice:
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


class Runner:
    """Owns what a network call needs besides the slots: the session, the chooser, the bans."""

    def __init__(self, session: Session, manifest: EngineManifest, min_step_tokens: int, token_bytes: Sequence[bytes]) -> None:
        self._session = session
        self._min_step_tokens = min_step_tokens
        self._writer = InputWriter(manifest.context_len)
        self._chooser = Chooser(manifest.vocab_size)
        self._bans = BanTable(token_bytes)
        self._offsets = np.arange(manifest.context_len)
        self.session_ns = 0  # inside the session since the caller last set it to zero

    def run(self, run: Run, call: StepCall) -> list[RowResult]:
        """Answers the run's tasks, in their order. A failing runtime makes an ERROR of each: what was committed before stays valid."""
        try:
            return self._run(run, call)
        except EngineError as error:
            return [_failed(task, "session", str(error)) for task in run.tasks]

    def rehearse(self, num_rows: int, num_tokens: int, num_packed: int) -> None:
        """Runs a call on the first slots that no request asked for, to see how long it takes; only while they are free."""
        step = self._session.bind(0, num_rows, num_tokens, num_packed)
        self._writer.write_chains(step)
        step.unpack_indices[:] = 0
        step.pack_indices[:] = 0
        step.run()

    def _run(self, run: Run, call: StepCall) -> list[RowResult]:
        tasks = run.tasks
        step = self._session.bind(run.first_slot, run.num_rows, run.num_tokens, run.num_packed)
        self._writer.write(step, run)
        self._timed(step)
        for task in tasks:
            task.entry.commit(task.row, task.shape is None)
        scores = [(0.0, 0)] * len(tasks)
        if call.return_prompt_logprob:
            ends = _packed_ends(tasks)
            scores = [self._prompt_score(step.logits[end - task.num_new : end], task) for end, task in zip(ends, tasks, strict=True)]
        rounds = self._choose_all(run, step, call) if call.num_steps else []
        return [self._answer(run, index, rounds, scores[index]) for index in range(len(tasks))]

    def _choose_all(self, run: Run, step: BoundStep, call: StepCall) -> list[_Round]:
        """The choices at the rows' own output nodes, then those of every further step."""
        tasks = run.tasks
        positions = [self._output_positions(task) for task in tasks]
        ends = np.cumsum([len(place) for place in positions])
        rounds = [_Round(self._choose(_output_logits(step, run), tasks, positions, call), ends)]
        each = np.arange(1, len(tasks) + 1)
        for _ in range(call.num_steps - 1):
            positions = [place[-1:] + 1 for place in positions]
            logits = self._feed_back(run, rounds[-1].last_tokens(), np.concatenate(positions) - 1)
            rounds.append(_Round(self._choose(logits, tasks, positions, call, is_extension=True), each))
        return rounds

    def _feed_back(self, run: Run, token_ids: NDArray[np.int32], positions: IntArray) -> FloatArray:
        """Extends every task by one token, standing at ``positions [n]``; returns the logits ``[n, V]`` that follow it."""
        least = self._min_step_tokens
        step = self._session.bind(run.first_slot, run.num_rows, least, max(len(run.tasks), least))
        self._writer.write_next(step, run, token_ids, positions)
        self._timed(step)
        for task, token_id in zip(run.tasks, token_ids.tolist(), strict=True):
            task.entry.extend_draft(token_id)
        return step.logits[: len(run.tasks)]

    def _timed(self, step: BoundStep) -> None:
        begin = time.perf_counter_ns()
        step.run()
        self.session_ns += time.perf_counter_ns() - begin

    def _output_positions(self, task: Task) -> IntArray:
        """Absolute positions of the tokens that are chosen at the row's output nodes."""
        if task.shape is None:
            return self._offsets[task.base : task.base + task.num_draft + 1]
        return task.base + np.concatenate(([0], task.shape.depth))

    def _prompt_score(self, logits: FloatArray, task: Task) -> tuple[float, int]:
        """Sum of log p over the committed tokens whose predecessor was computed in this call, and how many there were."""
        predicted = task.row.tokens[task.reused + 1 : task.row.num_committed].astype(np.int64)
        if not len(predicted):
            return 0.0, 0
        return float(self._chooser.log_probs_of(logits[: len(predicted)], predicted).sum(dtype=np.float64)), len(predicted)

    def _answer(self, run: Run, index: int, rounds: Sequence[_Round], score: tuple[float, int]) -> RowResult:
        task = run.tasks[index]
        if not rounds:
            return replace(empty_result(RowStatus.OK, task.base), prompt_logprob=score[0], num_scored=score[1])
        parts = [(part.choices, part.of_task(index)) for part in rounds]
        sampled = _joined([choices.sampled[place] for choices, place in parts])
        logprobs = _joined([choices.logprobs[place] for choices, place in parts])
        candidate_ids = _joined([choices.candidate_ids[place] for choices, place in parts])
        candidate_probs = _joined([choices.candidate_probs[place] for choices, place in parts])
        if not np.isfinite(logprobs).all():
            task.entry.forget_all()
            self._session.clear_slot(task.entry.slot)
            for slot, cache_row in run.idle.items():
                self._session.clear_slot(slot, cache_row)
            return _failed(task, "logits", "not finite")
        return RowResult(RowStatus.OK, task.base, sampled, logprobs, candidate_ids, candidate_probs, *score)

    def _choose(
        self, logits: FloatArray, tasks: Sequence[Task], positions: Sequence[IntArray], call: StepCall, is_extension: bool = False
    ) -> Choices:
        segments = [Segment(task.row.sampling, place) for task, place in zip(tasks, positions, strict=True)]
        bans: list[Ban] = []
        first = 0
        for task, place in zip(tasks, positions, strict=True):
            params = task.row.sampling
            if params.bad_words or (params.end_ids and task.base < params.min_end_position):
                bans += self._bans_of(task, first, place.tolist(), is_extension)
            first += len(place)
        return self._chooser.choose(logits, segments, call.num_candidates, bans, call.return_logprobs)

    def _bans_of(self, task: Task, first: int, positions: Sequence[int], is_extension: bool) -> list[Ban]:
        """What each of the row's output nodes (logits rows from ``first`` on) must not choose, given its own path."""
        params = task.row.sampling
        if not params.bad_words:
            return [Ban(first + node, end_ban(params, position)) for node, position in enumerate(positions)]
        committed = task.entry.tokens[: task.entry.committed_len].tolist()
        drafts = task.entry.draft_paths()
        paths = [drafts[-1]] if is_extension else [[], *drafts]
        pairs = zip(paths, positions, strict=True)
        return [Ban(first + node, self._bans.banned(params, committed + path, position)) for node, (path, position) in enumerate(pairs)]


def _packed_ends(tasks: Sequence[Task]) -> list[int]:
    """Where each task's tokens end among the packed ones."""
    return list(accumulate(task.num_new for task in tasks))


def _output_logits(step: BoundStep, run: Run) -> FloatArray:
    """``[M, V]``, the logits of all tasks' output nodes: each one's last committed token and its draft."""
    ends = _packed_ends(run.tasks)
    if all(task.num_draft + 1 == task.num_new for task in run.tasks):
        return step.logits[: ends[-1]]
    return _joined([step.logits[end - task.num_draft - 1 : end] for end, task in zip(ends, run.tasks, strict=True)])


def _joined(parts: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def empty_result(status: RowStatus, cached_len: int, error: str = "") -> RowResult:
    """An answer without a choice."""
    none_chosen = np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
    return RowResult(status, cached_len, *none_chosen, error=error)


def _failed(task: Task, field: str, reason: str) -> RowResult:
    problem = str(ServerError(ErrorCode.INTERNAL, field, reason))
    return empty_result(RowStatus.ERROR, task.entry.committed_len, problem)
