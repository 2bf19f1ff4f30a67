"""`drafthouse size`: how much GPU memory engines take before any is built, and how many requests at a time then fit.

Everything but two lines is arithmetic over shapes that the session allocates by (docs/engines.md, Memory). Activations and what CUDA
itself takes are estimates: TensorRT decides on the first when it compiles, and the session asks it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from drafthouse.engine.tensorrt.profiles import cache_rows
from drafthouse_build.cli import EXIT_BAD_INPUT, parse_devices, parse_drafters
from drafthouse_build.completion import complete_config
from drafthouse_build.config import ModelConfig, parse_config
from drafthouse_build.errors import BuildError
from drafthouse_build.hub import checkpoint_folder
from drafthouse_build.shapes import expected_shapes

# Bytes of a cache entry or activation, and of a weight in a matrix; 4-bit weights have a 16-bit scale for every 128.
PRECISIONS: Mapping[str, tuple[int, float]] = {"fp32": (4, 4.0), "fp16": (2, 2.0), "bf16": (2, 2.0), "int4": (2, 0.5 + 2 / 128)}
RUNTIME_BYTES = 600 << 20  # of every model's process: CUDA context, TensorRT's and PyTorch's kernels; an estimate
EXIT_TOO_LARGE = 1
_GIB = 1 << 30
_MIB = 1 << 20
_INDEX_BYTES = 8
_SCORE_BYTES = 4
_MATRIX_RANK = 2


@dataclass(frozen=True)
class Limits:
    """How engines are built and run."""

    precision: str = "bf16"
    context_len: int = 4096
    max_step_tokens: int = 64
    slots: int = 8


@dataclass(frozen=True)
class Footprint:
    """GPU memory of one engine in bytes: `fixed` once, `per_slot` for every request that it holds at a time."""

    weights: int
    runtime: int
    cache_per_slot: int
    scores_per_slot: int  # logits of a whole prefill chunk
    inputs_per_slot: int  # indices and masks
    activations_per_slot: int  # an estimate

    @property
    def fixed(self) -> int:
        """What the number of slots does not change."""
        return self.weights + self.runtime

    @property
    def per_slot(self) -> int:
        """What every slot adds."""
        return self.cache_per_slot + self.scores_per_slot + self.inputs_per_slot + self.activations_per_slot

    def total(self, slots: int) -> int:
        """Memory with so many slots."""
        return self.fixed + slots * self.per_slot


def footprint(config: ModelConfig, limits: Limits) -> Footprint:
    """What an engine of this configuration takes."""
    number, weight = PRECISIONS[limits.precision]
    rows, tokens = cache_rows(limits.context_len), limits.max_step_tokens
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    # The widest moment of a block: the residual stream, its norm, and the projections of attention or of the feed-forward.
    widest = 2 * config.hidden_size + max(2 * heads, 3 * config.intermediate_size)
    return Footprint(
        weights=_weight_bytes(config, number, weight),
        runtime=RUNTIME_BYTES,
        cache_per_slot=2 * config.num_layers * config.num_kv_heads * rows * config.head_dim * number,
        scores_per_slot=tokens * config.vocab_size * _SCORE_BYTES,
        inputs_per_slot=tokens * (rows + 5 * _INDEX_BYTES),
        activations_per_slot=tokens * widest * number,
    )


def _weight_bytes(config: ModelConfig, number: int, weight: float) -> int:
    """Matrices of the blocks by their own precision; embeddings, norms, biases and the scores' matrix by that of activations."""
    shapes = expected_shapes(config)
    total = 0.0
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        is_block = len(shape) == _MATRIX_RANK and name.startswith("model.layers.")
        total += count * (weight if is_block else number)
    # A tied matrix is folded into its other layout when the plan is compiled, and the table is still looked up.
    tied = config.vocab_size * config.hidden_size * number if config.tied_embeddings else 0
    return round(total) + tied


