"""The TensorRT code against NVIDIA's real Python bindings, oldest and newest: every name exists, every call has the right types.

Needs the package index once (the wheels are then in the environment) and gcc. In CI (`CI` set) a machine without them fails these tests.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import fake_tensorrt
from trt_bindings import SHIM_FUNCTIONS, VERSIONS, Bindings, UnavailableError, Version, prepare

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *sorted((ROOT / "python_backends/drafthouse/engine/tensorrt").glob("*.py")),
    *sorted((ROOT / "build/drafthouse_build").glob("tensorrt_*.py")),
]
CONFIG = """
[mypy]
strict = True
python_version = 3.11
explicit_package_bases = True
warn_unused_ignores = False
disallow_any_unimported = False
mypy_path = {paths}
[mypy-tensorrt.*]
ignore_errors = True
implicit_optional = True
[mypy-torch.*,modelopt.*]
ignore_missing_imports = True
follow_imports = skip
[mypy-drafthouse.*,drafthouse_build.*]
follow_imports = silent
"""


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: version.number)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    version: Version = request.param
    try:
        return prepare(version)
    except UnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"TensorRT's bindings: {error}")


def type_errors(bindings: Bindings, files: list[Path], folder: Path) -> list[str]:
    """mypy's errors in `files`, which import TensorRT as it is stubbed."""
    paths = [bindings.stubs, *(ROOT / part for part in ("python_backends", "build", "client", "loadtest"))]
    config = folder / "mypy.ini"
    config.write_text(CONFIG.format(paths=":".join(map(str, paths))))
    cache = bindings.folder / "mypy_cache"
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(config),
        "--cache-dir",
        str(cache),
        "--no-error-summary",
        *map(str, files),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    return [line for line in ran.stdout.splitlines() if ": error:" in line]


def used_names(tree: ast.AST) -> set[str]:
    """`Builder`, `BuilderFlag.VERSION_COMPATIBLE`, …: everything that is read from the module `trt` or `tensorrt`."""
    return {name for node in ast.walk(tree) if (name := _dotted(node))}


def _dotted(node: ast.AST) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    is_module = isinstance(node, ast.Name) and node.id in ("trt", "tensorrt")
    return ".".join(reversed(parts)) if is_module and parts else ""


def missing(bindings: Bindings, names: set[str]) -> list[str]:
    """Which of the dotted names the real module does not have."""
    code = """
import json, functools, sys
def has(name):
    try:
        functools.reduce(getattr, name.split("."), tensorrt_bindings)
        return True
    except AttributeError:
        return False
print(json.dumps([name for name in json.loads(sys.argv[1]) if not has(name)]))
"""
    code = code.replace("sys.argv[1]", repr(json.dumps(sorted(names))))
    found: list[str] = json.loads(bindings.run(code))
    return found


def fake_names() -> Iterator[str]:
    """Everything public of the fake that stands for something of TensorRT's."""
    for name, value in vars(fake_tensorrt).items():
        if name.startswith("_") or not inspect.isclass(value) or not value.__module__.startswith(fake_tensorrt.__name__):
            continue
        yield name
        for member, inner in vars(value).items():
            if not member.startswith("_"):
                yield f"{name}.{member}"
                yield from (f"{name}.{member}.{entry}" for entry in getattr(inner, "__members__", ()))


def test_the_code_type_checks_against_the_real_bindings(bindings: Bindings, tmp_path: Path) -> None:
    assert type_errors(bindings, SOURCES, tmp_path) == []


def test_every_name_that_the_code_uses_exists(bindings: Bindings) -> None:
    names = set().union(*(used_names(ast.parse(file.read_text())) for file in SOURCES))
    assert {"Runtime", "BuilderFlag.VERSION_COMPATIBLE", "ExecutionContextAllocationStrategy.USER_MANAGED"} <= names
    assert missing(bindings, names) == []


def test_every_name_of_the_fake_exists(bindings: Bindings) -> None:
    names = set(fake_names())
    assert {"IExecutionContext.execute_async_v3", "ILogger.Severity.ERROR", "DataType.BF16"} <= names
    assert missing(bindings, names) == []


def test_what_tensorrt_calls_back_is_accepted_by_the_real_base_classes(bindings: Bindings) -> None:
    """Logger and progress monitor are made, and called, as subclasses of the real ones."""
    code = """
from drafthouse.engine.tensorrt.runtime import LibraryLog
from drafthouse_build.tensorrt_progress import BuildMonitor
log, seen = LibraryLog(), []
log.log(tensorrt_bindings.ILogger.Severity.ERROR, "first")
assert log.take_errors() == "first" and log.take_errors() == "no reason given"
monitor = BuildMonitor(lambda done, total: seen.append(done / total))
monitor.phase_start("build", None, 2)
monitor.phase_start("tactics", "build", 4)
assert all(monitor.step_complete("tactics", step) for step in range(4))
monitor.phase_finish("tactics")
assert monitor.step_complete("build", 1)
monitor.phase_finish("build")
assert seen == sorted(seen) and 0 < seen[0] < 0.2 and seen[-1] == 1.0, seen
monitor.is_cancelled = True
assert not monitor.step_complete("build", 1)
print("called")
"""
    site_packages = [Path(entry) for entry in sys.path if entry]
    assert bindings.run(code, *site_packages).strip() == "called"


def test_the_shim_is_needed_for_these_functions_only(bindings: Bindings) -> None:
    library = bindings.packages / "tensorrt_bindings" / "tensorrt.so"
    held = library.read_bytes()
    assert [name for name in SHIM_FUNCTIONS if name.encode() not in held] == []


MUTATIONS = [
    ("runtime.py", "execute_async_v3", "execute_async_v4"),
    ("runtime.py", "get_aliased_input_tensor", "get_aliased_tensor"),
    ("runtime.py", "set_input_shape(name, dims)", "set_input_shape(dims, name)"),
    ("runtime.py", "trt.DataType.HALF", "trt.DataType.FP16"),
    ("tensorrt_plan.py", "build_serialized_network(network, config)", "build_engine(network, config)"),
    ("tensorrt_plan.py", "trt.MemoryPoolType.WORKSPACE", "trt.MemoryPool.WORKSPACE"),
    (
        "tensorrt_progress.py",
        "def step_complete(self, phase_name: str, step: SupportsInt) -> bool:",
        "def step_complete(self, step: int) -> bool:",
    ),
]


def test_a_wrong_name_or_argument_makes_the_type_check_fail(bindings: Bindings, tmp_path: Path) -> None:
    mutants = []
    for number, (name, right, wrong) in enumerate(MUTATIONS):
        source = next(file for file in SOURCES if file.name == name).read_text()
        assert right in source, right
        mutants.append(tmp_path / f"mutant_{number}.py")
        mutants[-1].write_text(source.replace(right, wrong))
    found = type_errors(bindings, mutants, tmp_path)
    assert {line.partition(":")[0].rpartition("/")[2] for line in found} == {mutant.name for mutant in mutants}


def test_a_wrong_name_is_missed(bindings: Bindings) -> None:
    mutant = used_names(
        ast.parse("import tensorrt as trt\nx = trt.BuilderFlag.VERSION_COMPATIBLE\ny = trt.Runtimes(trt.ILogger.Severity.FATAL)")
    )
    assert missing(bindings, mutant) == ["ILogger.Severity.FATAL", "Runtimes"]
