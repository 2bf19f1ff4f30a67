"""An engine that answers from recordings: the real one's rows, slots, padding and network calls, at recorded costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from drafthouse.engine.batch import DraftShape, NetworkCall, PartT, Task, plan_runs
from drafthouse.engine.contract import EngineLimits, RowResult, RowStatus, StepCall, StepResult, StepRow
from drafthouse.engine.growth import Growth
from drafthouse.engine.rows import RowChecker, num_extensions
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

    def __init__(
        self,
        shape: EngineShape,
        costs: EngineCosts,
        outputs: Outputs,
        texts: Mapping[int, ReferenceText],
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """``clock``: virtual seconds, by which a slot that nobody names is taken back; the default never does."""
        self._shape = shape
        self._costs = costs
        self._outputs = outputs
        self._texts = texts
        self._checker = RowChecker(shape.limits, has_vocabulary=False)
        self._slots = SlotTable(shape.limits.slots, shape.context_len, clock)
        self._call_costs = costs.call_costs(MIN_STEP_TOKENS, shape.limits.max_step_tokens, shape.limits.slots)
        self.busy_s = 0.0  # of the last call: session and the engine's work around it

    def release(self, request_uids: Sequence[int]) -> None:
        """Free the slots of these requests."""
        self._slots.release(request_uids)

    def step(self, call: StepCall) -> StepResult:
        """Answer a call; ``session_ns`` is what it would have taken. Raises ValueError for what recordings cannot answer."""
        if call.num_candidates > RECORDED_CANDIDATES:
            raise ValueError(f"{call.num_candidates} candidates, but {RECORDED_CANDIDATES} are recorded")
        admitted = [self._admit(index, row, call) for index, row in enumerate(call.rows)]
        tasks = [part for part in admitted if isinstance(part, Task)]
        work = _Work(call)
        for run in plan_runs(tasks, self._call_costs, self._slots) if tasks else ():
            self._charge(run, work)
        growths = [growth for task in tasks if (growth := self._choose(task, work)) is not None]
        self._grow(growths, work)
        rows = [self._result(part, work) if isinstance(part, Task) else part for part in admitted]
        around_ms = self._costs.around(work.num_calls, len(work.sampled)) if call.rows else 0.0
        self.busy_s = (work.session_ms + around_ms) / 1e3
        return StepResult(rows, 1, round(work.session_ms * 1e6), self._slots.num_free, self._slots.num_slots)

    def _charge(self, run: NetworkCall[PartT], work: "_Work") -> None:
        work.num_calls += 1
        work.session_ms += self._costs.session(run.num_rows, run.num_tokens, run.num_packed)

    def _admit(self, index: int, row: StepRow, call: StepCall) -> Task | RowResult:
        problem = self._checker.problem(row, call)
        if problem or row.sampling.temperature != 0 or row.sampling.bad_words:
            raise ValueError(problem or "a replay answers greedy requests without bad words only")
        entry = self._slots.admit(row)
        if isinstance(entry, RowStatus):
            return empty_result(entry, self._slots.cached_len(row.request_uid))
        reused, path = entry.reusable(row, 0 if call.return_prompt_logprob else row.num_committed - 1)
        entry.keep_path(path, row, reused)
        return Task(index, row, entry, reused, DraftShape.of(row), num_extensions(call.num_steps))

    def _choose(self, task: Task, work: "_Work") -> Growth | None:
        """The choices at the row's own output nodes: the last committed token and the draft. Returns what grows from them."""
        row, text = task.row, self._texts[task.row.request_uid]
        task.entry.commit(row, task.shape is None)
        if work.call.return_prompt_logprob:
            work.scores[task.index] = self._outputs.prompt_score(text, row.prefix_len, task.base)
        if not work.call.num_steps:
            return None
        draft = row.tokens[row.num_committed :].tolist()
        parents = range(len(draft)) if row.parents is None else (row.parents[row.num_committed :] - row.num_committed + 1).tolist()
        contexts = work.contexts[task.index] = [text.context(task.entry.tokens[: task.base])]
        children: dict[int, list[int]] = {}
        for token, parent in zip(draft, parents, strict=True):
            contexts.append(text.after(contexts[parent], token))
            children.setdefault(parent, []).append(token)
        for node, context in enumerate(contexts):
            steps = work.call.num_steps - 1 if node == len(draft) else 0
            work.take(task.index, self._outputs.answer(text, context, steps), children.get(node, ()))
        return Growth(task, len(work.sampled) - 1) if task.num_extensions else None

    def _grow(self, growths: Sequence[Growth], work: "_Work") -> None:
        """What the engine adds by itself: see `engine.runner.Runner`."""
        before, runs = list(growths), list[NetworkCall[Growth]]()
        for left in reversed(range(work.call.num_steps - 1)):
            alive = [growth for growth in before if growth.feed(work.sampled, work.probs, work.call.stop)]
            if not alive:
                return
            if len(alive) < len(before) or not runs:
                runs = plan_runs(alive, self._call_costs, self._slots)
            before = alive
            for run in runs:
                self._charge(run, work)
            for growth in alive:
                self._choose_grown(growth, work, left)

    def _choose_grown(self, growth: Growth, work: "_Work", num_steps: int) -> None:
        task = growth.task
        text, contexts = self._texts[task.row.request_uid], work.contexts[task.index]
        growth.keep()
        growth.place = len(work.sampled)
        contexts.append(text.after(contexts[-1], growth.token_ids[0]))
        work.take(task.index, self._outputs.answer(text, contexts[-1], num_steps), ())

    def _result(self, task: Task, work: "_Work") -> RowResult:
        answers, score = work.answers.get(task.index, []), work.scores.get(task.index, (0.0, 0))
        count, width = len(answers), work.call.num_candidates if answers else 0
        return RowResult(
            RowStatus.OK,
            task.base,
            sampled=np.array([answer.ids[0] for answer in answers], np.int32),
            logprobs=np.zeros(count, np.float32),
            candidate_ids=np.array([answer.ids[:width] for answer in answers], np.int32).reshape(count, width),
            candidate_probs=np.array([answer.probs[:width] for answer in answers], np.float32).reshape(count, width),
            prompt_logprob=score[0],
            num_scored=score[1],
        )


@dataclass(slots=True)
class _Work:
    """What one step call has chosen and cost so far. By row: index in the call."""

    call: StepCall
    session_ms: float = 0.0
    num_calls: int = 0  # of the network
    sampled: list[int] = field(default_factory=list)  # all rows' choices in the order they were made, and their probabilities
    probs: list[float] = field(default_factory=list)
    answers: dict[int, list[Answer]] = field(default_factory=dict)  # by row, per output node
    contexts: dict[int, list[Context]] = field(default_factory=dict)  # by row, per output node
    scores: dict[int, tuple[float, int]] = field(default_factory=dict)

    def take(self, index: int, answer: Answer, children: Sequence[int]) -> None:
        """Note the choice at a row's next output node; where the answer only says that it does not matter, none of ``children``."""
        chosen = answer if answer.ids[0] >= 0 else Answer((stand_in(children),), answer.probs)
        self.answers.setdefault(index, []).append(chosen)
        self.sampled.append(chosen.ids[0])
        self.probs.append(chosen.probs[0])
