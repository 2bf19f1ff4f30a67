"""Engines of random weights compiled by the fake builder, and a machine that seems to have a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from drafthouse.engine.manifest import read_manifest
from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.engine import EngineOptions
from drafthouse_build.tensorrt_engine import PlanOptions, build_plan_engine
from fakes import fake_tensorrt
from fakes.engine_driver import CONTEXT_LEN, MAX_STEP_TOKENS

CAPABILITY = (9, 0)
SLOTS = 6
# The modules that import TensorRT, and those that import them.
_IMPORTERS = (
    *(f"drafthouse.engine.tensorrt.{name}" for name in ("runtime", "graphs", "session")),
    *(f"drafthouse_build.{name}" for name in ("tensorrt_plan", "tensorrt_progress")),
)


@contextmanager
def pretended_gpu(num_gpus: int = 1) -> Iterator[pytest.MonkeyPatch]:
    """TensorRT is the fake, and PyTorch sees GPUs, of which only names are asked; what was imported over the fake goes with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", fake_tensorrt)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: CAPABILITY)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "Pretended GPU")
        _forget_importers()
        yield patch
    _forget_importers()


def _forget_importers() -> None:
    for name in _IMPORTERS:
        sys.modules.pop(name, None)


def build_plan(checkpoint: Path, output: Path, engine: Mapping[str, int] | None = None, **options: object) -> Path:
    """The engine folder that `drafthouse build --backend tensorrt` would make of the checkpoint."""
    plan = PlanOptions(**{"precision": "fp32", "slots": SLOTS, **options})  # type: ignore[arg-type]
    shape = {"context_len": CONTEXT_LEN, "max_step_tokens": MAX_STEP_TOKENS, **(engine or {})}
    build_plan_engine(load_checkpoint(checkpoint), output, EngineOptions(**shape), plan, "tiny")
    return output


def open_session(folder: Path, **options: object) -> Any:  # noqa: ANN401 - its module is imported over the fake, and forgotten with it
    """The session over the plan in `folder`, on host memory, with six slots unless `options` say otherwise."""
    from drafthouse.engine.tensorrt.session import TensorRtSession
    from fakes.host_device import HostDevice

    settings: dict[str, Any] = {"device": HostDevice(), "tensorrt_version": fake_tensorrt.__version__, "slots": SLOTS, **options}
    return TensorRtSession(folder, read_manifest(folder), **settings)
