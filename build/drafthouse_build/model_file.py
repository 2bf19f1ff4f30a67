"""Writes `model.onnx`, with its weights inside while they fit one protobuf, else block by block into `model.onnx.data` beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import onnx

from drafthouse_build.quantize import quantize_weights
from drafthouse_build.weight_store import Advance, WeightStore

Precision = Literal["fp32", "int8"]

# protobuf stops at 2 GB.
MAX_INLINE_BYTES = 1_500_000_000

# Is told how many bytes of how many are written.
Progress = Callable[[int, int], None]


class Draw(Protocol):
    """Draws a graph, its weights going to `store`."""

    def __call__(self, *, store: WeightStore) -> onnx.ModelProto: ...


def write_model(draw: Draw, file: Path, num_bytes: int, precision: Precision, progress: Progress | None = None) -> None:
    """Writes the model that `draw` draws to `file`; `num_bytes` is about the size of its weights in float32.

    With 8-bit weights a large model is written twice, first in float32, and the disk needs room for both.
    """
    data, unrounded = file.with_name(f"{file.name}.data"), file.with_name(f"{file.name}.fp32")
    for stale in (file, data, unrounded):
        stale.unlink(missing_ok=True)
    is_large, is_rounded = num_bytes > MAX_INLINE_BYTES, precision == "int8"
    advance = _counter(num_bytes * 5 // 4 if is_rounded else num_bytes, progress)
    try:
        with WeightStore((unrounded if is_rounded else data) if is_large else None, advance) as store:
            model = draw(store=store)
        if is_rounded:
            with WeightStore(data if is_large else None, advance) as store:
                model = quantize_weights(model, file.parent, store)
    finally:
        unrounded.unlink(missing_ok=True)
    onnx.save_model(model, str(file))


def _counter(total: int, progress: Progress | None) -> Advance:
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(min(done, total), total)

    return advance
