"""The model repository of the end-to-end tests: the shipped demo models where they are, else random ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from drafthouse_build.engine import Precision
from drafthouse_build.repository import build_repository
from drafthouse_build.templates import committed_drafters
from fakes.tiny_llama import tiny_config, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
MODELS_VARIABLE = "DRAFTHOUSE_TEST_MODELS"
"""Names a folder of checkpoints (`target`, `code`, …) to test with."""
TEMPLATES = ROOT / "model_repository"
DEMO_MODELS = ROOT / "build" / "demo_models"
PROMPTS = ROOT / "tests" / "data" / "prompts.jsonl"
EOS = "<|endoftext|>"
VOCAB_SIZE = 4096
"""As in the demo models."""


def build_test_repository(folder: Path, precision: Precision = "fp32") -> Path:
    """Builds the whole repository into `folder`; the target is not expanded, which changes its speed and nothing else."""
    chosen = Path(os.environ.get(MODELS_VARIABLE, DEMO_MODELS))
    drafters = committed_drafters(TEMPLATES)
    if not (chosen / "target" / "config.json").exists():
        chosen = write_random_models(folder / "checkpoints", drafters)
    checkpoints = {name: chosen / name for name in drafters}
    build_repository(chosen / "target", checkpoints, folder / "models", templates=TEMPLATES, precision=precision)
    return folder / "models"


def write_random_models(folder: Path, drafters: list[str]) -> Path:
    """A random target, the first drafter its twin (so that drafts are accepted), the others strangers to it."""
    tokenizer = train_tokenizer()
    config = tiny_config(vocab_size=VOCAB_SIZE, max_position_embeddings=1024, eos_token_id=0)
    for index, name in enumerate(["target", *drafters]):
        write_checkpoint(folder / name, config, seed=max(0, index - 1), tokenizer=tokenizer)
    return folder


def train_tokenizer() -> dict[str, Any]:
    """A byte-level tokenizer that knows the words of the test prompts, and as many entries as the demo models' one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()), trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    learnt = content["model"]["vocab"]
    random = Random(0)
    for token_id in range(len(learnt), VOCAB_SIZE):
        learnt["".join(random.choices(ascii_lowercase, k=8))] = token_id  # no two words share much: stop words are found once
    return content
