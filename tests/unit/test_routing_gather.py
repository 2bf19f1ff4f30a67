"""Few different drafters in a batch, none of them worse than the best by more than noise."""

import numpy as np
import pytest

from drafthouse.routing.gather import AS_GOOD, gather


def rows(*scores: list[float]) -> np.ndarray:
    return np.array(scores, np.float32)


def test_one_drafter_takes_all_for_whom_it_is_as_good_as_the_best() -> None:
    assert gather(rows([0.80, 0.79, 0.3], [0.3, 0.70, 0.71], [0.2, 0.9, 0.1])).tolist() == [1, 1, 1]


def test_a_clearly_better_expert_keeps_its_request() -> None:
    assert gather(rows([0.9, 0.7], [0.5, 0.7], [0.5, 0.7])).tolist() == [0, 1, 1]


def test_who_may_not_work_for_a_request_is_not_chosen() -> None:
    assert gather(rows([0.0, 0.7, 0.69], [0.8, 0.0, 0.0], [0.8, 0.0, 0.79])).tolist()[1:] == [0, 0]
    assert gather(rows([0.0, 0.0, 0.01])).tolist() == [2]
    assert gather(rows([0.0, -1.0], [-0.2, -0.1])).tolist() == [0, 1]


def test_of_equals_the_better_one_then_the_first() -> None:
    assert gather(rows([0.80, 0.801])).tolist() == [1]
    assert gather(rows([0.8, 0.8])).tolist() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_gets_a_worse_drafter_than_promised_and_single_rows_get_the_best(seed: int) -> None:
    scores = np.random.default_rng(seed).uniform(0.5, 0.9, (12, 5)).astype(np.float32)
    chosen = gather(scores)
    assert (scores[np.arange(12), chosen] >= AS_GOOD * scores.max(axis=1)).all()
    assert len(set(chosen.tolist())) <= len(set(scores.argmax(axis=1).tolist()))
