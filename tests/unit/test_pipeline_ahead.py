"""Drafting ahead: from where to go on, and what is left when the verdict is known."""

import numpy as np
import pytest

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.pipeline.ahead import continued, depth_of, expected_leaf, reach_of
from drafthouse.pipeline.state import Draft


def _tree(*nodes: tuple[int, int, float]) -> DraftTree:
    """From (token, parent, chance) per node."""
    tokens, parents, chances = zip(*nodes, strict=True)
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), np.array(chances, np.float32))


def _draft(tree: DraftTree, trunk: list[int]) -> Draft:
    """Two drafters; the first one's proposals are the trunk, the second one's 100 more."""
    tokens = tree.tokens[trunk]
    return Draft(tree, np.array(trunk, np.int32), np.stack([tokens, tokens + 100]), np.full((2, len(trunk)), 0.5, np.float32))


def _chosen(*nodes: int) -> np.ndarray:
    return np.array(nodes, np.int64)


#  10 ─ 11 ─ 12 ─ 13     the trunk
#   │    └── 21 ─ 22     a branch, written on by its drafter
#   └─ 31                a sibling
FORKED = _tree((10, ROOT, 0.9), (11, 0, 0.8), (12, 1, 0.7), (13, 2, 0.6), (21, 1, 0.3), (22, 4, 0.9), (31, 0, 0.1))


def test_reach_is_the_product_of_the_chances_on_the_path() -> None:
    expected = [0.9, 0.72, 0.504, 0.3024, 0.216, 0.1944, 0.09]
    np.testing.assert_allclose(reach_of(FORKED), expected, rtol=1e-5)
    assert reach_of(DraftTree()).shape == (0,)


def test_depth_counts_the_nodes_of_the_path() -> None:
    assert [depth_of(FORKED, node) for node in range(ROOT, 7)] == [0, 1, 2, 3, 4, 3, 4, 2]


def test_behind_a_draft_that_is_verified_whole_the_likeliest_leaf_is_expected() -> None:
    leaf, chance = expected_leaf(FORKED, _chosen(*range(7)))
    assert leaf == 3
    assert chance == pytest.approx(0.3024)


def test_a_leaf_that_is_not_verified_needs_the_target_only_to_get_to_its_branch() -> None:
    leaf, chance = expected_leaf(FORKED, _chosen(0, 1))
    # 12 is the target's own token with 0.504: then the walk ends above 13, in which the target has had no say yet.
    assert leaf == 3
    assert chance == pytest.approx(0.504)


def test_a_branch_is_gone_on_with_when_it_is_likelier_than_the_trunk() -> None:
    tree = _tree((10, ROOT, 0.3), (11, 0, 0.9), (20, ROOT, 0.6), (21, 2, 0.2))
    assert expected_leaf(tree, _chosen())[0] == 3
    leaf, chance = expected_leaf(tree, _chosen(0, 1, 2, 3))
    assert (leaf, chance) == (1, pytest.approx(0.27))


def test_of_equals_the_trunk_comes_first() -> None:
    tree = _tree((10, ROOT, 0.5), (20, ROOT, 0.5))
    assert expected_leaf(tree, _chosen(0, 1))[0] == 0


def test_without_a_draft_the_root_is_expected() -> None:
    assert expected_leaf(DraftTree(), _chosen()) == (ROOT, 1.0)


def test_after_a_hit_the_rest_of_the_path_is_the_next_draft() -> None:
    draft = continued(_draft(FORKED, [0, 1, 2, 3]), [10, 11])
    assert draft is not None
    assert (draft.tree.tokens.tolist(), draft.tree.parents.tolist()) == ([12, 13, 21, 22], [ROOT, 0, ROOT, 2])
    assert draft.trunk.tolist() == [0, 1]
    assert draft.proposals.tolist() == [[12, 13], [112, 113]]
    assert draft.proposal_probs.shape == (2, 2)


@pytest.mark.parametrize("committed", [[99], [10, 99], [10, 11, 12, 99], [99, 11], [10, 11, 12, 13, 14]])
def test_after_a_miss_nothing_is_left(committed: list[int]) -> None:
    assert continued(_draft(FORKED, [0, 1, 2, 3]), committed) is None


@pytest.mark.parametrize("committed", [[10, 11, 12, 13], [10, 31]])
def test_at_a_leaf_nothing_is_left(committed: list[int]) -> None:
    assert continued(_draft(FORKED, [0, 1, 2, 3]), committed) is None


def test_a_sibling_that_was_not_verified_can_be_the_target_s_own_token() -> None:
    draft = continued(_draft(FORKED, [0, 1, 2, 3]), [10, 11, 21])
    assert draft is not None
    assert (draft.tree.tokens.tolist(), draft.tree.parents.tolist()) == ([22], [ROOT])
    assert draft.trunk.shape == (0,)  # the trunk lies elsewhere: nothing is known about others' proposals here
    assert draft.proposals.shape == draft.proposal_probs.shape == (2, 0)


def test_a_tail_that_was_pruned_from_the_verification_is_the_next_draft() -> None:
    """The trunk was verified up to 11; the target's own token is 12, so that 13 is open still."""
    draft = continued(_draft(FORKED, [0, 1, 2, 3]), [10, 11, 12])
    assert draft is not None
    assert (draft.tree.tokens.tolist(), draft.tree.parents.tolist(), draft.trunk.tolist()) == ([13], [ROOT], [0])
    assert draft.proposals.tolist() == [[13], [113]]


def test_nothing_committed_changes_nothing() -> None:
    draft = continued(_draft(FORKED, [0, 1, 2, 3]), [])
    assert draft is not None
    assert draft.tree.tokens.tolist() == FORKED.tokens.tolist()
    assert draft.trunk.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_spells_the_same_texts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = [int(rng.integers(ROOT, node)) for node in range(12)]
    tree = _tree(*((node, parent, 0.5) for node, parent in enumerate(parents)))
    for end in range(12):
        committed: list[int] = []
        node = end
        while node != ROOT:
            committed.insert(0, node)  # a node's token is its number
            node = parents[node]
        draft, below = continued(_draft(tree, []), committed), tree.below(end).tolist()
        assert (draft is None) == (not below)
        if draft is not None:
            assert draft.tree.tokens.tolist() == below
            tokens = [ROOT if parent == ROOT else int(draft.tree.tokens[parent]) for parent in draft.tree.parents.tolist()]
            assert tokens == [ROOT if parents[other] == end else parents[other] for other in below]
