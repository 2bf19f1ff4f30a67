"""`drafthouse build --backend tensorrt` with a pretended GPU and builder: what it writes, what it does once, how it fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drafthouse.engine.tensorrt.plan import digest_of, read_plan_manifest
from drafthouse_build.cli import main
from drafthouse_build.errors import BuildError
from fakes.tiny_llama import tiny_config, write_checkpoint

torch = pytest.importorskip("torch")
from fakes import fake_tensorrt, tensorrt_builds  # noqa: E402

pytestmark = pytest.mark.torch
SIZES = ["--context-len", "64", "--max-step-tokens", "32"]


@pytest.fixture
def gpus() -> Iterator[pytest.MonkeyPatch]:
    with tensorrt_builds.pretended_gpu(num_gpus=2) as patch:
        yield patch


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_checkpoint(tmp_path / "target")
    write_checkpoint(tmp_path / "code", tiny_config(num_hidden_layers=1))
    named = ["--target", f"{tmp_path}/target", "--drafter", f"code={tmp_path}/code", "--output", f"{tmp_path}/out"]
    return ["--backend", "tensorrt", *named, *SIZES]


def failure(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a build ends with."""
    assert main(command) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_repository_of_plans_each_on_its_gpu_and_only_once(
    gpus: pytest.MonkeyPatch, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command += ["--slots", "3", "--device", "code=1", "--timing-cache", f"{tmp_path}/timings/cache"]
    assert main(command) == 0
    for model, device in (("target", 0), ("drafter_code", 1)):
        folder = output / model / "1"
        names = {file.name for file in folder.iterdir()}
        assert names == {"model.py", "model.plan", "plan.json", "engine.json", "tokenizer.json"}
        assert f"instance_group [ {{ kind: KIND_GPU count: 1 gpus: [ {device} ] }} ]" in (output / model / "config.pbtxt").read_text()
        assert json.loads((folder / "engine.json").read_text())["precision"] == "bf16"
        plan = read_plan_manifest(folder)
        assert plan.plan_sha256 == digest_of(folder / "model.plan")
        assert (plan.precision, plan.slots, plan.cache_rows, plan.decode_tokens, plan.max_step_tokens) == ("bf16", 3, 128, 16, 32)
        assert (plan.tensorrt_version, plan.compute_capability, plan.quantization) == (fake_tensorrt.__version__, "9.0", "none")
    assert (tmp_path / "timings/cache").read_bytes() == b"timings"
    capsys.readouterr()
    assert main(command) == 0
    assert "build is current" in capsys.readouterr().err
    gpus.setattr(fake_tensorrt, "__version__", "10.16.0.72")
    assert main(command) == 0
    assert "built target, drafter_code" in capsys.readouterr().err


def test_what_another_runtime_left_is_removed(gpus: pytest.MonkeyPatch, command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out/target/1"
    for backend, file, other in (("onnx", "model.onnx", "model.plan"), ("tensorrt", "model.plan", "model.onnx")) * 2:
        assert main(["--backend", backend, *command[2:]]) == 0
        assert (folder / file).is_file()
        assert not (folder / other).exists()
    assert (folder / "plan.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp8"], "UNSUPPORTED field=precision value=fp8 allowed=fp32, fp16, bf16, int4"),
        (["--precision", "int8"], "UNSUPPORTED field=precision value=int8"),
        (["--device", "code=2"], "UNSUPPORTED field=device value=2 allowed=0 to 1"),
        (["--device", "math=1"], "INVALID_ARG field=device value=math allowed=target, code"),
        (["--device", "code"], "INVALID_ARG field=device value=code allowed=NAME=N, every name once"),
        (["--backend", "onnx", "--device", "code=1"], "INVALID_ARG field=device value=['code=1'] allowed=--backend tensorrt"),
        (["--workspace-mib", "0"], "INVALID_ARG field=workspace value=0 MiB: could not find any implementation: insufficient workspace"),
    ],
)
def test_bad_options_are_refused(
    gpus: pytest.MonkeyPatch, command: list[str], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert failure([*command, *options], capsys).startswith(message)


def test_four_bits_without_model_optimizer_are_refused_by_name(
    gpus: pytest.MonkeyPatch, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.setattr("drafthouse_build.tensorrt_engine.importlib.util.find_spec", lambda name: None)
    found = failure([*command, "--precision", "int4"], capsys)
    assert found.startswith("UNSUPPORTED field=precision value=int4")
    assert "pip install 'nvidia-modelopt[onnx]'" in found


def test_a_machine_without_tensorrt_or_gpu_is_told_what_it_lacks(
    gpus: pytest.MonkeyPatch, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.setattr(torch.cuda, "is_available", lambda: False)
    assert failure(command, capsys).startswith("UNSUPPORTED field=device value=0 allowed=a GPU: PyTorch sees none")
    gpus.setitem(sys.modules, "tensorrt", None)
    assert failure(command, capsys).startswith("UNSUPPORTED field=backend value=tensorrt")
    assert not (tmp_path / "out").exists()


def test_the_checkouts_own_repository_is_not_turned_into_plans(
    gpus: pytest.MonkeyPatch, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    templates = Path(__file__).resolve().parents[2] / "model_repository"
    found = failure([*command, "--output", str(templates)], capsys)
    assert found.startswith("INVALID_ARG field=output")


def test_a_graph_that_the_importer_refuses_leaves_no_engine(
    gpus: pytest.MonkeyPatch, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def parse(self: fake_tensorrt.OnnxParser, model: str) -> bool:
        self._errors.append(fake_tensorrt.ParserError("no importer for TensorScatter"))
        return False

    gpus.setattr(fake_tensorrt.OnnxParser, "parse_from_file", parse)
    found = failure(command, capsys)
    assert found.startswith("UNSUPPORTED field=graph value=no importer for TensorScatter allowed=what this TensorRT imports")
    assert [file.name for file in (tmp_path / "out/target/1").iterdir()] == ["model.py"]


def test_timings_of_another_gpu_are_left(gpus: pytest.MonkeyPatch, command: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(b"of another GPU")
    assert main([*command, "--timing-cache", str(cache)]) == 0
    assert cache.read_bytes() == b"timings"


def test_progress_comes_from_the_builder_and_never_goes_back(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from drafthouse.engine.tensorrt.profiles import EngineShape
    from drafthouse_build.tensorrt_plan import CompileOptions, compile_plan

    folder = tensorrt_builds.build_plan(write_checkpoint(tmp_path / "model"), tmp_path / "engine", precision="fp32")
    graph = tmp_path / "graph.onnx"
    graph.write_bytes((folder / "model.plan").read_bytes().split(b"\n", 2)[2])
    seen: list[float] = []
    plan = read_plan_manifest(folder)
    shape = EngineShape(3, 2, 16, 96, plan.cache_rows, 6, 16, 16)
    compile_plan(graph, tmp_path / "model.plan", shape, CompileOptions(), lambda done, total: seen.append(done / total))
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert (0 < seen[0] < 0.3, seen[-1]) == (True, 1.0)
    with pytest.raises(BuildError, match="a profile lacks an input"):
        compile_plan(graph, tmp_path / "model.plan", EngineShape(2, 2, 16, 96, plan.cache_rows, 6, 16, 16), CompileOptions())
