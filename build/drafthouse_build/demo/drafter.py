"""Training of a drafter: distillation on the corpus, then on the target's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from drafthouse_build.demo.config import ModelShape, PhaseSettings
from drafthouse_build.demo.loop import PhaseResult, maybe_compile, run_phase
from drafthouse_build.demo.model import Llama
from drafthouse_build.demo.teacher import DistillationSet, as_tensors, shuffled_batches

_REST_FLOOR = 1e-6


def new_drafter(shape: ModelShape, target: Llama, seed: int) -> Llama:
    """An untrained drafter whose embeddings are the target's, projected on their main directions."""
    torch.manual_seed(seed)
    drafter = Llama(shape)
    with torch.no_grad():
        source = target.embed_tokens.weight.float()
        _, _, directions = torch.linalg.svd(source - source.mean(dim=0), full_matrices=False)
        drafter.embed_tokens.weight.copy_(source @ directions[: shape.hidden_size].T)
    return drafter


def distillation_loss(
    model: Llama,
    inputs: Tensor,
    labels: Tensor,
    valid: Tensor,
    label_weights: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
) -> Tensor:
    """Mean over valid positions of KL(target, drafter) plus the weighted cross-entropy with the next token.

    The target's distribution is known at its k most likely tokens; all others are one bucket. Tensors are
    those of :func:`as_tensors`.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs)
    logits = logits.float()
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    top = logits.gather(-1, top_ids) - normaliser
    label = (logits.gather(-1, labels.unsqueeze(-1)) - normaliser).squeeze(-1)
    target = top_logprobs.exp()
    target_rest = (1 - target.sum(dim=-1)).clamp(min=_REST_FLOOR)
    rest = (1 - top.exp().sum(dim=-1)).clamp(min=_REST_FLOOR)
    divergence = (target * (top_logprobs - top)).sum(dim=-1) + target_rest * (target_rest.log() - rest.log())
    loss = (divergence - label_weights * label) * valid
    return loss.sum() / valid.sum().clamp(min=1)


def train_drafter_phase(
    name: str,
    model: Llama,
    data: DistillationSet,
    held_out: dict[str, DistillationSet],
    phase: PhaseSettings,
    seed: int,
    state_path: Path,
    console: Console,
    compiled: bool,
) -> PhaseResult:
    """Train one phase in place on ``data``; held-out losses are KL divergences in nats per token."""
    rows = max(1, phase.tokens_per_step // (data.tokens.shape[1] - 1))
    loss = maybe_compile(lambda *tensors: distillation_loss(model, *tensors), compiled)

    def loss_of(batch: DistillationSet) -> tuple[Tensor, int]:
        return loss(*as_tensors(batch)), batch.num_tokens

    evaluate = _divergence_on(model, held_out, rows)
    return run_phase(name, model, shuffled_batches(data, rows, seed), loss_of, evaluate, phase, state_path, console)


def _divergence_on(model: Llama, held_out: dict[str, DistillationSet], rows: int) -> Callable[[], dict[str, float]]:
    def evaluate() -> dict[str, float]:
        losses = {}
        for domain, data in held_out.items():
            inputs, labels, valid, weights, ids, logprobs = as_tensors(next(shuffled_batches(data, rows, 0)))
            with torch.inference_mode():
                divergence = distillation_loss(model, inputs, labels, valid, torch.zeros_like(weights), ids, logprobs)
            losses[domain] = float(divergence)
        return losses

    return evaluate