def most_slots(footprints: Sequence[Footprint], memory_bytes: int) -> int:
    """Requests at a time for which all these engines fit on one GPU; 0 where not even one does."""
    free = memory_bytes - sum(engine.fixed for engine in footprints)
    return max(free // sum(engine.per_slot for engine in footprints), 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `drafthouse size`; returns 0 when everything fits, 1 when a GPU is too small, 2 for bad input."""
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        limits = Limits(arguments.precision, arguments.context_len, arguments.max_step_tokens, arguments.slots)
        engines = {name: footprint(config, limits) for name, config in _configs(arguments, limits).items()}
        gpus = _gpus(arguments.gpus)
        devices = {name: 0 for name in engines} | parse_devices(arguments.device)
        for name, device in devices.items():
            if name not in engines or device >= len(gpus):
                raise BuildError("INVALID_ARG", "device", f"{name}={device}", f"{', '.join(engines)} on 0 to {len(gpus) - 1}")
    except BuildError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return EXIT_BAD_INPUT
    console.print(_table(engines, devices, limits))
    fits = True
    for device, memory in enumerate(gpus):
        held = [engines[name] for name in engines if devices[name] == device]
        if not held:
            continue
        needed, most = sum(engine.total(limits.slots) for engine in held), most_slots(held, memory)
        fits = fits and needed <= memory
        verdict = "fits" if needed <= memory else "DOES NOT FIT"
        line = f"GPU {device}: {needed / _GIB:.2f} of {memory / _GIB:.2f} GiB with {limits.slots} slots: {verdict}; at most {most} slots"
        console.print(line, highlight=False, soft_wrap=True)
    return 0 if fits else EXIT_TOO_LARGE


def _table(engines: Mapping[str, Footprint], devices: Mapping[str, int], limits: Limits) -> Table:
    """One column per engine, so that it stays readable in a narrow terminal."""
    title = f"{limits.precision}, context {limits.context_len} ({cache_rows(limits.context_len)} cache rows), MiB"
    table = Table(title=title, caption="* estimated")
    table.add_column("")
    for name in engines:
        table.add_column(name, justify="right")
    table.add_row("GPU", *(str(devices[name]) for name in engines))
    parts = {
        "weights": [engine.weights for engine in engines.values()],
        "runtime *": [engine.runtime for engine in engines.values()],
        "cache per slot": [engine.cache_per_slot for engine in engines.values()],
        "scores per slot": [engine.scores_per_slot for engine in engines.values()],
        "inputs per slot": [engine.inputs_per_slot for engine in engines.values()],
        "activations per slot *": [engine.activations_per_slot for engine in engines.values()],
        f"in all, {limits.slots} slots": [engine.total(limits.slots) for engine in engines.values()],
    }
    for part, figures in parts.items():
        table.add_row(part, *(f"{figure / _MIB:.1f}" for figure in figures))
    return table


def _configs(arguments: argparse.Namespace, limits: Limits) -> dict[str, ModelConfig]:
    """Target and drafters; only their config.json is read."""
    configs = {}
    for name, source in {"target": arguments.target, **parse_drafters(arguments.drafter)}.items():
        folder = checkpoint_folder(source, files=("config.json",))
        configs[name] = parse_config(complete_config(folder, _read_config(folder)))
        configs[name].check_context(limits.context_len, limits.max_step_tokens)
    return configs


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError("INVALID_ARG", "checkpoint", folder, "a folder with a readable config.json, or a hub id") from error
    if not isinstance(raw, dict):
        raise BuildError("INVALID_ARG", "config.json", type(raw).__name__, "a JSON object")
    return raw


def _gpus(text: str) -> list[int]:
    """Reads `80,24`: the memory of each GPU in GiB."""
    try:
        sizes = [round(float(part) * _GIB) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) <= 0:
        raise BuildError("INVALID_ARG", "gpus", text, "GiB of every GPU, such as 80 or 80,24")
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="drafthouse size", description="Compute the GPU memory that engines and their caches take.")
    parser.add_argument(
        "--target", required=True, metavar="DIR|ID", help="checkpoint of the target: a folder with config.json, or a hub id"
    )
    parser.add_argument("--drafter", action="append", default=[], metavar="NAME=DIR|ID", help="a drafter; repeat for more")
    parser.add_argument("--gpus", default="80", metavar="GIB,…", help="memory of every GPU in GiB (default 80)")
    parser.add_argument("--device", action="append", default=[], metavar="NAME=N", help="GPU of the target or of a drafter (default 0)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of the engines (default bf16)")
    parser.add_argument("--context-len", type=int, default=4096, metavar="N", help="rows of a key/value cache (default 4096)")
    parser.add_argument("--max-step-tokens", type=int, default=64, metavar="N", help="largest prefill chunk or draft tree (default 64)")
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="requests whose caches fit at a time (default 8)")
    return parser
