"""Drafters whose vocabulary is padded to another size than the target's, or has tokens of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drafthouse.engine.contract import RowStatus
from drafthouse.engine.engine import load_engine
from drafthouse.engine.manifest import read_manifest
from drafthouse.engine.options import EngineOptions as RunOptions
from drafthouse_build.errors import BuildError
from drafthouse_build.repository import build_repository
from fakes.engine_driver import step, step_row
from fakes.onnx_llama import OnnxLlama
from fakes.tiny_llama import random_weights, tiny_config, tiny_tokenizer, write_checkpoint

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
NUM_TOKENS = 83
TARGET_SIZE = 96
TEXT = [5, 17, 42, 3, 82, 64]


def tokenizer(*added: tuple[int, str]) -> dict[str, Any]:
    """The tiny tokenizer with further added tokens."""
    content = {**tiny_tokenizer(), "decoder": {"type": "ByteLevel"}}
    first = content["added_tokens"][0]
    content["added_tokens"] = [first, *({**first, "id": token_id, "content": text} for token_id, text in added)]
    return content


def build_drafter(root: Path, config: dict[str, Any], theirs: dict[str, Any], ours: dict[str, Any]) -> Path:
    """Builds a repository whose target has 96 ids, and returns the drafter's engine."""
    write_checkpoint(root / "target", tiny_config(vocab_size=TARGET_SIZE), tokenizer=ours)
    write_checkpoint(root / "drafter", config, seed=1, tokenizer=theirs)
    drafters = {"small": root / "drafter"}
    build_repository(root / "target", drafters, root / "out", templates=TEMPLATES, context_len=64, max_step_tokens=16)
    return root / "out" / "drafter_small" / "1"


def own_logits(config: dict[str, Any], tokens: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
    """What the drafter's checkpoint says, in its own ids."""
    from drafthouse_build.config import parse_config
    from drafthouse_build.decoder import export_decoder

    model = export_decoder(parse_config(config), random_weights(config, seed=1), 64)
    return OnnxLlama(model, rows=1).step(0, [tokens], [0])[0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [84, 96, 128])
def test_a_drafter_of_any_size_speaks_in_the_targets_ids(tmp_path: Path, size: int, tied: bool) -> None:
    config = tiny_config(vocab_size=size, tie_word_embeddings=tied)
    folder = build_drafter(tmp_path, config, tokenizer(), tokenizer())
    assert read_manifest(folder).vocab_size == TARGET_SIZE
    found = OnnxLlama(folder / "model.onnx", rows=1).step(0, [TEXT], [0])[0]
    assert found.shape == (len(TEXT), TARGET_SIZE)
    np.testing.assert_array_equal(found[:, :NUM_TOKENS], own_logits(config, TEXT)[:, :NUM_TOKENS])
    # Ids that only pad are never proposed, whatever the network says about them.
    assert found[:, NUM_TOKENS:].max() < -1e29


def test_ids_that_a_drafter_lacks_are_taken_and_never_given(tmp_path: Path) -> None:
    """The target may choose an id that the drafter has no embedding for; the drafter goes on with finite numbers."""
    folder = build_drafter(tmp_path, tiny_config(vocab_size=84), tokenizer(), tokenizer((90, "<tool>")))
    engine = load_engine(folder, RunOptions(slots=1, calibration_ms=0))
    row = step_row(1, [5, 90, 95, 7])
    answer = step(engine, row, num_steps=8, num_candidates=TARGET_SIZE // 2)[0]
    assert answer.status is RowStatus.OK, answer.error
    assert np.isfinite(answer.logprobs).all()
    assert answer.candidate_ids.max() < NUM_TOKENS
    assert answer.sampled.max() < NUM_TOKENS


def test_tokens_of_the_drafter_alone_are_never_proposed(tmp_path: Path) -> None:
    folder = build_drafter(tmp_path, tiny_config(), tokenizer((85, "<own>"), (86, "<both>")), tokenizer((86, "<both>")))
    found = OnnxLlama(folder / "model.onnx", rows=1).step(0, [TEXT], [0])[0]
    is_open = (found > -1e29).all(axis=0)
    assert np.flatnonzero(is_open).tolist() == [*range(NUM_TOKENS), 86]


def test_the_same_vocabulary_costs_no_operator(tmp_path: Path) -> None:
    full = tokenizer(*((token_id, f"<{token_id}>") for token_id in range(NUM_TOKENS, TARGET_SIZE)))
    folder = build_drafter(tmp_path, tiny_config(), full, full)
    found = OnnxLlama(folder / "model.onnx", rows=1).step(0, [TEXT], [0])[0]
    np.testing.assert_array_equal(found, own_logits(tiny_config(), TEXT))


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ((86, "<other>"), "added token '<both>' target={"),
        ((82, "<both>"), "added token '<both>' target={"),
    ],
)
def test_an_id_of_two_meanings_is_refused(tmp_path: Path, added: tuple[int, str], named: str) -> None:
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=tokenizer of drafter small value=") as error:
        build_drafter(tmp_path, tiny_config(), tokenizer(added), tokenizer((86, "<both>")))
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_changed_target_vocabulary_rebuilds_the_drafter(tmp_path: Path) -> None:
    folder = build_drafter(tmp_path, tiny_config(), tokenizer(), tokenizer())
    before = read_manifest(folder).build_key
    assert read_manifest(build_drafter(tmp_path, tiny_config(), tokenizer(), tokenizer())).build_key == before
    build_drafter(tmp_path, tiny_config(), tokenizer((86, "<both>")), tokenizer((86, "<both>")))
    assert read_manifest(folder).build_key != before
