"""`drafthouse build` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from drafthouse_build.cli import main, parse_count, parse_drafters
from drafthouse_build.errors import BuildError
from drafthouse_build.templates import committed_drafters
from fakes.tiny_llama import tiny_config, write_checkpoint

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
SIZES = ["--context-len", "64", "--max-step-tokens", "16"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    write_checkpoint(folder / "target")
    for name in committed_drafters(TEMPLATES):
        write_checkpoint(folder / name, tiny_config(num_hidden_layers=1))
    return folder


def test_build_and_build_again(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["--target", f"{models}/target", "--drafter", f"code={models}/code", "--output", str(output), "--slots", "2", *SIZES]
    assert main(command) == 0
    first = capsys.readouterr().err
    assert "building target …" in first
    assert f"built target, drafter_code, router, cosine into {output}" in first
    assert (output / "drafter_code/1/model.onnx").is_file()
    assert main(command) == 0
    assert f"build is current: {output}" in capsys.readouterr().err


def test_demo_builds_the_committed_ensemble(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["--demo", "--models", str(models), "--output", str(output), "--expand-target", "0.2M", *SIZES]
    assert main(command) == 0
    assert "built target, drafter_code, drafter_math" in capsys.readouterr().err
    assert {folder.name for folder in output.glob("drafter_*")} == {f"drafter_{name}" for name in committed_drafters(TEMPLATES)}


def test_demo_builds_a_node(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["--demo", "--only", "code,math", "--models", str(models), "--output", str(output), "--expand-target", "0.2M", *SIZES]
    assert main(command) == 0
    assert f"built drafter_code, drafter_math into {output}" in capsys.readouterr().err
    assert {folder.name for folder in output.iterdir()} == {"drafter_code", "drafter_math"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "INVALID_ARG field=target value=none allowed=--target DIR, or --demo"),
        (["--target", "MODELS/target"], "INVALID_ARG field=output value=none allowed=--output DIR, or --demo"),
        (["--target", "MODELS/target", "--output", "OUT"], "INVALID_ARG field=drafter value=none allowed=at least one NAME=DIR"),
        (["--drafter", "code"], "INVALID_ARG field=drafter value=code allowed=NAME=DIR, every name once"),
        (["--drafter", "a=x", "--drafter", "a=y"], "INVALID_ARG field=drafter value=a=y allowed=NAME=DIR, every name once"),
        (["--drafter", "code=MODELS/nowhere"], "INVALID_ARG field=checkpoint value=MODELS/nowhere allowed=an existing folder"),
        (["--drafter", "code=MODELS/code", "--precision", "fp8"], "UNSUPPORTED field=precision value=fp8 allowed=fp32, int8"),
        (["--drafter", "code=MODELS/code", "--context-len", "2"], "INVALID_ARG field=context_len value=2 allowed=at least 4"),
        (["--drafter", "code=MODELS/code", "--context-len", "64"], "INVALID_ARG field=max_step_tokens value=64 allowed=2 to 63"),
        (["--drafter", "code=MODELS/code", "--context-len", "999"], "INVALID_ARG field=context_len value=999 allowed=up to max_position"),
        (["--drafter", "code=MODELS/code", "--slots", "0"], "INVALID_ARG field=slots value=0 allowed=an integer ≥ 1"),
        (["--drafter", "code=MODELS/code", "--expand-target", "big"], "INVALID_ARG field=expand_target value=big allowed=a number of"),
        (["--drafter", "code=MODELS/code", "--expand-target", "10"], "INVALID_ARG field=expand_target value=10 allowed=at least"),
        (["--drafter", "code=MODELS/code", "--templates", "MODELS"], "INVALID_ARG field=templates value=MODELS/cosine/config.pbtxt"),
        (["--demo", "--target", "MODELS/target"], "INVALID_ARG field=target value=MODELS/target allowed=either --demo"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"MODELS": str(models), "OUT": str(tmp_path / "out")}
    if "--drafter" in arguments:
        arguments = ["--target", "MODELS/target", "--output", "OUT", *([] if "--context-len" in arguments else SIZES), *arguments]
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        message = message.replace(name, place)
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" …")]
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert not (tmp_path / "out").exists()


def test_options_are_read_in_order() -> None:
    assert list(parse_drafters(["b=/x", "a=/y=z"]).items()) == [("b", "/x"), ("a", "/y=z")]
    assert [parse_count(text) for text in ("90M", "1.2b", "500k", "7")] == [90_000_000, 1_200_000_000, 500_000, 7]
    with pytest.raises(BuildError):
        parse_count("-3M")
