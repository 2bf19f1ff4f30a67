"""A drafter that keeps the engine contract to the letter and says what a script tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from drafthouse.engine.contract import EngineError, RowResult, RowStatus, StepCall, StepResult, StepRow

Context = tuple[int, ...]  # every token before the one that is asked for
Script = Callable[[Context], Sequence[tuple[int, float]]]  # candidates with probabilities, best first
SESSION_NS_PER_CALL = 1000


@dataclass(frozen=True)
class SeenCall:
    """One step call as the drafter got it."""

    uids: tuple[int, ...]
    num_steps: int
    sent: tuple[Context, ...]  # tokens per row
    prefix_lens: tuple[int, ...]
    released: tuple[int, ...]
    return_prompt_logprob: bool


@dataclass
class ScriptedDrafter:
    """Faults are keyed by the index of the call (0 = first) in which they happen."""

    name: str
    script: Script
    slots: int = 8
    max_step_tokens: int = 64
    gone: frozenset[int] = frozenset()  # raises EngineError
    hangs: frozenset[int] = frozenset()  # never answers
    forgets: frozenset[int] = frozenset()  # loses every cache before this call, as after a reload
    errors: frozenset[int] = frozenset()  # answers ERROR for every row
    truncates: frozenset[int] = frozenset()  # answers with a row too few
    calls: list[SeenCall] = field(default_factory=list)
    held: dict[int, Context] = field(default_factory=dict)  # committed tokens by request

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """See `EngineClient.step`."""
        index = len(self.calls)
        self.calls.append(
            SeenCall(
                uids=tuple(row.request_uid for row in call.rows),
                num_steps=call.num_steps,
                sent=tuple(tuple(row.tokens.tolist()) for row in call.rows),
                prefix_lens=tuple(row.prefix_len for row in call.rows),
                released=tuple(release_uids),
                return_prompt_logprob=call.return_prompt_logprob,
            )
        )
        await asyncio.sleep(0)
        if index in self.hangs:
            await asyncio.Event().wait()
        if index in self.gone:
            raise EngineError(f"{self.name} is gone")
        if index in self.forgets:
            self.held.clear()
        for uid in release_uids:
            self.held.pop(uid, None)
        rows = [self._answer(row, call) if index not in self.errors else _nothing(RowStatus.ERROR, 0) for row in call.rows]
        if index in self.truncates:
            rows = rows[:-1]
        return StepResult(rows, 1, SESSION_NS_PER_CALL * max(call.num_steps, 1), self.slots - len(self.held), self.slots)

    def _answer(self, row: StepRow, call: StepCall) -> RowResult:
        most = self.max_step_tokens - max(0, call.num_steps - 1)
        if not 1 <= len(row.tokens) <= most or not 1 <= row.num_committed <= len(row.tokens):
            raise AssertionError(f"{self.name} got a malformed row: {row}")
        held = self.held.get(row.request_uid, ())
        if len(held) < row.prefix_len:
            return _nothing(RowStatus.NEEDS_PREFILL, len(held))
        if row.request_uid not in self.held and len(self.held) == self.slots:
            return _nothing(RowStatus.NO_SLOT, 0)
        committed = held[: row.prefix_len] + tuple(row.tokens[: row.num_committed].tolist())
        self.held[row.request_uid] = committed
        scored = max(row.num_committed - 1, 0) if call.return_prompt_logprob else 0
        outputs = self._outputs(row, committed, call)
        shape = (len(outputs), max(call.num_candidates, 1))
        ids = np.array([[token for token, _ in output] for output in outputs], np.int32).reshape(shape)
        probs = np.array([[prob for _, prob in output] for output in outputs], np.float32).reshape(shape)
        sampled = ids[:, 0]
        logprobs = np.zeros(len(outputs), np.float32)
        return RowResult(RowStatus.OK, len(committed), sampled, logprobs, ids, probs, -0.5 * scored, scored)

    def _outputs(self, row: StepRow, committed: Context, call: StepCall) -> list[list[tuple[int, float]]]:
        """Candidates at every output node."""
        if call.num_steps == 0:
            return []
        first = row.num_committed
        parents = range(-1, len(row.tokens) - 1) if row.parents is None else row.parents.tolist()
        contexts = [committed]
        for token, parent in zip(row.tokens[first:].tolist(), list(parents)[first:], strict=True):
            contexts.append((*contexts[parent - first + 1], token))
        outputs = [self._candidates(context, call.num_candidates) for context in contexts]
        chance = row.chance
        for _ in range(call.num_steps - 1):
            token, prob = outputs[-1][0]
            if call.stop is not None:
                chance *= call.stop.chance(prob)
                if chance < call.stop.min_chance or token in row.sampling.end_ids:
                    break
            contexts.append((*contexts[-1], token))
            outputs.append(self._candidates(contexts[-1], call.num_candidates))
        return outputs

    def _candidates(self, context: Context, num_candidates: int) -> list[tuple[int, float]]:
        said = list(self.script(context))
        filler = (max(token for token, _ in said) + 1 + index for index in range(num_candidates))
        return (said + [(token, 0.0) for token in filler])[: max(num_candidates, 1)]


def _nothing(status: RowStatus, cached_len: int) -> RowResult:
    ids, probs = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
    return RowResult(status, cached_len, np.empty(0, np.int32), np.empty(0, np.float32), ids, probs)


def says(*tokens: int, prob: float = 0.5, start: int = 0) -> Script:
    """Says tokens[i] at absolute position start + i whatever came before, and the last one for ever after."""

    def script(context: Context) -> list[tuple[int, float]]:
        index = min(max(len(context) - start, 0), len(tokens) - 1)
        return [(tokens[index], prob)]

    return script


def counts(step: int = 1, prob: float = 0.5) -> Script:
    """Says the last token plus ``step``, so that what it says shows what it was fed."""
    return lambda context: [(context[-1] + step, prob)]
