"""The soak's criteria, and a short soak of an in-process server."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from drafthouse.launcher import TritonServer
from drafthouse_load.memory import Growth, MemoryLog, MemorySample, growth, name_of_command, process_name, rss_of
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.soak import SoakLog, SoakSettings, left_behind, soak, violations
from drafthouse_load.stats import parse_stats
from fakes.bench_server import FakeBenchServer
from fakes.triton_grpc import FakeTriton, Script, error, serving

QUIET = Console(file=io.StringIO())
IDLE = parse_stats(FakeBenchServer().stats())
FLAT = {"target (pid 1)": Growth((1000, 1049, 1000))}


def samples(*rss: int, total: int = 100) -> list[MemorySample]:
    return [MemorySample(at * total // len(rss), value) for at, value in enumerate(rss)]


def test_growth_ignores_the_first_tenth() -> None:
    seen = growth(samples(1, 100, 100, 101, 102, 103, 104, 104, 104, 104), 100)
    assert seen is not None
    assert seen.tenths_bytes == (100, 100, 101, 102, 103, 104, 104, 104, 104)
    assert seen.fraction == pytest.approx(0.04)


def test_growth_sees_a_peak_that_went_away() -> None:
    seen = growth(samples(1, 100, 100, 100, 150, 100, 100, 100, 100, 100), 100)
    assert seen is not None
    assert seen.fraction == pytest.approx(0.5)


def test_one_odd_reading_is_not_growth() -> None:
    steady = [MemorySample(at, 100) for at in range(100)]
    steady[55] = MemorySample(55, 900)
    seen = growth(steady, 100)
    assert seen is not None
    assert seen.fraction == 0.0


@pytest.mark.parametrize("seen", [[], samples(1), [MemorySample(50, 1), MemorySample(51, 2)]])
def test_too_few_samples_say_nothing(seen: list[MemorySample]) -> None:
    assert growth(seen, 100) is None


def test_a_clean_run_has_no_violations() -> None:
    assert violations(SoakLog(completed=9, cancelled=1), IDLE, FLAT, SoakSettings()) == []


def test_every_violation_is_named() -> None:
    log = SoakLog()
    log.errors["INTERNAL field=target"] += 3
    raw: dict[str, Any] = FakeBenchServer(held_slots=2, silent_engine="drafter_math").stats() | {"running": 1}
    grown = FLAT | {"fusion (pid 2)": Growth((1000, 1051))}
    found = violations(log, parse_stats(raw), grown, SoakSettings())
    assert found == [
        "3 requests failed: INTERNAL field=target",
        "1 requests still run and 0 wait after the last answer",
        "drafter_math does not answer",
        "target still holds 2 slots",
        "fusion (pid 2) grew by 5.1% after the first tenth (allowed 5%)",
    ]
    assert "no process was measured" in violations(SoakLog(), IDLE, {}, SoakSettings())[0]


def test_what_a_stopped_server_left_is_named() -> None:
    own_group = os.getpgid(0)
    found = left_behind(own_group, [Path("/dev/shm/region")])
    assert f"process {os.getpid()} still runs after the stop" in found
    assert found[-1] == "shared-memory region /dev/shm/region is left after the stop"


def test_processes_are_named_by_the_model_they_serve() -> None:
    stub = ["/opt/triton_python_backend_stub", "/repo/model_repository/drafter_code/1/model.py", "prefix"]
    assert name_of_command(stub) == "drafter_code"
    assert name_of_command(["/usr/bin/tritonserver", "--model-repository=/repo"]) == "tritonserver"
    assert name_of_command([""]) == "unknown"
    assert process_name(os.getpid()) != "unknown"


def test_memory_of_this_process_is_read() -> None:
    assert rss_of(os.getpid()) > 1 << 20
    log = MemoryLog(os.getpgid(0))
    for finished in (0, 10, 20):
        log.sample(finished)
    assert any(f"(pid {os.getpid()})" in name for name in log.growths(30))


@dataclass
class RunningServer:
    """The two attributes of `TritonServer` that a soak reads."""

    grpc_address: str
    pid: int


def run(script: Script, settings: SoakSettings) -> tuple[Any, list[str]]:
    with serving(FakeTriton(script)) as url:
        server = cast(TritonServer, RunningServer(url, os.getpgid(0)))
        return soak(server, [DomainPrompt("code", "x")], settings, QUIET)


def test_a_short_soak_accounts_for_every_request() -> None:
    settings = SoakSettings(requests=60, concurrency=4, max_tokens=4, cancel_rate=0.3, max_growth=10.0)
    report, found = run(FakeBenchServer().script, settings)
    assert found == []
    assert report["completed"] + report["cancelled"] == 60
    assert 0 < report["cancelled"] < 30
    assert report["output_tokens"] >= report["completed"]
    assert set(report["latency_ms"]) == {"p50", "p90", "p99"}


def test_a_soak_reports_refused_requests_and_held_slots() -> None:
    server = FakeBenchServer(held_slots=1)

    def script(inputs: dict[str, list[object]]) -> Any:  # noqa: ANN401 - either generator
        return server.script(inputs) if "stats_request" in inputs else iter([error("UNAVAILABLE field=queue value=9 allowed=< 9")])

    report, found = run(script, SoakSettings(requests=20, concurrency=2, cancel_rate=0.0, max_growth=10.0))
    assert report["errors"] == {"UNAVAILABLE field=queue value=9 allowed=< 9": 20}
    assert "target still holds 1 slots" in found
