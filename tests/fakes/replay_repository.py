"""A repository of random models small enough to be replayed within a test, with stage costs made up for it."""

from __future__ import annotations

from pathlib import Path

from drafthouse_build.repository import build_repository
from drafthouse_load.replay.costs import EngineCosts, HopCost, HopCosts, StageProfile
from fakes.tiny_llama import tiny_config, tiny_tokenizer, write_checkpoint

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
PROMPTS = ("abcabcab", "Zorro", "a", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
TARGET_MS, DRAFTER_MS = 10.0, 1.0  # of the smallest call
HOP = HopCost(0.5)


def build_replay_repository(folder: Path) -> Path:
    """Drafters: `twin`, who is the target once more, and `stranger`, who agrees with it by accident."""
    config = tiny_config(num_hidden_layers=1)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = tiny_tokenizer() | {"pre_tokenizer": byte_level, "decoder": byte_level}
    seeds = {"target": 0, "twin": 0, "stranger": 1}
    drafters = {name: write_checkpoint(folder / name, config, seed=seed, tokenizer=tokenizer) for name, seed in seeds.items()}
    build_repository(
        drafters.pop("target"), drafters, folder / "repository", templates=TEMPLATES, context_len=128, max_step_tokens=24, slots=4
    )
    return folder / "repository"


def made_up_costs(call_ms: float) -> EngineCosts:
    """A call of ``rows · tokens`` takes ``call_ms`` and a hundredth of it per token."""
    session = {(rows, tokens): call_ms * (1 + 0.01 * rows * tokens) for rows in (1, 2, 4) for tokens in (1, 2, 8, 24)}
    return EngineCosts(1, session, 0.0, 0.2, 0.0, 0.0)


def made_up_profile() -> StageProfile:
    """Costs of the repository's models."""
    engines = {"target": made_up_costs(TARGET_MS), "twin": made_up_costs(DRAFTER_MS), "stranger": made_up_costs(DRAFTER_MS)}
    return StageProfile(engines, HopCosts(HOP, HOP, HOP, HOP, pipeline=HopCost(0.1), fanout=HopCost(0.05, 0.01)), "made up")
