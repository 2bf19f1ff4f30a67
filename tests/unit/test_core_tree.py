"""Draft trees: taking nodes, following tokens, what lies below."""

import numpy as np
import pytest

from drafthouse.core.tree import ROOT, DraftTree


def random_tree(rng: np.random.Generator, size: int) -> DraftTree:
    """Parents before children, siblings with different tokens."""
    parents = [int(rng.integers(ROOT, node)) for node in range(size)]
    tokens = [10 * parents[:node].count(parent) + int(rng.integers(10)) for node, parent in enumerate(parents)]
    columns = (
        rng.random(size, np.float32),
        rng.integers(0, 4, size, np.int32),
        rng.random(size, np.float32),
        rng.integers(0, 3, size, np.int32),
    )
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), *columns)


def path(tree: DraftTree, node: int) -> list[int]:
    """Tokens from the root to the node."""
    tokens: list[int] = []
    while node != ROOT:
        tokens.insert(0, int(tree.tokens[node]))
        node = int(tree.parents[node])
    return tokens


def ancestors(tree: DraftTree, node: int) -> set[int]:
    found = {ROOT}
    while (node := int(tree.parents[node]) if node != ROOT else ROOT) != ROOT:
        found.add(node)
    return found


TREES = [random_tree(np.random.default_rng(seed), seed % 13) for seed in range(40)]


@pytest.mark.parametrize("tree", TREES)
def test_a_path_of_tokens_names_one_node(tree: DraftTree) -> None:
    assert tree.node_after([]) == ROOT
    for node in range(len(tree)):
        assert tree.node_after(path(tree, node)) == node
        assert tree.node_after([*path(tree, node), 999]) is None
    assert tree.node_after([999]) is None


@pytest.mark.parametrize("tree", TREES)
def test_below_a_node_are_those_that_have_it_as_an_ancestor(tree: DraftTree) -> None:
    for node in range(ROOT, len(tree)):
        expected = [other for other in range(len(tree)) if node in ancestors(tree, other)]
        assert tree.below(node).tolist() == expected


@pytest.mark.parametrize("tree", TREES)
def test_what_is_taken_keeps_its_columns_and_its_paths(tree: DraftTree) -> None:
    rng = np.random.default_rng(len(tree))
    closed = np.zeros(len(tree), np.bool_)
    for node, parent in enumerate(tree.parents.tolist()):
        closed[node] = rng.random() < 0.7 and (parent == ROOT or closed[parent])
    nodes = np.flatnonzero(closed)
    taken = tree.taking(nodes)
    assert taken.parents.dtype == np.int32
    for name in ("tokens", "confidence", "source", "probs", "ranks"):
        assert getattr(taken, name).tolist() == getattr(tree, name)[nodes].tolist()
    assert [path(taken, index) for index in range(len(taken))] == [path(tree, node) for node in nodes.tolist()]


@pytest.mark.parametrize("tree", TREES)
def test_the_subtree_of_a_node_hangs_on_the_root(tree: DraftTree) -> None:
    for node in range(ROOT, len(tree)):
        below = tree.below(node)
        subtree, depth = tree.taking(below), len(path(tree, node))
        assert [path(subtree, index) for index in range(len(subtree))] == [path(tree, other)[depth:] for other in below.tolist()]


def test_nodes_are_taken_in_the_order_asked_for() -> None:
    tree = DraftTree(np.array([7, 8, 9], np.int32), np.array([ROOT, ROOT, 1], np.int32))
    taken = tree.taking(np.array([1, 2, 0]))
    assert (taken.tokens.tolist(), taken.parents.tolist()) == ([8, 9, 7], [ROOT, 0, ROOT])


def test_columns_that_are_not_given_are_zeros() -> None:
    tree = DraftTree(np.array([7, 8], np.int32), np.array([ROOT, 0], np.int32))
    assert len(tree) == 2
    for column in (tree.confidence, tree.source, tree.probs, tree.ranks):
        assert column.tolist() == [0, 0]
    assert len(DraftTree()) == 0
    assert DraftTree().node_after([]) == ROOT
    assert len(DraftTree().taking(np.empty(0, np.int64))) == len(DraftTree().below(ROOT)) == 0
