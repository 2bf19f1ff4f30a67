"""`drafthouse bench decide`: what is timed, and the report."""

import json
from pathlib import Path

import pytest

from drafthouse.core.errors import ClientError
from drafthouse_load.bench import main, parser
from drafthouse_load.decide.command import read_settings
from drafthouse_load.decide.measure import DecideSettings, measure

FIGURES = {"mean_us", "p50_us", "p99_us", "max_us", "wall_mean_us", "arrival_mean_us"}


def test_every_policy_is_timed_at_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decide.json"
    assert main(["decide", "--json", str(file), "--sizes", "40,10", "--decisions", "25", "--batch", "4"]) == 0
    report = json.loads(file.read_text())
    assert [(row["policy"], row["queued"]) for row in report["decisions"]] == [
        (name, size) for size in (10, 40) for name in report["settings"]["policies"]
    ]
    assert {"fcfs", "sjf", "las", "mlfq", "srpt-limited", "laps-sd"} <= set(report["settings"]["policies"])
    for row in report["decisions"]:
        assert row.keys() == FIGURES | {"policy", "queued"}
        assert 0 < row["p50_us"] <= row["p99_us"] <= row["max_us"]
        assert row["wall_mean_us"] > 0
    assert report["settings"]["starvation_limit_ms"] > 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "laps-sd" in capsys.readouterr().out


def test_policies_take_turns_at_a_size() -> None:
    told = list[tuple[str, int]]()
    costs = measure(DecideSettings(("fcfs", "las"), (5, 20), batch=2, decisions=3), lambda name, size: told.append((name, size)))
    assert told == [(cost.policy, cost.queued) for cost in costs] == [("fcfs", 5), ("las", 5), ("fcfs", 20), ("las", 20)]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--policies", "fcfs,best", "INVALID_ARG field=--policies value='fcfs,best' allowed=names of fcfs, laps-sd"),
        ("--policies", ",", "INVALID_ARG field=--policies"),
        ("--sizes", "10,none", "INVALID_ARG field=--sizes value='10,none' allowed=numbers from 1 to"),
        ("--sizes", "0", "INVALID_ARG field=--sizes"),
        ("--batch", "0", "INVALID_ARG field=--batch value=0 allowed=>= 1"),
        ("--decisions", "0", "INVALID_ARG field=--decisions"),
        ("--length-predictor", "crystal", "INVALID_ARG field=--length-predictor value='crystal' allowed=one of"),
    ],
)
def test_bad_options_are_named(option: str, value: str, message: str) -> None:
    args = parser().parse_args(["decide", "--json", "out.json", option, value])
    with pytest.raises(ClientError) as caught:
        read_settings(args)
    assert str(caught.value).startswith(message)


def test_a_bad_option_is_told_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decide.json"
    assert main(["decide", "--json", str(file), "--batch", "0"]) == 1
    assert "field=--batch" in capsys.readouterr().err
    assert not file.exists()
