"""Batched generation by the target, and the document starts it continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drafthouse_build.demo.config import EOS_ID
from drafthouse_build.demo.model import Attend, KeyValueCache, Llama
from drafthouse_build.demo.tokenizer import TokenIds

# Next token ids [rows] from float32 logits [rows, vocabulary], the prompt of each row and the position.
Chooser = Callable[[Tensor, Tensor, int], Tensor]

# Rows that have ended are dropped from the batch once they are this share of it.
_COMPACTION_SHARE = 0.2
_MARKER_SHARE = 0.75
# A prompt that ends at a marker may be longer than a random one by this factor.
_MARKED_PROMPT_FACTOR = 3


@dataclass(frozen=True)
class Rollout:
    """A document start and what the target made of it, the end token included."""

    tokens: TokenIds
    prompt_length: int

    @property
    def output(self) -> TokenIds:
        """The generated part."""
        return self.tokens[self.prompt_length :]


def document_starts(
    documents: Sequence[TokenIds],
    count: int,
    min_tokens: int,
    max_tokens: int,
    rng: np.random.Generator,
    marker: TokenIds | None = None,
) -> list[TokenIds]:
    """``count`` prompts cut from distinct documents (repeated only when there are too few).

    Where a document has ``marker`` early enough, its prompt ends after that in three of four cases.
    Otherwise a prompt has a random number of tokens, and at most half of the document.
    """
    order = np.concatenate([rng.permutation(len(documents)) for _ in range(-(-count // len(documents)))])
    prompts = []
    for index in order[:count]:
        document = documents[index]
        end = marker_end(document, marker) if marker is not None and rng.random() < _MARKER_SHARE else 0
        if not 0 < end <= _MARKED_PROMPT_FACTOR * max_tokens:
            longest = max(min_tokens, min(max_tokens, len(document) // 2))
            end = min(int(rng.integers(min_tokens, longest + 1)), len(document) - 1)
        prompts.append(document[:end])
    return prompts


def marker_end(document: TokenIds, marker: TokenIds) -> int:
    """Position after the first occurrence of ``marker``, or 0 if there is none."""
    for start in np.flatnonzero(document == marker[0]):
        if np.array_equal(document[start : start + len(marker)], marker):
            return int(start) + len(marker)
    return 0


def choose_greedily(logits: Tensor, prompts: Tensor, position: int) -> Tensor:
    """The most likely token of every row."""
    return logits.argmax(dim=-1)


def choose_sampled(temperature: float, generator: torch.Generator) -> Chooser:
    """A chooser that samples at ``temperature`` by inverting the distribution function."""

    def choose(logits: Tensor, prompts: Tensor, position: int) -> Tensor:
        cumulated = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
        uniform = torch.rand(len(logits), 1, generator=generator) * cumulated[:, -1:]
        return torch.searchsorted(cumulated, uniform).squeeze(1).clamp(max=logits.shape[1] - 1)

    return choose


def generate(
    model: Llama,
    prompts: Sequence[TokenIds],
    max_new_tokens: int,
    choose: Chooser,
    batch_size: int,
    attend: Attend | None = None,
) -> list[Rollout]:
    """Continue every prompt until the end token or for ``max_new_tokens`` tokens; results in prompt order.

    ``attend`` replaces the attention over the cache, as in :class:`KeyValueCache`.
    """
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, Rollout] = {}
    for start in range(0, len(by_length), batch_size):
        indices = by_length[start : start + batch_size]
        with torch.inference_mode():
            texts = _generate_batch(model, prompts, indices, max_new_tokens, choose, attend)
        for index, tokens in texts:
            results[index] = Rollout(tokens, len(prompts[index]))
    return [results[index] for index in range(len(prompts))]


def _generate_batch(
    model: Llama,
    prompts: Sequence[TokenIds],
    indices: Sequence[int],
    max_new_tokens: int,
    choose: Chooser,
    attend: Attend | None,
) -> list[tuple[int, TokenIds]]:
    """Generate for rows of different prompt lengths without padding.

    All rows start at the shortest prompt's length; a row with a longer prompt is fed its own next tokens
    until they are used up. Every row then has the same cache length and needs no mask.
    """
    limits = [min(len(prompts[index]) + max_new_tokens, model.shape.max_positions) for index in indices]
    text = torch.full((len(indices), max(limits)), EOS_ID, dtype=torch.int64)
    for row, index in enumerate(indices):
        text[row, : len(prompts[index])] = torch.from_numpy(prompts[index].astype(np.int64))
    prompt_lengths = torch.tensor([len(prompts[index]) for index in indices])
    ends = torch.tensor(limits)
    alive = torch.arange(len(indices))
    finished = torch.zeros(len(indices), dtype=torch.bool)
    cache = KeyValueCache(model.shape, len(indices), max(limits), model.embed_tokens.weight.dtype, attend)
    position = int(prompt_lengths.min())
    logits = model.logits(model.hidden_states(text[:, :position], cache)[:, -1])
    while True:
        chosen = choose(logits.float(), torch.tensor(indices)[alive], position)
        forced = position < prompt_lengths[alive]
        text[alive, position] = torch.where(forced, text[alive, position], chosen)
        ended = (~forced & (chosen == EOS_ID)) | (position + 1 >= ends[alive])
        finished[alive[ended & ~finished[alive]]] = True
        ends[alive[ended]] = ends[alive[ended]].clamp(max=position + 1)
        done = finished[alive]
        if bool(done.all()):
            break
        if float(done.float().mean()) >= _COMPACTION_SHARE:
            kept = torch.nonzero(~done).squeeze(1)
            cache.keep_rows(kept)
            alive = alive[kept]
        logits = model.logits(model.hidden_states(text[alive, position : position + 1], cache)[:, -1])
        position += 1
    return [(index, text[row, : int(ends[row])].numpy().astype(np.int32)) for row, index in enumerate(indices)]
