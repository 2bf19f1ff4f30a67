"""Servers for the end-to-end tests: real tritonserver processes on free ports of the loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drafthouse.launcher import TritonServer
from e2e.repositories import build_test_repository
from e2e.support import FIXTURES, free_port_config

HERE = Path(__file__).parent
REPOSITORY_VARIABLE = "DRAFTHOUSE_TEST_REPOSITORY"
"""Names a repository that is built already."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder talks to a real server."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def repository_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository that `server` serves."""
    named = os.environ.get(REPOSITORY_VARIABLE)
    return Path(named) if named is not None else build_test_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def server(repository_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One running server for all tests; leave it as you found it."""
    with TritonServer(free_port_config(repository_dir, log_dir=tmp_path_factory.mktemp("log"))) as running:
        yield running


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[..., Path]:
    """Builds a repository of models from `fixtures/`, by name."""

    def make(*models: str) -> Path:
        for model in models:
            shutil.copytree(FIXTURES / model, tmp_path / "models" / model)
        return tmp_path / "models"

    return make


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One server of the echo model for all tests of the launcher; leave it as you found it."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(FIXTURES / "echo", models / "echo")
    with TritonServer(free_port_config(models)) as running:
        yield running
