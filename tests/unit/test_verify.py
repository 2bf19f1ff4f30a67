"""Walking a draft tree along the target's choices."""

import numpy as np
import pytest

from drafthouse.core.tree import DraftTree
from drafthouse.pipeline.verify import target_tokens, walk


def tree(tokens: list[int], parents: list[int]) -> DraftTree:
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32))


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


# A trunk 5 6 7 with branches: 8 beside 5, 9 beside 6, and 4 below the branch 8.
TREE = tree([5, 6, 7, 8, 9, 4], [-1, 0, 1, -1, 0, 3])


@pytest.mark.parametrize(
    ("draft", "sampled", "accepted", "bonus"),
    [
        (tree([], []), [3], (), 3),
        (tree([5], [-1]), [5, 6], (0,), 6),
        (tree([5], [-1]), [6, 7], (), 6),
        (TREE, [5, 6, 7, 1, 0, 0, 0], (0, 1, 2), 1),
        (TREE, [5, 6, 2, 1, 0, 0, 0], (0, 1), 2),
        (TREE, [5, 9, 2, 1, 0, 3, 0], (0, 4), 3),
        (TREE, [8, 0, 0, 0, 4, 0, 2], (3, 5), 2),
        (TREE, [1, 6, 7, 1, 4, 0, 0], (), 1),
        # The right token below the wrong parent is not a continuation.
        (TREE, [8, 0, 0, 0, 6, 0, 0], (3,), 6),
    ],
)
def test_walk_follows_the_sampled_children(draft: DraftTree, sampled: list[int], accepted: tuple[int, ...], bonus: int) -> None:
    path = walk(draft, i32(*sampled))
    assert path.accepted == accepted
    assert path.bonus == bonus
    assert path.outputs == (0, *(node + 1 for node in accepted))
    emitted = [sampled[output] for output in path.outputs]
    assert emitted == [*(int(draft.tokens[node]) for node in accepted), bonus]


@pytest.mark.parametrize(
    ("nodes", "choices", "expected"),
    [
        ([], {-1: 3}, []),
        ([0, 1, 2], {-1: 1}, [1, -1, -1]),
        ([0, 1, 2], {-1: 5, 0: 2}, [5, 2, -1]),
        ([0, 1, 2], {-1: 5, 0: 6, 1: 7, 2: 1}, [5, 6, 7]),
        ([0, 1, 4], {-1: 5, 0: 9, 4: 3}, [5, 9, 9]),
        ([3, 5, 1], {-1: 8, 3: 4, 5: 2}, [8, 4, -1]),
    ],
)
def test_router_hears_what_the_target_chose_wherever_the_walk_got(nodes: list[int], choices: dict[int, int], expected: list[int]) -> None:
    assert target_tokens(i32(*nodes), TREE.parents, choices).tolist() == expected
