"""The pure functions of token fusion, and the promises every tree keeps."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.fusion.contract import DraftCall, DraftRow
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.fusion.token_fusion import Proposal, build_tree, most_confident, select_branches
from fakes.drafter_scripted import Context, ScriptedDrafter


def check_tree(tree: DraftTree, trunk_len: int) -> None:
    """Every array has a value per node; parents come before children; siblings differ; the trunk comes first."""
    assert len(tree.tokens) == len(tree.parents) == len(tree.confidence) == len(tree.source)
    assert all(ROOT <= parent < node for node, parent in enumerate(tree.parents.tolist()))
    assert tree.parents[:trunk_len].tolist() == list(range(ROOT, trunk_len - 1))
    edges = list(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))
    assert len(edges) == len(set(edges))
    assert ((tree.confidence >= 0) & (tree.confidence <= 1)).all()


@pytest.mark.parametrize(
    ("proposals", "winner"),
    [
        ([Proposal(4, 0.5, 0), Proposal(3, 0.6, 1)], 1),
        ([Proposal(4, 0.5, 1), Proposal(3, 0.5, 0)], 1),
        ([Proposal(4, 0.5, 0), Proposal(3, 0.5, 0)], 1),
    ],
)
def test_most_confident_breaks_ties_by_drafter_then_token(proposals: list[Proposal], winner: int) -> None:
    assert most_confident(proposals) is proposals[winner]


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        most_confident([])


def test_branches_are_merged_ranked_by_reach_and_limited() -> None:
    trunk = [Proposal(1, 0.5, 0), Proposal(2, 0.9, 1)]
    candidates = [
        [trunk[0], Proposal(7, 0.3, 0), Proposal(7, 0.4, 1), Proposal(1, 0.2, 1)],
        [trunk[1], Proposal(8, 0.7, 0), Proposal(9, 0.1, 1)],
    ]
    found = select_branches(trunk, candidates, 2)
    assert [(branch.position, branch.proposal.token, branch.proposal.source) for branch in found] == [(0, 7, 1), (1, 8, 0)]
    assert [branch.reach for branch in found] == pytest.approx([0.4, 0.35])
    assert select_branches(trunk, candidates, 1) == found[:1]
    tree = build_tree(trunk, found)
    assert tree.tokens.tolist() == [1, 2, 7, 8]
    assert tree.parents.tolist() == [ROOT, 0, ROOT, 0]
    check_tree(tree, 2)


def test_empty_tree_has_no_nodes() -> None:
    assert len(build_tree([])) == 0


@pytest.mark.parametrize("seed", range(40))
def test_every_tree_keeps_the_promises(seed: int) -> None:
    rng = random.Random(seed)

    def talk(salt: int) -> ScriptedDrafter:
        def script(context: Context) -> list[tuple[int, float]]:
            dice = random.Random(hash((seed, salt, context)))
            return [(token, dice.random()) for token in dice.sample(range(6), 2)]

        gone, forgets, errors = (frozenset(rng.sample(range(8), rng.choice([0, 0, 1]))) for _ in range(3))
        limit = rng.choice([4, 64])
        return ScriptedDrafter(str(salt), script, slots=3, max_step_tokens=limit, gone=gone, forgets=forgets, errors=errors)

    drafters = [talk(salt) for salt in range(3)]
    max_branches = rng.choice([0, 1, 4])
    options = FusionOptions(5.0, max_branches, rng.choice([1, 2, 5]))
    fusion = CollaborativeFusion(drafters, [drafter.max_step_tokens for drafter in drafters], options)
    rows = [
        DraftRow(
            uid,
            0,
            np.array([rng.randrange(6) for _ in range(rng.randint(1, 9))], np.int32),
            rng.randint(0, 6),
            np.array([rng.choice([0.0, rng.random()]) for _ in drafters], np.float32),
        )
        for uid in range(rng.randint(1, 4))
    ]
    for wanted, got in zip(rows, asyncio.run(fusion.draft(DraftCall(rows))).rows, strict=True):
        trunk_len = got.proposals.shape[1]
        check_tree(got.tree, trunk_len)
        assert trunk_len <= wanted.num_draft_tokens
        assert trunk_len <= len(got.tree) <= trunk_len + max_branches
        for position, (token, source) in enumerate(zip(got.tree.tokens[:trunk_len], got.tree.source, strict=False)):
            assert got.proposals[source, position] == token
