"""Muon for the matrices of the layers, Adam for embeddings and norms, one schedule for both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from drafthouse_build.demo.config import OptimiserSettings

# Coefficients of the quintic iteration, from Jordan et al. 2024, "Muon: An optimizer for hidden layers".
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class HybridOptimiser:
    """Muon on the two-dimensional weights of the layers and AdamW on the rest.

    Muon needs about half the tokens of AdamW for the same loss, which pays for its matrix products here.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSettings, num_steps: int) -> None:
        self._settings = settings
        self._num_steps = num_steps
        self._matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and n.startswith("layers.")]
        matrix_ids = {id(matrix) for matrix in self._matrices}
        rest = [p for p in model.parameters() if id(p) not in matrix_ids]
        self._momenta = [torch.zeros_like(matrix) for matrix in self._matrices]
        self._adam = torch.optim.AdamW(rest, lr=settings.vector_lr, betas=(0.9, 0.95), weight_decay=0.0)

    def lr_factor(self, step: int) -> float:
        """Factor on both learning rates at ``step``: rise, plateau, linear fall to zero."""
        rise = (step + 1) / self._settings.warmup_steps
        fall = (self._num_steps - step) / (self._settings.decay_fraction * self._num_steps)
        return min(1.0, rise, fall)

    def step(self, step: int) -> None:
        """Update all weights from their gradients and clear these."""
        factor = self.lr_factor(step)
        for group in self._adam.param_groups:
            group["lr"] = self._settings.vector_lr * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            self._muon_step(self._settings.matrix_lr * factor, momentum=min(0.95, 0.85 + step / 1000))

    def _muon_step(self, lr: float, momentum: float) -> None:
        for members in self._groups_by_shape():
            updates = []
            for index in members:
                gradient = self._matrices[index].grad
                if gradient is None:
                    raise RuntimeError("step called before backward")
                self._momenta[index].lerp_(gradient, 1 - momentum)
                updates.append(gradient.lerp(self._momenta[index], momentum))
            directions = orthogonalise(torch.stack(updates))
            for index, direction in zip(members, directions, strict=True):
                matrix = self._matrices[index]
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - lr * self._settings.weight_decay)
                matrix.add_(direction.to(matrix.dtype), alpha=-lr * scale)
                matrix.grad = None

    def _groups_by_shape(self) -> Iterator[list[int]]:
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for index, matrix in enumerate(self._matrices):
            groups[matrix.shape].append(index)
        yield from groups.values()

    def state_dict(self) -> dict[str, Any]:
        """State from which :meth:`load_state_dict` continues."""
        return {"momenta": self._momenta, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state of the same model."""
        self._momenta = state["momenta"]
        self._adam.load_state_dict(state["adam"])


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of [count, rows, columns], approximately, in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
