"""`bench ablate`: arms, switching, the best fixed k, figures with intervals, the report, its table and its chart."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from drafthouse.core.errors import ClientError, ServerError
from drafthouse.pipeline.config import PipelineConfig
from drafthouse_client import Client
from drafthouse_load.ablate.arms import ARMS, SWITCHES, ArmSwitch, arms_named, base_parameters
from drafthouse_load.ablate.command import show
from drafthouse_load.ablate.figures import Sample, measured_sample, ratio, row
from drafthouse_load.ablate.measure import AblateSettings, Block, ServerBench, Sweep, choose, measure_blocks, run_sweeps
from drafthouse_load.ablate.options import load_ablate_prompts
from drafthouse_load.ablate.replayed import ReplayBench, hop_points, pipeline_config, replay_arms
from drafthouse_load.ablate.report import Measured, Replayed, ablate_report
from drafthouse_load.ablate.show import write_ablate_plot
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.records import RequestRecord
from drafthouse_load.replay.models import ReplayModels, read_parameters
from drafthouse_load.stats import Counters
from fakes.bench_server import DRAFT_NS, VERIFY_NS, FakeBenchServer
from fakes.replay_repository import PROMPTS, build_replay_repository, made_up_profile
from fakes.triton_grpc import FakeTriton, serving

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
FEW = arms_named(("target_only", "vanilla", "cosine"))
SIX = {"tokens_per_s", "latency_ms_mean", "latency_ms_p95", "accepted_len_mean", "verify_idle_share", "draft_idle_share"}


def block(arm: str, durations_s: list[float], *, wall_s: float, counters: Counters | None = None, concurrency: int = 1) -> Block:
    requests = tuple(RequestRecord("code", at, 0.1, duration, 10, 1, (1,) * 10) for at, duration in enumerate(durations_s))
    return Block(arm, concurrency, wall_s, requests, counters or Counters())


def sample(arm: str, latency_ms: list[float], tokens_per_s: float) -> Sample:
    return Sample(arm, 1, {}, tokens_per_s, float(np.mean(latency_ms)), np.array(latency_ms), np.full(len(latency_ms), 10.0))


def test_the_arms_are_those_of_the_comparison() -> None:
    assert [arm.name for arm in ARMS][:5] == ["target_only", "vanilla", "specinfer", "pipeline_only", "cosine"]
    assert {arm.without for arm in ARMS if arm.without} == set(SWITCHES)
    assert [arm.name for arm in ARMS if arm.has_fixed_k] == ["vanilla", "specinfer", "pipeline_only", "cosine_without_adaptation"]


def test_every_arm_is_a_valid_configuration_and_undoes_the_one_before() -> None:
    configured = read_parameters(TEMPLATES / "cosine" / "config.pbtxt")
    base = base_parameters(configured)
    assert set(base) == {"mode", *SWITCHES, "num_draft_tokens"}
    running: dict[str, str] = {}
    for arm in (*ARMS, *reversed(ARMS)):
        running |= arm.parameters(base, 3 if arm.has_fixed_k else None)  # what overrides that add up come to
        config = pipeline_config(configured, running)
        assert config == pipeline_config(configured, arm.parameters(base, 3 if arm.has_fixed_k else None))
        assert config.mode == arm.mode
        assert {name for name in SWITCHES if getattr(config, name) == "off"} == ({arm.without} if arm.without else set())
        assert config.num_draft_tokens == (3 if arm.has_fixed_k else PipelineConfig().num_draft_tokens)


def test_arms_are_chosen_by_name() -> None:
    assert [arm.name for arm in arms_named(("cosine", "vanilla"))] == ["vanilla", "cosine"]
    with pytest.raises(ClientError, match="field=--modes value='fastest'"):
        arms_named(("fastest",))


def test_blocks_run_forwards_and_backwards_at_every_concurrency() -> None:
    settings = AblateSettings(FEW, (1, 4), cycles=2)
    names = [arm.name for arm in settings.order()]
    assert names == ["target_only", "vanilla", "cosine", "cosine", "vanilla", "target_only"] * 2
    assert settings.num_blocks == 24


def test_a_switch_loads_only_cosine_and_anew_for_every_block() -> None:
    fake = FakeBenchServer(mode="cosine")
    base = base_parameters({"mode": "cosine"})
    with serving(FakeTriton(fake.script)) as url, Client(url) as client:
        switch = ArmSwitch(fake, client, base)
        vanilla, no_routing = arms_named(("vanilla",))[0], arms_named(("cosine_without_routing",))[0]
        for arm, k in ((vanilla, 3), (vanilla, 3), (vanilla, 4), (no_routing, None)):
            switch.to(arm, k)
    assert fake.loads == [
        ("cosine", {"parameters": base | {"mode": "vanilla", "num_draft_tokens": "3"}}),
        ("cosine", {"parameters": base | {"mode": "vanilla", "num_draft_tokens": "3"}}),
        ("cosine", {"parameters": base | {"mode": "vanilla", "num_draft_tokens": "4"}}),
        ("cosine", {"parameters": base | {"routing": "off"}}),
    ]


def test_a_server_that_stays_in_its_mode_stops_the_run() -> None:
    fake = FakeBenchServer(mode="cosine", stuck_in_mode=True)
    with serving(FakeTriton(fake.script)) as url, Client(url) as client, pytest.raises(ServerError, match="field=mode"):
        ArmSwitch(fake, client, base_parameters({})).to(FEW[0], None)


def test_the_best_fixed_k_is_the_fastest_and_the_smaller_of_equals() -> None:
    sweeps = [Sweep("vanilla", 1, {1: 5.0, 2: 9.0, 3: 9.0}), Sweep("vanilla", 8, {1: 7.0, 2: 6.0, 3: 5.0})]
    assert choose(sweeps) == {("vanilla", 1): 2, ("vanilla", 8): 1}


def test_figures_of_a_measured_arm() -> None:
    counters = Counters(
        rounds=4,
        verified_rows=8,
        emitted_tokens=20,
        drafted=24,
        accepted=12,
        draft_session_ns=100_000_000,
        draft_wall_ns=150_000_000,
        verify_session_ns=1_000_000_000,
        verify_wall_ns=1_100_000_000,
        round_wall_ns=1_300_000_000,
        prefill_session_ns=200_000_000,
    )
    blocks = [block("vanilla", [1.0, 3.0], wall_s=2.0, counters=counters), block("vanilla", [1.0, 1.0], wall_s=2.0)]
    own: Any = row(measured_sample(blocks, 3))
    assert (own["mode"], own["concurrency"], own["num_draft_tokens"]) == ("vanilla", 1, 3)
    assert own["tokens_per_s"] == 10.0
    assert (own["latency_ms_mean"], own["latency_ms_p95"]) == (1500.0, 2700.0)
    assert (own["accepted_len_mean"], own["acceptance_rate"], own["drafted_per_verification"]) == (2.5, 0.5, 3.0)
    assert (own["verify_idle_share"], own["draft_idle_share"]) == (pytest.approx(0.7), pytest.approx(0.975))
    assert own["tokens_per_s_by_block"] == [10.0, 10.0]
    assert own["latency_ms_mean_ci95"][0] <= own["latency_ms_mean"] <= own["latency_ms_mean_ci95"][1]
    assert own["round_ms"]["verify"] == 250.0
    assert own["latency_ms_mean_by_domain"] == {"code": 1500.0}


def test_a_ratio_is_paired_over_prompts() -> None:
    slow = [100.0, 400.0, 50.0, 900.0, 250.0, 10.0]
    steady: Any = ratio(sample("cosine", [value / 2 for value in slow], 20.0), sample("vanilla", slow, 10.0))
    assert (steady["mode"], steady["throughput"], steady["latency_mean"]) == ("vanilla", 2.0, 0.5)
    assert steady["throughput_ci95"] == [2.0, 2.0], "every prompt is twice as fast: nothing is left to chance"
    assert steady["latency_mean_ci95"] == [0.5, 0.5]
    mixed: Any = ratio(sample("cosine", [50.0, 390.0, 20.0, 500.0, 240.0, 9.0], 14.0), sample("vanilla", slow, 10.0))
    assert mixed["throughput_ci95"][0] < mixed["throughput"] < mixed["throughput_ci95"][1]


def test_where_a_sequential_rounds_time_went() -> None:
    counters = Counters(
        rounds=10,
        verified_rows=40,
        drafted=120,
        draft_session_ns=10_000_000,
        draft_wall_ns=50_000_000,
        verify_session_ns=100_000_000,
        verify_wall_ns=130_000_000,
        round_wall_ns=190_000_000,
    )
    (point,) = hop_points([block("vanilla", [1.0], wall_s=1.0, counters=counters), block("cosine", [1.0], wall_s=1.0, counters=counters)])
    assert (point.rows, point.drafted) == (4.0, 3.0)
    assert (point.verify_other_ms, point.draft_other_ms, point.pipeline_ms) == pytest.approx((3.0, 4.0, 1.0))
    assert hop_points([block("target_only", [1.0], wall_s=1.0, counters=Counters(rounds=3, verified_rows=3))]) == []


def run_on_fake(settings: AblateSettings, prompts: list[DomainPrompt]) -> Measured:
    fake = FakeBenchServer()
    with serving(FakeTriton(fake.script)) as url, Client(url) as client:
        bench = ServerBench(fake, client, prompts, base_parameters({}))
        heard: list[str] = []
        sweeps = run_sweeps(bench, settings, heard.append)
        blocks = measure_blocks(bench, settings, choose(sweeps), heard.append)
    assert len(heard) == len(sweeps) + len(blocks)
    return Measured(blocks, sweeps)


@pytest.fixture(scope="module")
def prompts() -> list[DomainPrompt]:
    return [DomainPrompt("code" if at % 2 else "mixed", text) for at, text in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def report(prompts: list[DomainPrompt], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measured on a scripted server, replayed on random models: everything but the figures' meaning is real."""
    settings = AblateSettings(FEW, (1, 2), max_tokens=8)
    models = ReplayModels(build_replay_repository(tmp_path_factory.mktemp("ablate")))
    bench = ReplayBench(models, made_up_profile(), prompts, settings.max_tokens, base_parameters(models.parameters))
    heard: list[str] = []
    sweeps = run_sweeps(bench, settings, heard.append)
    replayed = Replayed(replay_arms(bench, settings, choose(sweeps), heard.append), sweeps, made_up_profile())
    return ablate_report(settings, prompts, run_on_fake(settings, prompts), replayed)


