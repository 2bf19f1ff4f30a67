"""Engines small enough to be built by the tests that need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drafthouse_build.engine import Precision
from fakes.engine_driver import build_tiny_engine


@pytest.fixture(scope="session")
def tiny_engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds (once per session) an engine of a random two-layer Llama: `tiny_engine_dir(precision="fp32", seed=0)`."""
    built: dict[tuple[Precision, int], Path] = {}

    def build(precision: Precision = "fp32", seed: int = 0) -> Path:
        key = (precision, seed)
        if key not in built:
            built[key] = build_tiny_engine(tmp_path_factory.mktemp("tiny_engine"), precision, seed)
        return built[key]

    return build
