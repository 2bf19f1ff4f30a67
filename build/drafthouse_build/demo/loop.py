"""The training loop that all phases share: steps, progress, held-out loss, resumable checkpoints."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from drafthouse_build.demo.config import PhaseSettings
from drafthouse_build.demo.model import Llama
from drafthouse_build.demo.optimiser import HybridOptimiser

Item = TypeVar("Item")
_GRADIENT_NORM_LIMIT = 1.0
_SAVE_EVERY_STEPS = 40
_LOG_EVERY_STEPS = 20


@dataclass(frozen=True)
class PhaseResult:
    """What a finished phase reports: its token budget, time spent and losses in nats per token."""

    steps: int
    tokens: int
    seconds: float
    train_loss: float
    held_out_loss: dict[str, float]


def run_phase(
    name: str,
    model: Llama,
    items: Iterable[Item],
    loss_of: Callable[[Item], tuple[Tensor, int]],
    evaluate: Callable[[], dict[str, float]],
    phase: PhaseSettings,
    state_path: Path,
    console: Console,
) -> PhaseResult:
    """Train ``model`` in place for ``phase.num_steps`` steps.

    ``items`` must be the same sequence on every call: after an interruption the loop restores the last
    state from ``state_path`` and skips the items already used. ``loss_of`` returns the mean loss and the
    number of tokens in it. Raises ``FloatingPointError`` if the loss stops being finite.
    """
    optimiser = HybridOptimiser(model, phase.optimiser, phase.num_steps)
    state = _restore(state_path, model, optimiser)
    if state["step"]:
        console.log(f"{name}: continuing at step {state['step']} of {phase.num_steps}")
    model.train()
    with _progress(console) as progress:
        bar = progress.add_task(name, total=phase.num_steps, completed=state["step"])
        for item in islice(items, state["step"], phase.num_steps):
            _train_step(model, optimiser, item, loss_of, state)
            progress.update(bar, advance=1, description=f"{name} loss {state['loss']:.3f}")
            done = state["step"] == phase.num_steps
            if state["step"] % _LOG_EVERY_STEPS == 0 or done:
                rate = state["tokens"] / state["seconds"]
                console.log(f"{name}: step {state['step']}/{phase.num_steps} loss {state['loss']:.4f} {rate:.0f} tokens/s")
            if state["step"] % _SAVE_EVERY_STEPS == 0 or done:
                _save(state_path, model, optimiser, state)
    model.eval()
    losses = evaluate()
    console.log(f"{name}: held-out " + ", ".join(f"{key} {value:.3f}" for key, value in losses.items()))
    return PhaseResult(state["step"], state["tokens"], state["seconds"], state["loss"], losses)


def _train_step(
    model: Llama,
    optimiser: HybridOptimiser,
    item: Item,
    loss_of: Callable[[Item], tuple[Tensor, int]],
    state: dict[str, Any],
) -> None:
    # CPU time, so that pauses and other users of the machine do not count.
    started = time.process_time()
    loss, num_tokens = loss_of(item)
    value = float(loss.detach())
    if value != value or value in (float("inf"), float("-inf")):
        raise FloatingPointError(f"INTERNAL field=loss value={value} allowed=finite step={state['step']}")
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM_LIMIT)
    optimiser.step(state["step"])
    # Starts at the first loss, then a running mean over about 20 steps.
    state["loss"] = value if state["step"] == 0 else 0.95 * state["loss"] + 0.05 * value
    state["step"] += 1
    state["tokens"] += num_tokens
    state["seconds"] += (time.process_time() - started) / torch.get_num_threads()


def _restore(path: Path, model: Llama, optimiser: HybridOptimiser) -> dict[str, Any]:
    if not path.exists():
        return {"step": 0, "loss": 0.0, "tokens": 0, "seconds": 0.0}
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    counters: dict[str, Any] = saved["counters"]
    return counters


def _save(path: Path, model: Llama, optimiser: HybridOptimiser, counters: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "counters": counters}, partial)
    os.replace(partial, path)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def maybe_compile(function: Callable[..., Tensor], enabled: bool, dynamic: bool = False) -> Callable[..., Tensor]:
    """Compile with Inductor where a C++ compiler is present (about 30 % faster), else return it as it is."""
    if enabled and shutil.which("g++"):
        torch.compiler.reset()  # forget earlier models: recompilations of one function are limited
        compiled: Callable[..., Tensor] = torch.compile(function, dynamic=dynamic)
        return compiled
    return function
