"""Plans that cannot run here, and machines that lack something: each is refused by name, with the fix, before any request is taken."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drafthouse.core.errors import ClientError, ServerError
from drafthouse.engine.engine import load_engine
from drafthouse.engine.options import EngineOptions

torch = pytest.importorskip("torch")
from fakes import tensorrt_builds  # noqa: E402
from fakes.tensorrt_builds import SLOTS, open_session  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    with tensorrt_builds.pretended_gpu():
        yield


@pytest.fixture(scope="module")
def plan_dir(tiny_engine_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensorrt_builds.build_plan(tiny_engine_dir().parent / "checkpoint", tmp_path_factory.mktemp("plan"))


def changed(folder: Path, target: Path, **entries: object) -> Path:
    """A copy of the engine with other entries in `plan.json`."""
    shutil.copytree(folder, target)
    file = target / "plan.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return target


REFUSALS = [
    ({"compute_capability": "8.9"}, "the engine was built for sm_89, Host GPU is sm_90"),
    ({"tensorrt_version": "10.16.0.72"}, "built with 10.16.0.72, running 10.15.1.29"),
    ({"tensorrt_version": "10.16.0.72", "version_compatible": True}, "TensorRT 10.x from 10.16.0.72 on"),
    ({"tensorrt_version": "9.3.0.1", "version_compatible": True}, "TensorRT 9.x"),
    ({"slots": 2}, "6, the engine was built for 2"),
    ({"cache_rows": 64}, "plan.json says 64, engine.json means 128"),
    ({"precision": "fp64"}, "fp32, fp16, bf16"),
    ({"precision": "fp16"}, "allowed=INPUT HALF"),
    ({"plan_sha256": "0" * 64}, "copy the folder again"),
    ({"plan_bytes": 7}, "bytes of 7"),
    ({"slots": "6"}, "a value of type int"),
    ({"surplus": 1}, "the entries plan_sha256"),
]


@pytest.mark.parametrize(("entries", "message"), REFUSALS)
def test_a_plan_for_another_machine_or_engine_is_refused_with_the_fix(
    plan_dir: Path, tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    with pytest.raises(ClientError) as caught:
        open_session(changed(plan_dir, tmp_path / "engine", **entries))
    assert message in str(caught.value)
    assert "drafthouse build --backend tensorrt" in str(caught.value)


def test_a_version_compatible_plan_runs_under_a_later_version(tiny_engine_dir: Callable[..., Path], tmp_path: Path) -> None:
    folder = tensorrt_builds.build_plan(tiny_engine_dir().parent / "checkpoint", tmp_path / "engine", version_compatible=True)
    assert open_session(folder, tensorrt_version="10.99.0.1").pool_bytes > 0


def test_a_truncated_or_foreign_plan_is_refused(plan_dir: Path, tmp_path: Path) -> None:
    content = (plan_dir / "model.plan").read_bytes()
    for number, broken in enumerate((content[:-100], b"x" * len(content))):
        folder = shutil.copytree(plan_dir, tmp_path / str(number))
        (folder / "model.plan").write_bytes(broken)
        with pytest.raises(ClientError, match=r"model\.plan"):
            open_session(folder)
        from drafthouse.engine.tensorrt.plan import digest_of

        entries = {"plan_sha256": digest_of(folder / "model.plan"), "plan_bytes": len(broken)}
        with pytest.raises(ClientError, match="the engine data is corrupt"):
            open_session(changed(folder, tmp_path / f"{number}.changed", **entries))


def test_too_little_memory_is_said_before_serving(plan_dir: Path) -> None:
    from fakes.host_device import HostDevice

    with pytest.raises(ServerError, match="UNAVAILABLE field=gpu_memory_bytes"):
        open_session(plan_dir, device=HostDevice(memory_bytes=100_000))


def test_a_machine_without_the_library_or_a_gpu_says_so(plan_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ServerError, match="a GPU: PyTorch sees none"):
        load_engine(plan_dir, EngineOptions(slots=SLOTS))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ServerError, match="UNAVAILABLE field=library"):
        load_engine(plan_dir, EngineOptions(slots=SLOTS))


def test_every_name_of_pytorch_that_the_code_uses_exists() -> None:
    """The GPU half of PyTorch is in its CPU build too, as names and signatures."""
    import ast
    import functools
    import inspect

    import drafthouse.engine.tensorrt

    names = set()
    for file in Path(drafthouse.engine.tensorrt.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if text.startswith("torch.") and "(" not in text:
                names.add(text)
    assert {"torch.cuda.CUDAGraph", "torch.cuda.mem_get_info", "torch.cuda.OutOfMemoryError"} <= names
    for name in names:
        functools.reduce(getattr, name.split(".")[1:], torch)
    assert {"stream", "capture_error_mode"} <= inspect.signature(torch.cuda.graph.__init__).parameters.keys()
    assert callable(torch.cuda.CUDAGraph.replay)
