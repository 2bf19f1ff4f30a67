"""Statistics of the decode benchmark: block order, figures, ratios, prompts, switching, report."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from drafthouse.core.errors import ClientError, ServerError
from drafthouse.triton.schema import COSINE
from drafthouse_client import Client
from drafthouse_client.wire import INPUT_TYPES
from drafthouse_load.bench import main
from drafthouse_load.decode import DecodeSettings, measure
from drafthouse_load.machine import cpu_model
from drafthouse_load.modes import ALL_MODES, COLLABORATIVE, SINGLE_DRAFTER, TARGET_ONLY, TARGET_ONLY_UNPADDED, ModeSwitch, block_order
from drafthouse_load.prompts import DomainPrompt, digest, load_prompts, parse_prompts
from drafthouse_load.records import RequestRecord, Segment, differing_prompts, figures, round_times, speed_ratio
from drafthouse_load.report import decode_table, write_json
from drafthouse_load.stats import Counters, parse_stats
from fakes.bench_server import FakeBenchServer
from fakes.triton_grpc import FakeTriton, serving

QUIET = Console(file=io.StringIO())


def request(index: int = 0, duration_s: float = 1.0, tokens: tuple[int, ...] = (1, 2, 3, 4), ttft_s: float = 0.2) -> RequestRecord:
    return RequestRecord("code", index, ttft_s, duration_s, len(tokens), 1, tokens)


def segment(*requests: RequestRecord, mode: str = "target_only", wall_s: float | None = None, counters: Counters | None = None) -> Segment:
    seconds = sum(one.duration_s for one in requests) if wall_s is None else wall_s
    return Segment(mode, 0, "code", seconds, requests, counters or Counters())


def test_blocks_run_forwards_and_backwards() -> None:
    names = [mode.name for mode in block_order((TARGET_ONLY, COLLABORATIVE), cycles=2)]
    assert names == ["target_only", "collaborative", "collaborative", "target_only"] * 2
    places = [np.mean([at for at, mode in enumerate(block_order(ALL_MODES, 1)) if mode is one]) for one in ALL_MODES]
    assert len(set(places)) == 1, "a steady drift must hit every mode alike"


def test_figures_of_a_mode() -> None:
    counters = Counters(
        rounds=4,
        verified_rows=4,
        emitted_tokens=10,
        drafted=20,
        accepted=6,
        draft_session_ns=4_000_000,
        draft_wall_ns=5_000_000,
        verify_session_ns=8_000_000,
        verify_wall_ns=10_000_000,
        round_wall_ns=16_000_000,
    )
    own = figures([segment(request(ttft_s=0.1), request(1, 3.0, ttft_s=0.3), wall_s=4.0, counters=counters)])
    assert own["tokens_per_s"] == 2.0
    assert own["decode_tokens_per_s_per_stream"] == pytest.approx(6 / 3.6, abs=1e-4)
    assert own["ttft_ms_p50"] == pytest.approx(200.0)
    assert (own["accepted_len_mean"], own["acceptance_rate"]) == (2.5, 0.3)
    assert own["round_ms"] == {"draft": 1.0, "verify": 2.0, "other": 1.0, "total": 4.0}
    assert own["other_ms"] == {"draft_call": 0.25, "verify_call": 0.5}
    assert own["other_share"] == 0.25


def test_a_mode_without_rounds_has_no_times() -> None:
    assert round_times(Counters()).total == 0.0
    assert figures([segment(request())])["accepted_len_mean"] == 0.0


def test_speed_ratio_with_interval_over_prompts() -> None:
    fast = [segment(*(request(index, 0.5 + 0.01 * index) for index in range(10)), mode="collaborative")]
    slow = [segment(*(request(index, 1.0 + 0.02 * index) for index in range(10)))]
    ratio: Any = speed_ratio(fast, slow, np.random.default_rng(0))
    assert ratio == {"value": 2.0, "ci95": [2.0, 2.0], "prompts": 10}
    noisy = [segment(*(request(index, 0.5 if index % 2 else 0.4) for index in range(10)), mode="collaborative")]
    spread: Any = speed_ratio(noisy, slow, np.random.default_rng(0))
    assert spread["ci95"][0] < spread["value"] < spread["ci95"][1]


def test_ratio_of_a_single_prompt_has_no_spread() -> None:
    ratio: Any = speed_ratio([segment(request(duration_s=0.5))], [segment(request())], np.random.default_rng(0))
    assert ratio["ci95"] == [ratio["value"]] * 2


def test_prompts_whose_tokens_differ_are_named() -> None:
    runs = [
        segment(request(0), request(1), mode="target_only"),
        segment(request(0), request(1, tokens=(1, 2)), mode="collaborative"),
        segment(request(0), request(1), mode="collaborative"),
    ]
    assert differing_prompts(runs, "target_only") == {"target_only": [], "collaborative": [1]}


def test_counters_subtract_and_add() -> None:
    later, earlier = Counters(rounds=5, accepted=7), Counters(rounds=2, accepted=3)
    assert later - earlier == Counters(rounds=3, accepted=4)
    assert (later - earlier) + earlier == later


def test_slots_held_on_an_idle_server_are_named() -> None:
    assert parse_stats(FakeBenchServer().stats()).leaked_slots == {}
    stats = parse_stats(FakeBenchServer(held_slots=2).stats())
    assert stats.idle
    assert stats.leaked_slots == {"target": 2}


def test_an_engine_that_does_not_answer_is_named() -> None:
    stats = parse_stats(FakeBenchServer(silent_engine="drafter_math").stats())
    assert stats.silent_engines == ("drafter_math",)
    assert "drafter_math" not in stats.slots_total


def test_statistics_that_lack_a_counter_are_refused() -> None:
    raw = FakeBenchServer().stats()
    del raw["counters"]["rounds"]
    with pytest.raises(KeyError, match="rounds"):
        parse_stats(raw)


def test_shipped_prompts_cover_four_domains_evenly() -> None:
    prompts = load_prompts()
    counts = {domain: sum(prompt.domain == domain for prompt in prompts) for domain in ("code", "math", "drama", "docs")}
    assert counts == dict.fromkeys(counts, 8)
    assert len({prompt.prompt for prompt in prompts}) == len(prompts) == 32


@pytest.mark.parametrize(
    "text", ["", "not json", '{"domain": "code"}', '{"domain": "", "prompt": "x"}', '{"domain": 1, "prompt": "x"}', "[1]"]
)
def test_bad_prompt_files_are_refused_by_line(text: str) -> None:
    with pytest.raises(ClientError, match=r"^INVALID_ARG field=--prompts value='p\.jsonl"):
        parse_prompts(text, "p.jsonl")


def test_prompt_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"domain": "code", "prompt": "é", "id": 7}\n\n', encoding="utf-8")
    assert load_prompts(file) == [DomainPrompt("code", "é")]
    assert digest(load_prompts(file)) != digest([DomainPrompt("math", "é")])
    with pytest.raises(ClientError, match="field=--prompts"):
        load_prompts(tmp_path / "absent.jsonl")


def test_a_switch_loads_only_what_changes() -> None:
    fake = FakeBenchServer()
    with serving(FakeTriton(fake.script)) as url, Client(url) as client:
        switch = ModeSwitch(fake, client)
        for mode in (TARGET_ONLY, TARGET_ONLY, TARGET_ONLY_UNPADDED, SINGLE_DRAFTER):
            assert switch.to(mode).mode == mode.reported
    assert fake.loads == [
        ("cosine", {"parameters": {"mode": "target_only"}}),
        ("target", {"parameters": {"min_step_tokens": "1"}}),
        ("cosine", {"parameters": {"mode": "target_only"}}),
        ("target", None),
        ("cosine", {"parameters": {"mode": "vanilla"}}),
    ]


def test_a_server_that_reports_another_mode_stops_the_benchmark() -> None:
    fake = FakeBenchServer(stuck_in_mode=True)
    with serving(FakeTriton(fake.script)) as url, Client(url) as client, pytest.raises(ServerError, match="field=mode"):
        ModeSwitch(fake, client).to(TARGET_ONLY)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_whole_decode_report(concurrency: int, tmp_path: Path) -> None:
    fake = FakeBenchServer()
    prompts = [DomainPrompt("code", "a"), DomainPrompt("math", "b"), DomainPrompt("code", "c")]
    settings = DecodeSettings(modes=(TARGET_ONLY, COLLABORATIVE), max_tokens=8, warmup_requests=1, concurrency=concurrency)
    with serving(FakeTriton(fake.script)) as url, Client(url) as client:
        report: Any = measure(fake, client, prompts, settings, "fp32", QUIET)
    collaborative, target_only = report["modes"]["collaborative"], report["modes"]["target_only"]
    assert (collaborative["accepted_len_mean"], target_only["accepted_len_mean"]) == (4.0, 1.0)
    assert collaborative["round_ms"] == {"draft": 2.0, "verify": 10.0, "other": 2.0, "total": 14.0}
    assert collaborative["requests"] == 6, "two blocks of three prompts, warm-up not counted"
    assert collaborative["rounds"] == 12
    assert list(collaborative["by_domain"]) == ["code", "math"]
    assert collaborative["by_domain"]["math"]["output_tokens"] == 16
    assert len(collaborative["tokens_per_s_by_block"]) == 2
    assert set(report["ratios"]) == {"collaborative_over_target_only"}
    assert report["prompts_with_other_tokens_than_target_only"] == {"target_only": [], "collaborative": []}
    assert report["settings"]["blocks"] == ["target_only", "collaborative", "collaborative", "target_only"]

    write_json(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    shown = io.StringIO()
    Console(file=shown, width=160).print(decode_table(report | {"hardware": {"cpu": "a CPU"}}))
    assert "collaborative" in shown.getvalue()
    assert "4.00" in shown.getvalue()


def test_bad_options_are_refused_before_a_server_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = str(tmp_path / "report.json")
    for wrong, field in ((["--cycles", "0"], "--cycles"), (["--prompts", str(tmp_path / "absent.jsonl")], "--prompts")):
        assert main(["decode", "--json", report, *wrong]) == 1
        assert capsys.readouterr().err.startswith(f"INVALID_ARG field={field}")
    assert main(["soak", "--json", report, "--cancel-rate", "2"]) == 1
    assert "--cancel-rate" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()


def test_a_chart_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("drafthouse_load.report.find_spec", lambda name: None)
    assert main(["decode", "--json", "report.json", "--plot", "chart.png"]) == 1
    assert capsys.readouterr().err.startswith("UNSUPPORTED field=--plot")


def test_the_cpu_is_named() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n") == "Some CPU @ 3 GHz"
    assert cpu_model("processor\t: 0\n") != ""


def test_the_clients_input_types_are_the_servers() -> None:
    declared = {spec.name: spec.dtype.replace("STRING", "BYTES") for spec in COSINE.inputs}
    assert {name: declared.get(name) for name in INPUT_TYPES} == dict(INPUT_TYPES)


def test_segments_of_one_prompt_keep_every_answer() -> None:
    first = request(tokens=(1, 2))
    again = replace(first, output_ids=(9, 9))
    assert differing_prompts([segment(first), segment(again)], "target_only") == {"target_only": [0]}
