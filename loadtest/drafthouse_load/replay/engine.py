"""An engine that answers from recordings: the real one's rows, slots, padding and network calls, at recorded costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drafthouse.engine.batch import DraftShape, Run, Task, plan_runs
from drafthouse.engine.contract import EngineLimits, RowResult, RowStatus, StepCall, StepResult, StepRow
from drafthouse.engine.rows import RowChecker
from drafthouse.engine.runner import empty_result
from drafthouse.engine.slots import SlotTable
from drafthouse_load.replay.costs import MIN_STEP_TOKENS, EngineCosts
from drafthouse_load.replay.outputs import RECORDED_CANDIDATES, Answer, Context, Outputs, ReferenceText, stand_in


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What an engine is, as far as a call's cost and refusal depend on it."""

    limits: EngineLimits
    context_len: int


class ReplayEngine:
    """An `Engine` for greedy requests for texts that are known: ``texts`` by request uid."""

    def __init__(self, shape: EngineShape, costs: EngineCosts, outputs: Outputs, texts: Mapping[int, ReferenceText]) -> None:
        self._shape = shape
        self._costs = costs
        self._outputs = outputs
        self._texts = texts
        self._checker = RowChecker(shape.limits, has_vocabulary=False)
        self._slots = SlotTable(shape.limits.slots, shape.context_len)
        self._call_costs = costs.call_costs(MIN_STEP_TOKENS, shape.limits.max_step_tokens, shape.limits.slots)
        self.busy_s = 0.0  # of the last call: session and the engine's work around it

    def release(self, request_uids: Sequence[int]) -> None:
        """Free the slots of these requests."""
        self._slots.release(request_uids)

    def step(self, call: StepCall) -> StepResult:
        """Answer a call; ``session_ns`` is what it would have taken. Raises ValueError for what recordings cannot answer."""
        if call.num_candidates > RECORDED_CANDIDATES:
            raise ValueError(f"{call.num_candidates} candidates, but {RECORDED_CANDIDATES} are recorded")
        answers: dict[int, RowResult] = {}
        tasks: list[Task] = []
        for index, row in enumerate(call.rows):
            admitted = self._admit(index, row, call)
            if isinstance(admitted, Task):
                tasks.append(admitted)
            else:
                answers[index] = admitted
        runs = plan_runs(tasks, self._call_costs, self._slots) if tasks else []
        session_ms = sum(self._session_ms(run, call.num_steps) for run in runs)
        for task in tasks:
            task.entry.commit(task.row, task.shape is None)
            answers[task.index] = self._answer(task, call)
        num_outputs = sum(len(answer.sampled) for answer in answers.values())
        around_ms = self._costs.around(len(runs) * max(call.num_steps, 1), num_outputs) if call.rows else 0.0
        self.busy_s = (session_ms + around_ms) / 1e3
        rows = [answers[index] for index in range(len(call.rows))]
        return StepResult(rows, 1, round(session_ms * 1e6), self._slots.num_free, self._slots.num_slots)

    def _session_ms(self, run: Run, num_steps: int) -> float:
        """The run's own network call, and one per further step, which feeds back a token of each of its tasks."""
        first = self._costs.session(run.num_rows, run.num_tokens, run.num_packed)
        packed = max(len(run.tasks), MIN_STEP_TOKENS)
        return first + max(num_steps - 1, 0) * self._costs.session(run.num_rows, MIN_STEP_TOKENS, packed)

    def _admit(self, index: int, row: StepRow, call: StepCall) -> Task | RowResult:
        problem = self._checker.problem(row, call)
        if problem or row.sampling.temperature != 0 or row.sampling.bad_words:
            raise ValueError(problem or "a replay answers greedy requests without bad words only")
        entry = self._slots.admit(row)
        if isinstance(entry, RowStatus):
            return empty_result(entry, self._slots.cached_len(row.request_uid))
        reused, path = entry.reusable(row, 0 if call.return_prompt_logprob else row.num_committed - 1)
        entry.keep_path(path, row, reused)
        return Task(index, row, entry, reused, DraftShape.of(row), max(call.num_steps - 1, 0))

    def _answer(self, task: Task, call: StepCall) -> RowResult:
        row, text = task.row, self._texts[task.row.request_uid]
        score = self._outputs.prompt_score(text, row.prefix_len, task.base) if call.return_prompt_logprob else (0.0, 0)
        if call.num_steps == 0:
            empty = empty_result(RowStatus.OK, task.base)
            return RowResult(empty.status, task.base, empty.sampled, empty.logprobs, empty.candidate_ids, empty.candidate_probs, *score)
        chosen = self._choices(task, text, call.num_steps)
        width = call.num_candidates
        ids = np.array([answer.ids[:width] for answer in chosen], np.int32).reshape(len(chosen), width)
        probs = np.array([answer.probs[:width] for answer in chosen], np.float32).reshape(len(chosen), width)
        sampled = np.array([answer.ids[0] for answer in chosen], np.int32)
        return RowResult(RowStatus.OK, task.base, sampled, np.zeros(len(chosen), np.float32), ids, probs, *score)

    def _choices(self, task: Task, text: ReferenceText, num_steps: int) -> list[Answer]:
        """The answers at the row's output nodes: the last committed token, the draft, what the engine adds by itself."""
        row, first = task.row, task.row.num_committed
        draft = row.tokens[first:].tolist()
        parents = range(-1, len(draft) - 1) if row.parents is None else (row.parents[first:] - first).tolist()
        contexts: list[Context] = [text.context(task.entry.tokens[: task.base])]
        for token, parent in zip(draft, parents, strict=True):
            contexts.append(text.after(contexts[parent + 1], token))
        answers = [self._outputs.answer(text, context, 0) for context in contexts[:-1]]
        context = contexts[-1]
        for left in reversed(range(num_steps)):
            answers.append(self._outputs.answer(text, context, left))
            if left:
                task.entry.extend_draft(answers[-1].ids[0])
                context = text.after(context, answers[-1].ids[0])
        children: dict[int, list[int]] = {}
        for token, parent in zip(draft, parents, strict=True):
            children.setdefault(parent + 1, []).append(token)
        return [
            answer if answer.ids[0] >= 0 else Answer((stand_in(children.get(node, ())),), answer.probs)
            for node, answer in enumerate(answers)
        ]
