"""Language-model training of the target on the mixed corpora."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from drafthouse_build.demo.batches import IGNORED_LABEL, Batch, MixedBatches, pack_rows, rows_to_batch
from drafthouse_build.demo.config import Preset
from drafthouse_build.demo.loop import PhaseResult, maybe_compile, run_phase
from drafthouse_build.demo.model import Llama
from drafthouse_build.demo.tokenizer import TokenIds

_EVALUATION_ROWS = 32


def train_target(
    preset: Preset,
    train: Mapping[str, Sequence[TokenIds]],
    held_out: Mapping[str, Sequence[TokenIds]],
    state_path: Path,
    console: Console,
    compiled: bool,
) -> tuple[Llama, PhaseResult]:
    """Train the target, or continue from ``state_path``; losses are cross-entropy in nats per token."""
    torch.manual_seed(preset.seed)
    model = Llama(preset.target_shape)
    batches = mixed_batches(preset, train, preset.target.tokens_per_step, preset.seed)
    loss = maybe_compile(lambda inputs, labels: language_loss(model, inputs, labels), compiled)

    def loss_of(batch: Batch) -> tuple[Tensor, int]:
        return loss(torch.from_numpy(batch[0]), torch.from_numpy(batch[1])), int((batch[1] != IGNORED_LABEL).sum())

    evaluate = held_out_evaluation(model, held_out, preset.row_tokens)
    result = run_phase("target", model, batches, loss_of, evaluate, preset.target, state_path, console)
    return model, result


def mixed_batches(preset: Preset, documents: Mapping[str, Sequence[TokenIds]], tokens_per_step: int, seed: int) -> MixedBatches:
    """Steps over ``documents`` with the row lengths and the domain shares of the preset."""
    return MixedBatches(
        documents,
        preset.mixture,
        tokens_per_step,
        preset.row_tokens,
        preset.target_shape.max_positions,
        preset.long_row_every,
        seed,
    )


def language_loss(model: Llama, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over labels that are not ignored; tensors are int64 [rows, tokens]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL)


def held_out_evaluation(model: Llama, held_out: Mapping[str, Sequence[TokenIds]], row_tokens: int) -> Callable[[], dict[str, float]]:
    """A function that measures the cross-entropy per domain on the first held-out rows."""
    rows = {domain: _evaluation_batch(documents, row_tokens) for domain, documents in held_out.items()}

    def evaluate() -> dict[str, float]:
        with torch.inference_mode():
            return {
                domain: float(language_loss(model, torch.from_numpy(batch[0]), torch.from_numpy(batch[1])))
                for domain, batch in rows.items()
            }

    return evaluate


def _evaluation_batch(documents: Sequence[TokenIds], row_tokens: int) -> Batch:
    """Rows packed from the first held-out documents; longer documents are cut."""
    pieces = [document[: row_tokens + 1] for document in documents[: 4 * _EVALUATION_ROWS]]
    return rows_to_batch(pack_rows(pieces, row_tokens + 1)[:_EVALUATION_ROWS], row_tokens)
