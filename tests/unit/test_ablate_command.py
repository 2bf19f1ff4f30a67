"""`drafthouse bench ablate` as a command: options, both halves from start to end, what is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drafthouse_load.bench import main
from fakes.bench_server import FakeBenchServer
from fakes.replay_repository import PROMPTS, build_replay_repository, made_up_profile
from fakes.triton_grpc import FakeTriton, serving

SIX = {"tokens_per_s", "latency_ms_mean", "latency_ms_p95", "accepted_len_mean", "verify_idle_share", "draft_idle_share"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--cycles", "0"], "--cycles"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--concurrency", "1,x"], "--concurrency"),
        (["--concurrency", "0"], "--concurrency"),
        (["--modes", "cosine,fastest"], "--modes"),
        (["--prompts", "absent.jsonl"], "--prompts"),
        (["--profile", "absent.json"], "--profile"),
        (["--profile", "absent.json", "--no-replay"], "--profile"),
    ],
)
def test_bad_options_are_refused_by_name_before_a_server_starts(
    options: list[str], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["ablate", "--json", str(report), "--no-plot", *options]) == 1
    assert capsys.readouterr().err.startswith(f"INVALID_ARG field={field}")
    assert not report.exists()


def test_a_chart_needs_matplotlib_or_is_declined(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("drafthouse_load.report.find_spec", lambda name: None)
    assert main(["ablate", "--json", "report.json"]) == 1
    assert capsys.readouterr().err.startswith("UNSUPPORTED field=--plot")


def test_one_half_or_the_other_can_be_left_out_but_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ablate", "--json", "report.json", "--replay-only", "--no-replay"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_replay_repository(tmp_path_factory.mktemp("command"))


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"domain": "mixed", "prompt": text}) + "\n" for text in PROMPTS))
    return file


def test_the_command_replays_from_a_profile_without_a_server(repository: Path, prompt_file: Path, tmp_path: Path) -> None:
    profile, report = tmp_path / "profile.json", tmp_path / "report.json"
    profile.write_text(json.dumps(made_up_profile().to_json()))
    options = ["--repository", str(repository), "--prompts", str(prompt_file), "--max-tokens", "6", "--concurrency", "2", "--no-plot"]
    names = "cosine,cosine_without_adaptation"
    assert main(["ablate", "--json", str(report), "--replay-only", "--profile", str(profile), "--modes", names, *options]) == 0
    written = json.loads(report.read_text(encoding="utf-8"))
    assert [own["mode"] for own in written["results"]] == names.split(",")
    assert all(set(own["replay"]) == SIX for own in written["results"])
    assert written["replay"]["results"][1]["num_draft_tokens"] in range(1, 9)
    assert written["hardware"]["cores"] >= 1


def test_the_command_measures_records_and_replays(
    repository: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but Triton: the server is scripted, the engines that are recorded are real ones."""
    fake = FakeBenchServer()

    @contextmanager
    def scripted(args: object, console: object) -> Iterator[FakeBenchServer]:
        with serving(FakeTriton(fake.script)) as fake.grpc_address:
            yield fake

    monkeypatch.setattr("drafthouse_load.ablate.command.running", scripted)
    options = ["--repository", str(repository), "--prompts", str(prompt_file), "--max-tokens", "6", "--concurrency", "1", "--no-plot"]
    report = tmp_path / "report.json"
    assert main(["ablate", "--json", str(report), "--modes", "target_only,vanilla", *options]) == 0
    written = json.loads(report.read_text(encoding="utf-8"))
    assert {"mode", "concurrency", "replay"} | SIX <= set(written["results"][0])
    assert set(written["replay"]["profile"]["engines"]) == {"target", "twin", "stranger"}
    assert written["replay"]["profile"]["hops"]["target"]["call_ms"] >= 0
    assert {name for name, _ in fake.loads} == {"cosine"}

    fake.loads.clear()
    assert main(["ablate", "--json", str(report), "--modes", "cosine", "--replay-only", *options]) == 0
    assert {override["parameters"]["mode"] for _, override in fake.loads} == {"target_only", "vanilla"}, (
        "what messages cost is still measured"
    )
    assert [own["mode"] for own in json.loads(report.read_text(encoding="utf-8"))["results"]] == ["cosine"]


def test_the_other_benchmarks_need_no_engine() -> None:
    code = "import sys; import drafthouse_load.bench as bench; bench.parser(); sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
