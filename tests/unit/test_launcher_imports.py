"""What `drafthouse` imports, and what the lock files promise."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy" / "locks"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_command_line_imports_a_sub_command_only_when_it_runs() -> None:
    code = "import sys, drafthouse_client.cli; print([n for n in sys.modules if n.split('.')[0] in ('rich', 'numpy', 'onnx', 'torch')])"
    assert run_python(code) == "[]"


@pytest.mark.parametrize("module", ["drafthouse.launcher.serve", "drafthouse.launcher"])
def test_serving_imports_neither_torch_nor_the_build(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'transformers', 'onnx', 'pytriton') if n in sys.modules])"
    assert run_python(code) == "[]"


def read_lock(name: str) -> dict[str, str]:
    lines = [line for line in (LOCKS / name).read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return pins


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("tag", ["py311", "py312"])
def test_the_locks_pin_what_pyproject_allows(tag: str) -> None:
    serve, dev = read_lock(f"{tag}-serve.txt"), read_lock(f"{tag}-dev.txt")
    serving = ("cpu-server", "editable", "plot", "gateway")
    for pins, extras in ((serve, serving), (dev, (*serving, "load", "train", "dev"))):
        for requirement in declared(*extras):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert serve.items() <= dev.items(), "one environment holds both"
    assert not {"torch", "transformers"} & serve.keys(), "serving on the CPU installs neither"


def test_what_is_tested_is_what_is_locked() -> None:
    pins = read_lock(f"py3{sys.version_info.minor}-serve.txt")
    for name in ("numpy", "onnxruntime", "nvidia-pytriton", "tritonclient", "tokenizers"):
        assert installed_version(name) == pins[name]