def test_the_report_has_a_row_per_mode_and_concurrency_in_both_halves(report: dict[str, Any]) -> None:
    expected = [(arm.name, level) for level in (1, 2) for arm in FEW]
    for rows in (report["results"], report["replay"]["results"]):
        assert [(own["mode"], own["concurrency"]) for own in rows] == expected
        assert all(set(own) >= SIX for own in rows)
    for own, replayed in zip(report["results"], report["replay"]["results"], strict=True):
        assert own["replay"] == {name: replayed[name] for name in SIX}
        assert set(own["latency_ms_mean_by_domain"]) == set(replayed["latency_ms_mean_by_domain"]) == {"code", "mixed"}
    assert json.loads(json.dumps(report)) == report


def test_the_report_says_what_was_compared_and_how(report: dict[str, Any]) -> None:
    assert report["schema"] == "drafthouse-bench-ablate/1"
    assert report["settings"]["domains"] == {"mixed": 2, "code": 2}
    assert report["settings"]["blocks"] == ["target_only", "vanilla", "cosine", "cosine", "vanilla", "target_only"]
    assert report["prompts_with_other_tokens_than_target_only"] == {"target_only": [], "vanilla": [], "cosine": []}
    for half in (report, report["replay"]):
        sweeps = half["fixed_k"]["sweeps"]
        assert [(own["mode"], own["concurrency"]) for own in sweeps] == [("vanilla", 1), ("vanilla", 2)]
        for sweep in sweeps:
            assert list(sweep["tokens_per_s"]) == [str(k) for k in range(1, 9)]
            assert sweep["tokens_per_s"][str(sweep["chosen"])] == max(sweep["tokens_per_s"].values())
            (own,) = (r for r in half["results"] if (r["mode"], r["concurrency"]) == (sweep["mode"], sweep["concurrency"]))
            assert own["num_draft_tokens"] == sweep["chosen"]
        assert [(own["mode"], own["concurrency"]) for own in half["ratios"]] == [
            ("target_only", 1), ("vanilla", 1), ("target_only", 2), ("vanilla", 2)
        ]  # fmt: skip
    assert report["replay"]["profile"] == made_up_profile().to_json()


