"""Drives an engine the way the pipeline does: prefill, verify a draft, walk the accepted path, heal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import Engine, RowResult, RowStatus, StepCall, StepRow
from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.demo.tokenizer import train_tokenizer
from drafthouse_build.engine import EngineOptions, Precision, build_engine
from fakes.tiny_llama import tiny_config, write_checkpoint

VOCAB_SIZE = 300
CONTEXT_LEN = 96
MAX_STEP_TOKENS = 16
_SENTENCES = ["the cat sat on the mat", "a dog ran to the cat", "she sells sea shells", "der Bär läuft über die Brücke"] * 4

# What a draft looks like: tokens and their parents (index in the draft, -1 = the last committed token).
Draft = tuple[list[int], list[int]]
Drafter = Callable[[Sequence[int]], Draft]


def build_tiny_engine(root: Path, precision: Precision, seed: int) -> Path:
    """A random two-layer Llama over a byte-level BPE of 300 tokens, built into an engine folder."""
    tokenizer = train_tokenizer(_SENTENCES, VOCAB_SIZE)
    config = tiny_config(vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    write_checkpoint(root / "checkpoint", config, seed=seed)
    (root / "checkpoint" / "tokenizer.json").write_text(tokenizer.to_str())
    options = EngineOptions(precision=precision, context_len=CONTEXT_LEN, max_step_tokens=MAX_STEP_TOKENS)
    build_engine(load_checkpoint(root / "checkpoint"), root / "engine", options, "tiny")
    return root / "engine"


def ids(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def step_row(
    uid: int,
    tokens: Sequence[int],
    *,
    prefix_len: int = 0,
    num_committed: int | None = None,
    parents: Sequence[int] | None = None,
    sampling: SamplingParams | None = None,
) -> StepRow:
    """A row whose tokens are all committed unless `num_committed` says otherwise."""
    count = len(tokens) if num_committed is None else num_committed
    return StepRow(uid, prefix_len, ids(tokens), count, None if parents is None else ids(parents), sampling or SamplingParams())


def same_answer(left: RowResult, right: RowResult) -> bool:
    """Equal to the last bit, scores and candidates included."""
    arrays = ("sampled", "logprobs", "candidate_ids", "candidate_probs")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays) and (
        (left.status, left.cached_len, left.prompt_logprob, left.num_scored, left.error)
        == (right.status, right.cached_len, right.prompt_logprob, right.num_scored, right.error)
    )


def step(engine: Engine, *rows: StepRow, **options: Any) -> list[RowResult]:  # noqa: ANN401 - StepCall's options
    """The answers to these rows in one call."""
    return list(engine.step(StepCall(rows, **options)).rows)


def fill(engine: Engine, uid: int, num_tokens: int) -> list[int]:
    """Commits `num_tokens` tokens of a request in chunks and returns them."""
    tokens = [(uid + 3 * place) % 50 for place in range(num_tokens)]
    for start in range(0, num_tokens, 8):
        assert step(engine, step_row(uid, tokens[start : start + 8], prefix_len=start), num_steps=0)[0].status is RowStatus.OK
    return tokens


@dataclass
class Stream:
    """One request being generated: what a caller of the engine has to remember about it."""

    uid: int
    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    drafter: Drafter | None = None
    cached_len: int = 0
    text: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_rounds: int = 0

    def next_row(self) -> tuple[StepRow, Draft]:
        """The next chunk of what the engine lacks; with the last chunk comes a draft."""
        known = [*self.prompt, *self.text]
        committed = known[self.cached_len : self.cached_len + MAX_STEP_TOKENS - 6]
        is_last = self.cached_len + len(committed) == len(known)
        tokens, parents = self.drafter(known) if self.drafter and is_last else ([], [])
        chain = list(range(-1, len(committed) - 1))
        all_parents = [*chain, *(parent + len(committed) for parent in parents)]
        row = step_row(
            self.uid,
            [*committed, *tokens],
            prefix_len=self.cached_len,
            num_committed=len(committed),
            parents=all_parents,
            sampling=self.sampling,
        )
        return row, (tokens, parents)

    def take(self, row: StepRow, draft: Draft, answer: RowResult) -> None:
        """Walks the draft along the sampled tokens, as verification does."""
        self.cached_len = answer.cached_len
        if answer.status is RowStatus.NEEDS_PREFILL or row.prefix_len + row.num_committed < len(self.prompt) + len(self.text):
            return
        assert answer.status is RowStatus.OK, answer.error
        self.num_rounds += 1
        tokens, parents = draft
        node: int | None = -1
        while node is not None:
            chosen = int(answer.sampled[node + 1])
            self.text.append(chosen)
            self.logprobs.append(float(answer.logprobs[node + 1]))
            children = [child for child, parent in enumerate(parents) if parent == node and tokens[child] == chosen]
            node = children[0] if children else None


def generate(engine: Engine, streams: Sequence[Stream], num_tokens: int) -> list[list[int]]:
    """Steps all unfinished streams together until each has `num_tokens`; returns their texts, cut to that length."""
    while unfinished := [stream for stream in streams if len(stream.text) < num_tokens]:
        sent = [stream.next_row() for stream in unfinished]
        answers = engine.step(StepCall([row for row, _ in sent])).rows
        for stream, (row, draft), answer in zip(unfinished, sent, answers, strict=True):
            stream.take(row, draft, answer)
    return [stream.text[:num_tokens] for stream in streams]
