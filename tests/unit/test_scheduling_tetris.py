"""Which draft tokens of a batch are verified: by time, by budget, and evenly."""

import itertools

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from drafthouse.core.tree import ROOT, DraftTree
from drafthouse.pipeline.ahead import reach_of
from drafthouse.scheduling.tetris import DraftCandidate, select_by_budget, select_by_time, select_evenly

MS = 1e6


def _path_probs(parents: NDArray[np.int32], chances: ArrayLike) -> NDArray[np.float64]:
    return reach_of(DraftTree(np.zeros(len(parents), np.int32), parents, np.asarray(chances, np.float32)))


def _random_candidate(rng: np.random.Generator, num_nodes: int, max_uncached: int = 3) -> DraftCandidate:
    parents = np.array([int(rng.integers(ROOT, node)) for node in range(num_nodes)], np.int32)
    return DraftCandidate(_path_probs(parents, rng.uniform(0.2, 1.0, num_nodes)), parents, int(rng.integers(1, max_uncached + 1)))


def _chain(*chances: float, num_uncached: int = 1) -> DraftCandidate:
    parents = np.arange(-1, len(chances) - 1, dtype=np.int32)
    return DraftCandidate(_path_probs(parents, chances), parents, num_uncached)


def _is_tree(mask: NDArray[np.bool_], parents: NDArray[np.int32]) -> bool:
    return all(parent == ROOT or mask[parent] for parent in parents[mask])


def _subtrees(candidate: DraftCandidate) -> list[NDArray[np.bool_]]:
    masks = (np.array(bits, bool) for bits in itertools.product([False, True], repeat=len(candidate.parents)))
    return [mask for mask in masks if _is_tree(mask, candidate.parents)]


def _flat(batch: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.full(len(tokens), 10 * MS + 1 * MS * batch)


def _per_token(batch: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    return 2 * MS * batch + 1 * MS * tokens


@pytest.mark.parametrize("seed", range(8))
def test_the_rate_is_the_best_of_all_selections(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = [_random_candidate(rng, 5) for _ in range(2)]
    uncached = sum(candidate.num_uncached for candidate in candidates)
    times = rng.uniform(1, 3, 20).cumsum() * MS
    times[::3] *= 1.4  # not monotone
    best = 0.0
    for masks in itertools.product(*map(_subtrees, candidates)):
        expected = 2 + sum(candidate.path_probs[mask].sum() for candidate, mask in zip(candidates, masks, strict=True))
        best = max(best, expected / (5 * MS + times[uncached + sum(int(mask.sum()) for mask in masks)]))
    chosen, rate = select_by_time(candidates, lambda _, tokens: times[tokens], 5 * MS)
    assert rate == pytest.approx(best)
    assert rate == pytest.approx(chosen.expected_tokens / (5 * MS + times[chosen.num_tokens]))
    assert chosen.num_tokens == uncached + chosen.num_nodes
    assert all(_is_tree(mask, candidate.parents) for mask, candidate in zip(chosen.masks, candidates, strict=True))


def test_time_skips_slow_totals_and_spends_where_it_pays() -> None:
    times = np.array([0, 20, 20, 22, 60, 60, 26, 90, 90, 90]) * MS
    chosen, _ = select_by_time([_chain(0.9, 0.9, 0.9, 0.9), _chain(0.1, 0.1, 0.1)], lambda _, tokens: times[tokens], 1.0)
    assert chosen.num_tokens == 6
    assert [mask.tolist() for mask in chosen.masks] == [[True] * 4, [False] * 3]


def test_nothing_is_verified_where_tokens_cost_more_than_they_bring() -> None:
    chosen, rate = select_by_time([_chain(0.2, 0.2)], lambda _, tokens: tokens * 10 * MS, 1 * MS)
    assert (chosen.num_nodes, chosen.expected_tokens) == (0, 1.0)
    assert rate == pytest.approx(1 / (11 * MS))


def test_a_longer_overhead_makes_more_tokens_worth_while() -> None:
    candidates = [_chain(0.8, 0.8, 0.8, 0.8, 0.8), _chain(0.6, 0.6, 0.6)]
    sizes = [select_by_time(candidates, _per_token, overhead_ms * MS)[0].num_nodes for overhead_ms in (0, 2, 8, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 8


def test_ties_go_to_fewer_tokens() -> None:
    assert select_by_time([_chain(0.0, 0.0)], _flat, 0.0)[0].num_nodes == 0


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
    assert (chosen.num_nodes, chosen.num_tokens) == (5, 8)


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
    for chosen in (select_by_time([], _flat, 1.0)[0], select_by_budget([], 3), select_evenly([], 3)):
        assert (len(chosen.masks), chosen.num_tokens, chosen.expected_tokens) == (0, 0, 0.0)


def test_requests_without_drafts() -> None:
    for chosen in (select_by_time([_chain(), _chain(num_uncached=3)], _flat, 1.0)[0], select_by_budget([_chain()] * 2, 3)):
        assert (chosen.num_nodes, chosen.expected_tokens) == (0, 2.0)
