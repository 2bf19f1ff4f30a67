"""Which draft tokens of a batch are verified: by width, by budget, and evenly."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.scheduling.tetris import DraftCandidate, path_probs, prune, select_by_budget, select_by_width, select_evenly

MS = 1e6


def _random_candidate(rng: np.random.Generator, num_nodes: int, max_uncached: int = 3) -> DraftCandidate:
    parents = np.array([int(rng.integers(ROOT, node)) for node in range(num_nodes)], np.int32)
    return DraftCandidate(path_probs(parents, rng.uniform(0.2, 1.0, num_nodes)), parents, int(rng.integers(1, max_uncached + 1)))


def _chain(*chances: float, num_uncached: int = 1) -> DraftCandidate:
    parents = np.arange(-1, len(chances) - 1, dtype=np.int32)
    return DraftCandidate(path_probs(parents, chances), parents, num_uncached)


def _is_tree(mask: NDArray[np.bool_], parents: NDArray[np.int32]) -> bool:
    return all(parent == ROOT or mask[parent] for parent in parents[mask])


def _subtrees(candidate: DraftCandidate) -> list[NDArray[np.bool_]]:
    masks = (np.array(bits, bool) for bits in itertools.product([False, True], repeat=len(candidate.parents)))
    return [mask for mask in masks if _is_tree(mask, candidate.parents)]


def _flat(batch: int, _tokens: int) -> float:
    return 10 * MS + 1 * MS * batch


def test_path_probs_multiply_along_the_path() -> None:
    np.testing.assert_allclose(path_probs([ROOT, 0, 1, 0], [0.5, 0.5, 0.5, 0.2]), [0.5, 0.25, 0.125, 0.1])


@pytest.mark.parametrize("seed", range(8))
def test_width_is_the_best_of_all_selections(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = [_random_candidate(rng, 5) for _ in range(2)]
    times = rng.uniform(1, 3, 20).cumsum() * MS
    times[::3] *= 1.4  # not monotone

    def cost_ns(batch: int, tokens: int) -> float:
        return float(times[tokens]) * batch

    best = 0.0
    for masks in itertools.product(*map(_subtrees, candidates)):
        width = max(candidate.num_uncached + int(mask.sum()) for candidate, mask in zip(candidates, masks, strict=True))
        expected = 2 + sum(candidate.path_probs[mask].sum() for candidate, mask in zip(candidates, masks, strict=True))
        best = max(best, expected / (5 * MS + cost_ns(2, width)))
    chosen = select_by_width(candidates, cost_ns, 5 * MS)
    assert chosen.expected_tokens / (5 * MS + cost_ns(2, chosen.width)) == pytest.approx(best)
    assert all(_is_tree(mask, candidate.parents) for mask, candidate in zip(chosen.masks, candidates, strict=True))


def test_width_skips_a_slow_shape_and_every_row_fills_up() -> None:
    times = {1: 20.0, 2: 22.0, 3: 60.0, 4: 26.0, 5: 90.0}
    chosen = select_by_width([_chain(0.9, 0.9, 0.9, 0.9), _chain(0.1, 0.1, 0.1)], lambda _, tokens: times[tokens] * MS, 1.0)
    assert chosen.width == 4
    assert [mask.tolist() for mask in chosen.masks] == [[True, True, True, False], [True, True, True]]


def test_nothing_is_drafted_where_tokens_cost_more_than_they_bring() -> None:
    chosen = select_by_width([_chain(0.2, 0.2)], lambda _, tokens: tokens * 10 * MS, 1 * MS)
    assert (chosen.width, chosen.num_nodes, chosen.expected_tokens) == (1, 0, 1.0)


def test_ties_go_to_the_smaller_width() -> None:
    assert select_by_width([_chain(0.0, 0.0)], _flat, 0.0).width == 1


def test_committed_tokens_are_carried_whatever_the_limit() -> None:
    candidates = [_chain(0.9, 0.9, num_uncached=6), _chain(0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)]
    chosen = select_by_width(candidates, _flat, 0.0, max_width=4)
    assert chosen.width == 6
    assert [int(mask.sum()) for mask in chosen.masks] == [0, 5]
    assert select_by_width(candidates, _flat, 0.0, max_width=7).width == 7


@pytest.mark.parametrize("budget", [0, 1, 5, 9, 100])
def test_budget_takes_the_best_nodes_of_all_requests(budget: int) -> None:
    rng = np.random.default_rng(budget)
    candidates = [_random_candidate(rng, size) for size in (4, 0, 7, 3)]
    chosen = select_by_budget(candidates, budget)
    everything = np.sort(np.concatenate([candidate.path_probs for candidate in candidates]))[::-1]
    assert chosen.num_nodes == min(budget, 14)
    assert chosen.expected_tokens == pytest.approx(4 + everything[:budget].sum())
    assert all(_is_tree(mask, candidate.parents) for mask, candidate in zip(chosen.masks, candidates, strict=True))


def test_evenly_gives_each_request_its_own_best_nodes() -> None:
    forked = DraftCandidate(np.array([0.5, 0.1, 0.4]), np.array([ROOT, 0, ROOT], np.int32))
    chosen = select_evenly([forked, _chain(0.9), _chain(0.1, 0.1, 0.1)], 2)
    assert [mask.tolist() for mask in chosen.masks] == [[True, False, True], [True], [True, True, False]]
    assert chosen.width == 3


def test_tetris_accepts_more_than_evenly_with_the_same_number_of_tokens() -> None:
    rng = np.random.default_rng(1)
    candidates = [_random_candidate(rng, 8) for _ in range(8)]
    evenly = select_evenly(candidates, 4)
    assert select_by_budget(candidates, evenly.num_nodes).expected_tokens > evenly.expected_tokens


def test_a_child_that_claims_more_than_its_parent_is_not_taken_without_it() -> None:
    odd = DraftCandidate(np.array([0.2, 0.9, 0.9, 0.5]), np.array([ROOT, 0, 1, ROOT], np.int32))
    chosen = select_by_budget([odd, _chain(0.4)], 3)
    assert [mask.tolist() for mask in chosen.masks] == [[True, False, False, True], [True]]
    assert chosen.expected_tokens == pytest.approx(2 + 0.5 + 0.2 + 0.4)


def test_no_requests() -> None:
    for chosen in (select_by_width([], _flat, 1.0), select_by_budget([], 3), select_evenly([], 3)):
        assert (len(chosen.masks), chosen.width, chosen.expected_tokens) == (0, 0, 0.0)
    assert select_by_width([_chain()], _flat, 1.0).width == 1


def test_pruned_tree_keeps_tokens_and_renames_parents() -> None:
    tree = DraftTree(
        tokens=np.array([7, 8, 9, 4, 5], np.int32),
        parents=np.array([ROOT, 0, 1, 0, 3], np.int32),
        confidence=np.array([0.9, 0.5, 0.4, 0.3, 0.2], np.float32),
        source=np.array([0, 0, 1, 1, 2], np.int32),
    )
    kept = prune(tree, np.array([True, False, False, True, True]))
    assert kept.tokens.tolist() == [7, 4, 5]
    assert kept.parents.tolist() == [ROOT, 0, 1]
    assert kept.source.tolist() == [0, 1, 2]
    assert len(prune(tree, np.zeros(5, bool))) == 0
    assert prune(tree, np.ones(5, bool)) is tree