def test_measured_figures_come_from_the_servers_counters(report: dict[str, Any]) -> None:
    by_mode = {own["mode"]: own for own in report["results"] if own["concurrency"] == 1}
    assert [by_mode[arm.name]["accepted_len_mean"] for arm in FEW] == [1.0, 2.0, 4.0]
    assert by_mode["cosine"]["round_ms"]["verify"] == VERIFY_NS / 1e6
    assert by_mode["cosine"]["round_ms"]["draft"] == DRAFT_NS / 1e6
    assert by_mode["target_only"]["draft_idle_share"] == 1.0
    assert by_mode["cosine"]["requests"] == 2 * len(PROMPTS), "two blocks, warm-up not counted"


def test_without_a_measured_half_the_rows_are_the_replays(report: dict[str, Any], prompts: list[DomainPrompt]) -> None:
    replayed = Replayed([sample_with_figures("cosine")], (), made_up_profile())
    alone: Any = ablate_report(AblateSettings(FEW), prompts, Measured(), replayed)
    assert alone["results"] == [{"mode": "cosine", "concurrency": 1, "replay": dict.fromkeys(SIX, 1.0)}]
    assert alone["prompts_with_other_tokens_than_target_only"] == {}
    measured_only: Any = ablate_report(AblateSettings(FEW), prompts, Measured(), None)
    assert "replay" not in measured_only


