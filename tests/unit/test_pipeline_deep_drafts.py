"""Drafts that were continued while they were verified: deeper than any that is asked for at a time, and no prefill when accepted."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from drafthouse.core.tree import DraftTree
from drafthouse.pipeline.config import PipelineConfig
from drafthouse_load.replay.virtual_time import run_virtual
from fakes.pipeline_harness import expect_reference, make_request, running
from fakes.pipeline_target import FakeTarget

MOST = 5
CONFIG = PipelineConfig(overlap="on", rehearsal="off", num_draft_tokens=MOST, max_num_draft_tokens=MOST)


def test_a_path_longer_than_a_draft_may_be_is_no_prefill() -> None:
    """Every token costs much, so that unsure drafts are verified in part and then go on; right ones are accepted in one piece later."""
    target, dice = FakeTarget(), random.Random(1)
    target.step_s = lambda call: 0.02 + 0.002 * sum(len(row.tokens) for row in call.rows)

    def any_confidence(tree: DraftTree) -> DraftTree:
        return replace(tree, confidence=np.full(len(tree), dice.choice([0.5, 0.8, 0.99, 0.999]), np.float32))

    async def main() -> None:
        async with running(CONFIG, target) as rig:
            rig.fusion.is_right, rig.fusion.edit_tree, rig.fusion.draft_s = lambda *_: True, any_confidence, lambda call: 0.002
            requests = [make_request((1, 2, index), 150, end_ids=()) for index in range(4)]
            for request, sink in zip(requests, await rig.generate(*requests), strict=True):
                expect_reference(request, sink)
            assert sum(stats.num_prefill_rows for stats in rig.rounds) == len(requests)
        rows = [row for call in target.calls for row in call.rows]
        assert max(len(row.tokens) - row.num_committed for row in rows) > MOST
        assert max(row.num_committed for row in rows if row.prefix_len) > MOST + 1  # accepted in one piece, and sent as committed

    run_virtual(main())
