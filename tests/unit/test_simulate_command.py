"""`drafthouse simulate`: options, report and chart."""

import json
from pathlib import Path

import pytest

from drafthouse_client.cli import main
from drafthouse_load.replay.costs import EngineCosts, HopCost, HopCosts, StageProfile

TRACE = Path(__file__).parents[1] / "data" / "made_up_trace.csv"
LATENCIES = {"latency_mean", "latency_p50", "latency_p95", "latency_p99", "ttft_mean", "slowdown_p99", "makespan"}
ENTRIES = LATENCIES | {"preemptions", "evictions", "recomputed_tokens", "estimation_error", "completed"}
ENTRIES |= {"estimation_error_at_arrival", "estimation_covered_share"}


def test_a_report_has_a_row_per_policy_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    args = ["--trace", str(TRACE), "--requests", "300", "--seed", "3", "--load", "0.9", "--length-error", "0.5", "--json", str(file)]
    assert main(["simulate", *args]) == 0
    report = json.loads(file.read_text())
    rows = {row["name"]: row for row in report["policies"]}
    assert {"fcfs", "sjf", "las", "mlfq", "srpt-estimated", "oracle"} <= rows.keys()
    assert all(row.keys() >= ENTRIES and row["completed"] == 300 for row in rows.values())
    assert report["workload"]["offered_load"] == pytest.approx(0.9)
    assert report["settings"]["starvation_services"] > 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "fcfs" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        main(["simulate", "--requests", "200", "--policies", "las", "--json", str(tmp_path / name), "--no-plot"])
        (row,) = json.loads((tmp_path / name).read_text())["policies"]
        reports.append({key: value for key, value in row.items() if key != "cpu_s"})
    assert reports[0] == reports[1]


def test_a_sweep_reports_every_load(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    args = [
        "--requests",
        "150",
        "--mean-length",
        "16",
        "--policies",
        "fcfs,oracle",
        "--batch",
        "4",
        "--slots",
        "8",
        "--sweep",
        "--json",
        str(file),
    ]
    assert main(["simulate", *args]) == 0
    loads = json.loads(file.read_text())["loads"]
    assert [entry["load"] for entry in loads] == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    means = [entry["policies"][0]["latency_mean"] for entry in loads]
    assert means[0] < means[-1]


def test_recorded_costs_are_charged_in_ms(tmp_path: Path) -> None:
    engine = EngineCosts(2, {(1, 1): 2.0, (1, 64): 66.0}, 0.0, 0.0, 0.0, 0.0)
    hops = HopCosts(*[HopCost(0.5)] * 6)
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(StageProfile({"target": engine, "code": engine}, hops, "by hand").to_json()))
    file = tmp_path / "report.json"
    args = ["--requests", "150", "--policies", "fcfs", "--costs", str(profile), "--drafter", "code", "--json", str(file), "--no-plot"]
    assert main(["simulate", *args]) == 0
    report = json.loads(file.read_text())
    assert (report["unit"], report["costs"]["model"]) == ("ms", "profile")


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--batch", "65"], "--batch"),
        (["--load", "0"], "--load"),
        (["--load", "nan"], "--load"),
        (["--requests", "5"], "--requests"),
        (["--slots", "2", "--batch", "4"], "--slots"),
        (["--policies", "fcfs,fastest"], "--policies"),
        (["--arrivals", "trace"], "--arrivals"),
        (["--trace", "nowhere.csv"], "--trace"),
        (["--costs", "nowhere.json"], "--profile"),
        (["--length-error", "-1"], "--length-error"),
    ],
)
def test_bad_options_are_named(args: list[str], field: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *args]) == 1
    assert f"field={field} " in capsys.readouterr().err


def test_theory_reports_whether_it_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafthouse_load.simulate.theory_command.THEORY_REQUESTS", 2000)
    file = tmp_path / "theory.json"
    status = main(["simulate", "--theory", "--json", str(file)])
    rows = json.loads(file.read_text())["theory"]
    assert [(row["sizes"], row["name"]) for row in rows] == [
        (sizes, name) for sizes in ("exponential", "bounded-pareto") for name in ("fcfs", "las", "srpt")
    ]
    assert status == (0 if all(row["agrees"] for row in rows) else 1)
