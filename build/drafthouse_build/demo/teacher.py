"""Distillation sets: rows of text with the target's most likely next tokens and their log-probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drafthouse_build.demo.batches import pack_rows
from drafthouse_build.demo.config import EOS_ID
from drafthouse_build.demo.model import Llama
from drafthouse_build.demo.tokenizer import TokenIds

_ROWS_PER_FORWARD = 16


@dataclass(frozen=True)
class DistillationSet:
    """Rows of ``tokens`` [rows, length + 1] with what the target expects after each of the first ``length``.

    ``top_ids`` (int16) and ``top_logprobs`` (float16) are [rows, length, k]; ``label_weights`` (float16,
    [rows, length]) is the weight of the cross-entropy with the next token; padding has ``valid`` False.
    """

    tokens: npt.NDArray[np.int32]
    valid: npt.NDArray[np.bool_]
    label_weights: npt.NDArray[np.float16]
    top_ids: npt.NDArray[np.int16]
    top_logprobs: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.valid.sum())

    def take(self, rows: npt.NDArray[np.int64]) -> DistillationSet:
        """The given rows."""
        return DistillationSet(*(array[rows] for array in self._arrays()))

    def save(self, path: Path) -> None:
        """Write all arrays to ``path``, completely or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, *self._arrays())
        os.replace(partial, path)

    @staticmethod
    def load(path: Path) -> DistillationSet:
        """Read what :meth:`save` wrote."""
        with np.load(path) as stored:
            return DistillationSet(*(stored[f"arr_{index}"] for index in range(len(stored.files))))

    @staticmethod
    def join(parts: Sequence[DistillationSet]) -> DistillationSet:
        """One set with the rows of all parts."""
        columns = zip(*(part._arrays() for part in parts), strict=True)
        return DistillationSet(*(np.concatenate(column) for column in columns))

    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.tokens, self.valid, self.label_weights, self.top_ids, self.top_logprobs)


def build_set(
    target: Llama, texts: Sequence[TokenIds], label_weights: Sequence[float], row_tokens: int, top_logits: int
) -> DistillationSet:
    """Pack texts (with one label weight each) into rows and record the target's predictions on them."""
    ordered = sorted(set(label_weights))
    rows: list[TokenIds] = []
    weights: list[float] = []
    for weight in ordered:
        pieces = [text[: row_tokens + 1] for text, own in zip(texts, label_weights, strict=True) if own == weight]
        packed = pack_rows(pieces, row_tokens + 1)
        rows.extend(packed)
        weights.extend([weight] * len(packed))
    tokens = np.full((len(rows), row_tokens + 1), EOS_ID, dtype=np.int32)
    valid = np.zeros((len(rows), row_tokens), dtype=np.bool_)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        valid[index, : len(row) - 1] = True
    top_ids, top_logprobs = _predictions(target, tokens[:, :-1], top_logits)
    spread = np.repeat(np.array(weights, dtype=np.float16)[:, None], row_tokens, axis=1)
    return DistillationSet(tokens, valid, spread, top_ids, top_logprobs)


def _predictions(target: Llama, inputs: npt.NDArray[np.int32], top_logits: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float16]]:
    """The ``top_logits`` most likely next tokens at every position and their log-probabilities."""
    ids = np.empty((*inputs.shape, top_logits), dtype=np.int16)
    logprobs = np.empty((*inputs.shape, top_logits), dtype=np.float16)
    for start in range(0, len(inputs), _ROWS_PER_FORWARD):
        part = slice(start, start + _ROWS_PER_FORWARD)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = target(torch.from_numpy(inputs[part].astype(np.int64))).float()
        values, indices = logits.topk(top_logits, dim=-1)
        ids[part] = indices.numpy().astype(np.int16)
        logprobs[part] = (values - logits.logsumexp(dim=-1, keepdim=True)).numpy().astype(np.float16)
    return ids, logprobs


def shuffled_batches(data: DistillationSet, rows_per_step: int, seed: int) -> Iterator[DistillationSet]:
    """Endless steps of ``rows_per_step`` rows (all rows if there are fewer), reshuffled after every pass."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(data))
        for start in range(0, max(1, len(order) - rows_per_step + 1), rows_per_step):
            yield data.take(order[start : start + rows_per_step])


def as_tensors(batch: DistillationSet) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inputs, labels, valid, label weights, top ids and top log-probabilities as training tensors."""
    tokens = torch.from_numpy(batch.tokens.astype(np.int64))
    return (
        tokens[:, :-1],
        tokens[:, 1:],
        torch.from_numpy(batch.valid),
        torch.from_numpy(batch.label_weights.astype(np.float32)),
        torch.from_numpy(batch.top_ids.astype(np.int64)),
        torch.from_numpy(batch.top_logprobs.astype(np.float32)),
    )
