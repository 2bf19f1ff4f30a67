"""`drafthouse size`: the arithmetic by hand, what a session really takes, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drafthouse.engine.manifest import read_manifest
from drafthouse.engine.tensorrt.profiles import EngineShape
from drafthouse_build.config import parse_config
from drafthouse_build.tensorrt_size import RUNTIME_BYTES, Limits, footprint, main, most_slots
from fakes.tiny_llama import tiny_config, write_checkpoint

# Llama 3.1 8B, as on its model card.
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def test_llama_8b_by_hand() -> None:
    found = footprint(parse_config(tiny_config(**LLAMA_8B)), Limits("bf16", 4096, 64, 8))
    assert found.weights == 2 * 8_030_261_248  # parameters of the published model
    # keys and values of 32 layers, 8 heads of 128 numbers, 4096 + 16 rows rounded up to 4160
    assert found.cache_per_slot == 2 * 32 * 8 * 4160 * 128 * 2
    assert found.scores_per_slot == 64 * 128256 * 4
    assert found.runtime == RUNTIME_BYTES
    assert found.total(8) == found.fixed + 8 * found.per_slot


def test_four_bits_make_block_matrices_small_and_leave_the_rest() -> None:
    config = parse_config(tiny_config(**LLAMA_8B))
    rest = 2 * (2 * 128256 * 4096 + (2 * 32 + 1) * 4096)
    blocks = 8_030_261_248 - rest // 2
    assert footprint(config, Limits("int4")).weights == rest + round(blocks * (0.5 + 2 / 128))


def test_tied_embeddings_are_held_in_two_layouts() -> None:
    tied, untied = (parse_config(tiny_config(tie_word_embeddings=tied)) for tied in (True, False))
    assert footprint(tied, Limits(context_len=64)).weights == footprint(untied, Limits(context_len=64)).weights


def test_most_slots_is_the_last_number_that_fits() -> None:
    found = [footprint(parse_config(tiny_config(**LLAMA_8B)), Limits())] * 2
    memory = 80 << 30
    most = most_slots(found, memory)
    assert sum(engine.total(most) for engine in found) <= memory < sum(engine.total(most + 1) for engine in found)
    assert most_slots(found, 16 << 30) == 0


def write_config(folder: Path, **overrides: Any) -> Path:  # noqa: ANN401 - any entry of config.json
    """A checkpoint of which only config.json is there."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config(**{**LLAMA_8B, **overrides})))
    return folder


def test_the_command_fits_or_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, drafter = write_config(tmp_path / "target"), write_config(tmp_path / "draft", num_hidden_layers=2)
    command = ["--target", str(target), "--drafter", f"code={drafter}", "--slots", "16"]
    assert main([*command, "--gpus", "80,24", "--device", "code=1"]) == 0
    shown = capsys.readouterr().out
    assert "GPU 0: " in shown
    assert "of 80.00 GiB with 16 slots: fits" in shown
    assert "GPU 1: " in shown
    assert main([*command, "--gpus", "16"]) == 1
    assert "of 16.00 GiB with 16 slots: DOES NOT FIT; at most 0 slots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "big"], "INVALID_ARG field=gpus value=big"),
        (["--gpus", "0"], "INVALID_ARG field=gpus value=0"),
        (["--device", "code=0"], "INVALID_ARG field=device value=code=0 allowed=target on 0 to 0"),
        (["--device", "target=1"], "INVALID_ARG field=device value=target=1"),
        (["--context-len", "999999"], "INVALID_ARG field=context_len"),
        (["--target", "nowhere"], "INVALID_ARG field=checkpoint value=nowhere"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["--target", str(write_config(tmp_path / "target")), *options]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.torch
def test_the_session_takes_what_was_computed(tmp_path: Path) -> None:
    """Cache, scores and inputs of a real session (on host memory), byte for byte but for alignment."""
    pytest.importorskip("torch")
    from fakes import fake_tensorrt, tensorrt_builds

    with tensorrt_builds.pretended_gpu():
        from drafthouse.engine.tensorrt.session import TensorRtSession
        from fakes.host_device import HostDevice

        options = {"context_len": 64, "max_step_tokens": 32}
        folder = tensorrt_builds.build_plan(write_checkpoint(tmp_path / "model"), tmp_path / "engine", engine=options)
        device, manifest, slots = HostDevice(), read_manifest(folder), 4
        session = TensorRtSession(folder, manifest, slots, device, fake_tensorrt.__version__)
    found = footprint(parse_config(tiny_config()), Limits("fp32", 64, 32, slots))
    assert session.pool_bytes == slots * found.cache_per_slot
    assert EngineShape.of(manifest, slots).rows == 128
    computed = slots * (found.cache_per_slot + found.scores_per_slot + found.inputs_per_slot) + fake_tensorrt.COMPUTE_BYTES
    assert 0 <= device.used_bytes - computed < 5 * 256