def sample_with_figures(arm: str) -> Sample:
    figures: Mapping[str, object] = dict.fromkeys(SIX, 1.0) | {"num_draft_tokens": None}
    return Sample(arm, 1, figures, 1.0, 1.0, np.array([1.0, 2.0]), np.array([3.0, 3.0]))


def test_the_table_is_readable(report: dict[str, Any]) -> None:
    shown = io.StringIO()
    head = {"hardware": {"cores": 2}}
    show(head | report, AblateSettings(FEW, (1, 2)), Console(file=shown, width=120))
    text = shown.getvalue()
    assert text.count("target_only") == 4
    assert "measured on 2 cores, 1 at once" in text
    assert "replayed, a core per stage, 2 at once" in text


def test_the_chart_is_written(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "chart.png"
    write_ablate_plot({"measured": report["results"], "replayed": report["replay"]["results"], "nothing": []}, file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_shipped_prompts_are_sixty_of_which_a_third_mix_fields() -> None:
    shipped = load_ablate_prompts(None)
    counts = {domain: sum(prompt.domain == domain for prompt in shipped) for domain in ("code", "math", "drama", "docs", "mixed")}
    assert counts == {"code": 10, "math": 10, "drama": 10, "docs": 10, "mixed": 20}
    assert len({prompt.prompt for prompt in shipped}) == len(shipped) == 60
    assert all(shipped[at].domain == "mixed" for at in range(2, 60, 3)), "any beginning of the set is a fair sample"
