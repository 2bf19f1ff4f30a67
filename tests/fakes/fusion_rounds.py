"""Draft rounds in few words: rows with defaults, a fusion of scripted drafters, one call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from drafthouse.fusion.contract import DraftCall, DraftPlan, DraftResult, DraftRow, Fusion
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from fakes.drafter_scripted import ScriptedDrafter


def row(
    weights: Sequence[float], num_draft_tokens: int = 3, tokens: Sequence[int] = (10, 20), uid: int = 1, prefix_len: int = 0
) -> DraftRow:
    return DraftRow(uid, prefix_len, np.array(tokens, np.int32), num_draft_tokens, np.array(weights, np.float32))


def fusion_of(*drafters: ScriptedDrafter, timeout_s: float = 5.0, fuse_every: int = 1) -> CollaborativeFusion:
    options = FusionOptions(timeout_s, fuse_every)
    return CollaborativeFusion(drafters, [drafter.max_step_tokens for drafter in drafters], options)


def draft(fusion: Fusion, *rows: DraftRow, release: Sequence[int] = (), plan: DraftPlan | None = None) -> DraftResult:
    return asyncio.run(fusion.draft(DraftCall(rows, release, plan or DraftPlan())))


def num_steps(drafter: ScriptedDrafter) -> list[int]:
    return [call.num_steps for call in drafter.calls]
