"""The pure functions of token fusion, and the promises every tree keeps."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.fusion.contract import DraftCall, DraftPlan, DraftRow
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.fusion.token_fusion import DraftTrie, Proposal, most_confident
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


def chain(trie: DraftTrie, *proposals: Proposal, parent: int = ROOT) -> list[int]:
    nodes = []
    for proposal in proposals:
        parent = trie.add(parent, proposal)
        nodes.append(parent)
    return nodes


def test_identical_continuations_are_one_node_of_the_better_judge() -> None:
    trie = DraftTrie(DraftTree())
    first = chain(trie, Proposal(1, 0.5, 0, 0.2), Proposal(2, 0.9, 0))
    second = chain(trie, Proposal(1, 0.8, 1, 0.6, 1), Proposal(3, 0.4, 1))
    assert first[0] == second[0]
    tree, trunk = trie.tree(first, 8)
    check_tree(tree, 2)
    assert trunk == [0, 1]
    assert tree.tokens.tolist() == [1, 2, 3]
    assert tree.parents.tolist() == [ROOT, 0, 0]
    assert (tree.source[0], tree.ranks[0]) == (1, 1)
    assert (tree.confidence[0], tree.probs[0]) == pytest.approx((0.8, 0.6))


def test_the_most_promising_branches_stay_and_the_trunk_always_does() -> None:
    trie = DraftTrie(DraftTree())
    trunk = chain(trie, Proposal(1, 0.5, 0), Proposal(2, 0.1, 0))
    chain(trie, Proposal(7, 0.4, 0), Proposal(8, 0.9, 0))
    chain(trie, Proposal(9, 0.3, 1), parent=trunk[0])
    tree, _ = trie.tree(trunk, 4)
    assert tree.tokens.tolist() == [1, 2, 7, 8]  # 0.4 and 0.36 are more than 0.15
    assert trie.tree(trunk, 1)[0].tokens.tolist() == [1, 2]


def test_a_base_tree_keeps_its_places() -> None:
    base = DraftTree(
        *(np.array(values, kind) for values, kind in (([5, 6, 7], np.int32), ([ROOT, 0, 0], np.int32), ([0.5] * 3, np.float32)))
    )
    trie = DraftTrie(base)
    grown = chain(trie, Proposal(8, 0.5, 1), Proposal(9, 0.5, 1), parent=1)
    tree, trunk = trie.tree(grown, 1)
    assert tree.tokens.tolist() == [5, 6, 7, 8, 9]
    assert tree.parents.tolist() == [ROOT, 0, 0, 1, 3]
    assert trunk == [3, 4]
    assert trie.path(grown[-1]) == [5, 6, 8, 9]
    assert trie.reach(grown[-1]) == pytest.approx(0.5**4)


def test_empty_tree_has_no_nodes() -> None:
    assert len(DraftTrie(DraftTree()).tree([], 5)[0]) == 0


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
    options = FusionOptions(5.0, rng.choice([1, 2, 5]))
    plan = DraftPlan(
        fuse_every=rng.choice([0, 3]),
        num_siblings=rng.choice([0, 1]),
        keep_divergent=rng.random() < 0.5,
        max_nodes=rng.choice([4, 12]),
        min_chance=rng.choice([0.0, 0.2]),
        calibration=rng.choice([None, np.array([[[0.5, 1.2, 0.1]] * 3, [[-1.0, 1.0, 0.0]] * 3], np.float32)]),
    )
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
    for wanted, got in zip(rows, asyncio.run(fusion.draft(DraftCall(rows, (), plan))).rows, strict=True):
        trunk_len = got.proposals.shape[1]
        check_tree(got.tree, trunk_len)
        assert trunk_len <= wanted.num_draft_tokens
        assert got.trunk.tolist() == list(range(trunk_len))
        assert trunk_len <= len(got.tree) <= max(plan.max_nodes, trunk_len)
        if not (plan.num_siblings or plan.keep_divergent):
            assert len(got.tree) == trunk_len
        tree = got.tree
        for position, (token, source, rank) in enumerate(zip(tree.tokens[:trunk_len], tree.source, tree.ranks, strict=False)):
            assert rank > 0 or got.proposals[source, position] == token
