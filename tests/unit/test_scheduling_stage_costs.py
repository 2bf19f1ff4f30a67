"""The cost table of a stage: what was seen answers for itself, a regression for the rest."""

import json

import numpy as np
import pytest

from drafthouse.scheduling.stage_costs import StageCosts, StagePrior, bucket

MS = 1e6
# Measured on the 91 M target (docs: not monotone in the number of tokens), ms by (rows, tokens).
MEASURED = {(1, 2): 15.0, (1, 6): 18.0, (1, 8): 20.0, (8, 2): 19.0, (8, 3): 31.0, (8, 4): 26.0, (8, 6): 41.0, (8, 8): 40.0}


def _filled(times_ms: dict[tuple[int, int], float], repeats: int = 3) -> StageCosts:
    costs = StageCosts()
    for _ in range(repeats):
        for (batch, tokens), time_ms in times_ms.items():
            costs.observe(batch, tokens, time_ms * MS)
    return costs


def test_buckets_are_exact_while_small_and_never_below_the_size() -> None:
    assert [bucket(size) for size in (0, 1, 15, 16, 17, 20, 21, 32, 33, 65)] == [0, 1, 15, 16, 20, 20, 24, 32, 40, 80]
    sizes = [bucket(size) for size in range(1, 600)]
    assert sizes == sorted(sizes)
    assert all(size <= held <= 1.25 * size for size, held in enumerate(sizes, 1))


def test_a_seen_shape_answers_with_its_own_figure() -> None:
    costs = _filled(MEASURED)
    for (batch, tokens), time_ms in MEASURED.items():
        assert costs.predict_ns(batch, tokens) == pytest.approx(time_ms * MS)
        assert costs.num_seen(batch, tokens) == 3
    assert costs.num_observations == 3 * len(MEASURED)
    assert costs.num_seen(8, 5) == 0


def test_an_outlier_does_not_spoil_a_cell() -> None:
    rng = np.random.default_rng(0)
    for position in (0, 1, 5, 40):  # also as the very first observation
        costs = StageCosts()
        for index in range(41):
            costs.observe(4, 5, (200 if index == position else 20 + rng.normal(0, 0.5)) * MS)
        assert costs.predict_ns(4, 5) == pytest.approx(20 * MS, rel=0.04)


def test_a_lasting_change_is_followed() -> None:
    costs = StageCosts()
    for time_ms in [20.0] * 50 + [30.0] * 25:
        costs.observe(2, 5, time_ms * MS)
    assert costs.predict_ns(2, 5) == pytest.approx(30 * MS, rel=0.03)


def test_unseen_shapes_are_predicted_between_and_beyond_seen_ones() -> None:
    def truth(batch: int, tokens: int) -> float:
        return (10 + 0.5 * batch + 0.4 * tokens + 0.35 * batch * tokens) * MS

    costs = StageCosts()
    for batch in (1, 2, 4, 8):
        for tokens in (2, 4, 8):
            costs.observe(batch, tokens, truth(batch, tokens))
    for batch, tokens in [(3, 4), (6, 6), (8, 5), (1, 7), (8, 10), (12, 8), (1, 16)]:
        assert costs.predict_ns(batch, tokens) == pytest.approx(truth(batch, tokens), rel=0.1)


def test_a_guess_between_uneven_neighbours_lies_among_them() -> None:
    costs = _filled({shape: time for shape, time in MEASURED.items() if shape != (8, 3)})
    assert 19 * MS < costs.predict_ns(8, 3) < 30 * MS
    assert 26 * MS < costs.predict_ns(8, 5) < 42 * MS
    assert 15 * MS < costs.predict_ns(1, 4) < 18.5 * MS


def test_an_empty_table_answers_with_the_prior() -> None:
    prior = StagePrior(call_ns=5 * MS, row_ns=1 * MS, token_ns=2 * MS, row_token_ns=0.5 * MS)
    assert StageCosts(prior).predict_ns(4, 3) == pytest.approx((5 + 4 + 6 + 6) * MS)
    with pytest.raises(ValueError, match="positive"):
        StagePrior(call_ns=0.0)


def test_one_cell_corrects_the_scale() -> None:
    costs, before = StageCosts(), StageCosts()
    costs.observe(1, 2, 3 * before.predict_ns(1, 2))
    for shape in [(1, 6), (8, 2), (8, 8)]:
        assert costs.predict_ns(*shape) == pytest.approx(3 * before.predict_ns(*shape), rel=0.01)


def test_predictions_are_positive_whatever_was_seen() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        shapes = [(int(rng.integers(1, 17)), int(rng.integers(0, 17))) for _ in range(6)]
        costs = _filled({shape: float(rng.uniform(0.1, 100)) for shape in shapes}, 1)
        assert all(0 < costs.predict_ns(batch, tokens) < 1e5 * MS for batch in range(1, 33) for tokens in range(20))


def test_guesses_follow_later_observations() -> None:
    costs = _filled({(1, 2): 10.0, (4, 4): 20.0})
    before = costs.predict_ns(2, 3)
    for _ in range(100):
        costs.observe(1, 2, 20 * MS)
        costs.observe(4, 4, 40 * MS)
    assert costs.predict_ns(2, 3) == pytest.approx(2 * before, rel=0.05)


def test_no_time_is_no_observation() -> None:
    costs = StageCosts()
    costs.observe(1, 2, 0)
    costs.observe(1, 2, -5)
    assert costs.num_observations == 0
    assert costs.table() == []


def test_a_table_travels_as_json() -> None:
    costs = _filled(MEASURED)
    copy = StageCosts.from_table(json.loads(json.dumps(costs.table())))
    assert copy.table() == costs.table()
    assert copy.num_observations == costs.num_observations
    for shape in [(8, 3), (3, 5), (16, 16)]:
        assert copy.predict_ns(*shape) == pytest.approx(costs.predict_ns(*shape), rel=1e-6)
    copy.observe(8, 3, 400 * MS)  # a recorded cell is as robust as one that was watched
    assert copy.predict_ns(8, 3) == pytest.approx(31 * MS, rel=0.01)


@pytest.mark.parametrize("cell", [[1, 2, 0.0, 3], [1, 2, float("nan"), 3], [1, 2, 5.0, 0]])
def test_a_malformed_table_is_refused(cell: list[float]) -> None:
    with pytest.raises(ValueError, match="cost table"):
        StageCosts.from_table([cell])
