"""The `drafthouse` command against real servers: generate, demo, bench."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from drafthouse.launcher import TritonServer, live_runs
from drafthouse_client import Client, GenerateOptions
from drafthouse_load.decode import DecodeSettings, measure
from drafthouse_load.modes import COLLABORATIVE, TARGET_ONLY
from drafthouse_load.prompts import load_prompts
from drafthouse_load.soak import SoakSettings, left_behind, soak
from drafthouse_load.stats import read_when_idle
from e2e.support import free_port_config

QUIET = Console(file=io.StringIO())
COMMAND = [sys.executable, "-m", "drafthouse_client.cli"]


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command as a user's shell runs it, without a terminal."""
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=170, check=False)


def test_generate_prints_the_completion_and_nothing_else(server: TritonServer) -> None:
    done = run("generate", "def add(a, b):", "--url", server.grpc_address, "--max-tokens", "8", "--temperature", "0", "--stats")
    with Client(server.grpc_address) as client:
        text = client.generate("def add(a, b):", GenerateOptions(max_tokens=8, temperature=0.0, exclude_input_in_output=True)).text
    assert done.returncode == 0
    assert done.stdout == text + "\n"
    assert "tokens/s" in done.stderr


def test_generate_reads_a_pipe_and_streams(server: TritonServer) -> None:
    done = run("generate", "--stream", "--url", server.grpc_address, "--max-tokens", "4", "--num-draft-tokens", "0", stdin="ROMEO:\n")
    assert done.returncode == 0
    assert done.stderr == ""


def test_generate_says_in_one_line_what_was_refused(server: TritonServer) -> None:
    done = run("generate", "x", "--url", server.grpc_address, "--temperature", "-1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("INVALID_ARG field=temperature")
    assert done.stderr.count("\n") == 1


def test_a_decode_benchmark_of_two_modes(server: TritonServer) -> None:
    prompts = load_prompts()[:4]
    settings = DecodeSettings(modes=(TARGET_ONLY, COLLABORATIVE), max_tokens=8, warmup_requests=1)
    try:
        with Client(server.grpc_address) as client:
            report = measure(server, client, prompts, settings, read_when_idle(client).precision, QUIET)
    finally:
        server.load_model("cosine")  # as config.pbtxt has it, for the tests that follow
    modes = report["modes"]
    assert isinstance(modes, dict)
    assert set(modes) == {"target_only", "collaborative"}
    assert modes["target_only"]["accepted_len_mean"] == 1.0
    assert modes["collaborative"]["accepted_len_mean"] >= 1.0
    for mode in modes.values():
        assert mode["tokens_per_s"] > 0
        assert mode["round_ms"]["verify"] > 0
        assert mode["round_ms"]["other"] > 0
        assert set(mode["by_domain"]) == {prompt.domain for prompt in prompts}
    assert modes["target_only"]["round_ms"]["draft"] == 0
    assert report["prompts_with_other_tokens_than_target_only"] == {"target_only": [], "collaborative": []}


def test_a_short_soak_leaves_nothing_behind(repository_dir: Path) -> None:
    # Too short for memory to be judged to 5 %: the long soak does that (`drafthouse bench soak`).
    settings = SoakSettings(requests=120, concurrency=8, max_tokens=8, cancel_rate=0.2, max_growth=0.5)
    with TritonServer(free_port_config(repository_dir)) as server:
        process_group = server.pid
        report, violations = soak(server, load_prompts(), settings, QUIET)
    assert violations + left_behind(process_group, server.shared_memory_regions()) == []
    assert report["errors"] == {}
    cancelled, completed = report["cancelled"], report["completed"]
    assert isinstance(cancelled, int)
    assert isinstance(completed, int)
    assert cancelled > 0
    assert cancelled + completed == 120


@pytest.mark.slow
def test_the_demo_shows_the_same_text_off_and_on_and_stops_its_server(repository_dir: Path) -> None:
    done = run("demo", "--model-repository", str(repository_dir), "--max-tokens", "16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical text" in done.stdout
    assert "NO" not in done.stdout.rpartition("speculation off and on")[2]
    (log_file,) = re.findall(r"\(log:\s+(\S+)\)", done.stdout)
    assert Path(log_file) not in {info.log_file for info in live_runs()}


@pytest.mark.slow
def test_the_decode_command_writes_its_report(repository_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"domain": "code", "prompt": "def add(a, b):"}\n', encoding="utf-8")
    report = tmp_path / "report.json"
    arguments = ("--json", str(report), "--prompts", str(prompts), "--max-tokens", "8", "--repository", str(repository_dir))
    done = run("bench", "decode", *arguments)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text(encoding="utf-8"))
    assert set(written["modes"]) == {"target_only", "single_drafter", "collaborative", "target_only_unpadded"}
    assert written["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert "collaborative_over_target_only" in written["ratios"]
