"""`drafthouse bench metrics`: what is made of the blocks."""

from dataclasses import replace

import pytest

from drafthouse_load.metrics_cost import Cell, figures, summary
from drafthouse_load.stats import Counters

MS = 1_000_000


def cells(on_ms: float, off_ms: float) -> list[Cell]:
    """Two prompts in on off off on, on a machine that becomes slower from pair to pair."""
    return [
        Cell(block, is_on, place, Counters(rounds=10, round_wall_ns=int(10 * MS * slow * (on_ms if is_on else off_ms))))
        for block, is_on in enumerate((True, False, False, True))
        for place, slow in ((0, 1 + block // 2), (1, 2 + block // 2))
    ]


def test_drift_cancels_out_of_the_ratio() -> None:
    report = figures(cells(20.2, 20.0), writer_s=0.004)
    ratio = report["round_time_on_over_off"]
    assert isinstance(ratio, dict)
    assert ratio == {"value": pytest.approx(1.01), "ci95": [pytest.approx(1.01)] * 2, "pairs": 4}
    assert report["rounds"] == {"on": 40, "off": 40}


def test_one_pair_that_was_disturbed_does_not_count() -> None:
    disturbed = [
        cell if (cell.block, cell.place) != (1, 0) else replace(cell, counters=Counters(rounds=10, round_wall_ns=900 * MS))
        for cell in cells(20.2, 20.0)
    ]
    ratio = figures(disturbed, writer_s=0.0)["round_time_on_over_off"]
    assert isinstance(ratio, dict)
    assert ratio["value"] == pytest.approx(1.01)


def test_the_writers_share_is_of_the_rounds_with_metrics() -> None:
    report = figures(cells(20.0, 5.0), writer_s=0.016)
    assert report["writer_processor_share"] == pytest.approx(0.016 / (10 * 0.020 * (1 + 2 + 2 + 3)))
    assert summary(report).startswith("a round takes 4.0000 times as long with metrics as without (95 % 4.0000 to 4.0000)")
    assert summary(report).endswith("busy for 1.00% of the rounds' time")
