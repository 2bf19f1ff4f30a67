"""What the models answer, without running them: the target by the text it will write, a drafter by what it was recorded to answer.

A *context* is what a model has read when it chooses: ``(known, rest)``, the first ``known`` tokens of the text followed by ``rest``, of
which the first differs from the text. Decoding is lossless, so whatever a mode does, its committed tokens are a beginning of the
text: most contexts have no rest, and one recording serves every mode.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.contract import RowResult, RowStatus, StepCall, StepRow
from drafthouse.engine.engine import ModelEngine

Context = tuple[int, tuple[int, ...]]
RECORDED_CANDIDATES = 8  # per context: the most a caller may ask for in a replay
_AHEAD = 4  # answers recorded at a time: what follows a drafter's own choice is usually asked next


@dataclass(frozen=True, eq=False)
class ReferenceText:
    """One prompt with the text that the target writes after it, greedy."""

    number: int  # unique among the texts of one `ReplayModels`
    tokens: NDArray[np.int32]  # prompt and output
    prompt_len: int
    max_tokens: int  # how many it was allowed to write

    @property
    def output_ids(self) -> tuple[int, ...]:
        """The output alone."""
        return tuple(self.tokens[self.prompt_len :].tolist())

    def context(self, tokens: NDArray[np.int32]) -> Context:
        """The context of a model that has read ``tokens``, which start where the text starts."""
        shared = min(len(tokens), len(self.tokens))
        differs = tokens[:shared] != self.tokens[:shared]
        known = int(differs.argmax()) if differs.any() else shared
        return known, tuple(tokens[known:].tolist())

    def after(self, context: Context, token: int) -> Context:
        """The context with one more token."""
        known, rest = context
        if not rest and known < len(self.tokens) and self.tokens[known] == token:
            return known + 1, ()
        return known, (*rest, token)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answers in one context: its best tokens, best first, with its probabilities of them."""

    ids: tuple[int, ...]
    probs: tuple[float, ...]


class Outputs(Protocol):
    """A model's answers."""

    def answer(self, text: ReferenceText, context: Context, num_steps: int) -> Answer:
        """The answer in a context of this text; ``num_steps`` further answers, each after the one before, will be asked for next."""
        ...

    def prompt_score(self, text: ReferenceText, start: int, end: int) -> tuple[float, int]:
        """Sum of ln p over ``tokens[start + 1 : end]`` in one call on ``tokens[start : end]``, and their number."""
        ...


class TargetOutputs:
    """The target: on the text it chooses the text's next token, elsewhere a token that is never asked about again."""

    def answer(self, text: ReferenceText, context: Context, num_steps: int) -> Answer:
        """See `Outputs.answer`; no token (-1) where the text does not say what the target would choose."""
        known, rest = context
        return Answer((-1 if rest or known == len(text.tokens) else int(text.tokens[known]),), (1.0,))

    def prompt_score(self, text: ReferenceText, start: int, end: int) -> tuple[float, int]:
        """See `Outputs.prompt_score`; the pipeline does not ask the target for it."""
        raise ValueError("the replay's target scores no prompts")


class DrafterOutputs:
    """A drafter: its real engine, asked once for every context that any replay needs."""

    def __init__(self, engine: ModelEngine) -> None:
        self._engine = engine
        self._limits = engine.limits
        self._held: dict[int, int] = {}  # text number → committed tokens the engine holds, least recently used first
        self._answers: dict[int, dict[Context, Answer]] = {}
        self._scores: dict[tuple[int, int, int], tuple[float, int]] = {}

    def answer(self, text: ReferenceText, context: Context, num_steps: int) -> Answer:
        """See `Outputs.answer`."""
        answers = self._answers.get(text.number)
        if answers is None:
            answers = self._answers[text.number] = {}
            self._read(text, answers)
        found = answers.get(context)
        if found is None:
            known, rest = context
            draft = np.array(rest, np.int32)
            num_steps = max(num_steps + 1, _AHEAD)
            self._ask(text, known, draft, min(num_steps, self._limits.max_step_tokens - len(draft)), answers)
            found = answers[context]
        return found

    def prompt_score(self, text: ReferenceText, start: int, end: int) -> tuple[float, int]:
        """See `Outputs.prompt_score`."""
        key = (text.number, start, end)
        if key not in self._scores:
            self._hold(text, start)
            row = StepRow(text.number, start, text.tokens[start:end], end - start)
            result = self._step(row, StepCall((row,), 0, return_logprobs=False, return_prompt_logprob=True))
            self._scores[key] = (result.prompt_logprob, result.num_scored)
        return self._scores[key]

    def _read(self, text: ReferenceText, answers: dict[Context, Answer]) -> None:
        """Every context on the text from the prompt's end on, in as few calls as possible: the text is put as a draft."""
        known = text.prompt_len
        while known <= len(text.tokens):
            draft = text.tokens[known : known + self._limits.max_step_tokens - 1]
            self._ask(text, known, draft, 1, answers)
            known += len(draft) + 1

    def _ask(self, text: ReferenceText, known: int, draft: NDArray[np.int32], num_steps: int, answers: dict[Context, Answer]) -> None:
        """Note the answers after ``tokens[:known]``, after each of ``draft``, and after each of ``num_steps - 1`` own tokens."""
        self._hold(text, known - 1)
        row = StepRow(text.number, known - 1, np.concatenate((text.tokens[known - 1 : known], draft)), 1)
        result = self._step(row, StepCall((row,), num_steps, RECORDED_CANDIDATES, return_logprobs=False))
        read = [*draft.tolist(), *result.sampled[len(draft) :].tolist()]
        context: Context = (known, ())
        for node, (ids, probs) in enumerate(zip(result.candidate_ids.tolist(), result.candidate_probs.tolist(), strict=True)):
            answers[context] = Answer(tuple(ids), tuple(probs))
            context = text.after(context, read[node])

    def _hold(self, text: ReferenceText, length: int) -> None:
        """Have the engine hold at least the first ``length`` tokens of the text."""
        held = self._held.pop(text.number, 0)
        if not held and len(self._held) == self._limits.slots:
            oldest = next(iter(self._held))
            self._engine.release((oldest,))
            del self._held[oldest]
        while held < length:
            end = min(held + self._limits.max_step_tokens, length)
            row = StepRow(text.number, held, text.tokens[held:end], end - held)
            held = self._step(row, StepCall((row,), 0, return_logprobs=False)).cached_len
        self._held[text.number] = held

    def _step(self, row: StepRow, call: StepCall) -> RowResult:
        (result,) = self._engine.step(call).rows
        if result.status is not RowStatus.OK:
            raise RuntimeError(f"the recorded engine answered {result.status.name} {result.error}")
        self._held[row.request_uid] = result.cached_len
        return result


def stand_in(children: Iterable[int]) -> int:
    """A token id that none of ``children`` carries: the target's choice where it is only known not to matter."""
    taken = set(children)
    return next(token for token in range(len(taken) + 1) if token not in taken)
