"""`drafthouse bench metrics`: the same rounds with metrics on and off in alternating blocks, and the writing thread's processor time."""

import argparse
import re
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from drafthouse.core.errors import invalid
from drafthouse.launcher import TritonServer
from drafthouse_client import Client, GenerateOptions
from drafthouse_client.local_server import add_options, running
from drafthouse_load import machine
from drafthouse_load.prompts import DomainPrompt, load_prompts
from drafthouse_load.report import write_json
from drafthouse_load.stats import Counters, read_when_idle

SCHEMA = "drafthouse-bench-metrics/1"
WRITER_SECONDS = "drafthouse_metrics_seconds_total"
# One drafter, a fixed depth, nothing adapts: both arms do the same rounds, so that only their times can differ.
FIXED = {"mode": "vanilla", "adaptation": "off", "rehearsal": "off"}
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Cell:
    """A few prompts, served at once, in one block."""

    block: int
    is_on: bool
    place: int  # the number of the first of them
    counters: Counters

    @property
    def round_ms(self) -> float:
        """The mean round, prefill not included."""
        return self.counters.round_wall_ns / max(self.counters.rounds, 1) / 1e6


def add_metrics_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse bench metrics`."""
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    parser.add_argument("--concurrency", type=int, default=1, help="streams at once (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=64, help="per request (default: %(default)s)")
    parser.add_argument("--cycles", type=int, default=2, help="times on off off on (default: %(default)s)")
    add_options(parser)


def run_metrics(args: argparse.Namespace, console: Console) -> int:
    """Measure, write the report, print its one line. Raises the errors of the server and of bad options."""
    for name in ("concurrency", "max_tokens", "cycles"):
        if getattr(args, name) < 1:
            raise invalid(f"--{name.replace('_', '-')}", getattr(args, name), ">= 1")
    prompts = load_prompts()
    with running(args, console) as server, Client(server.grpc_address) as client:
        report = machine.describe(client.server_version())
        cells: list[Cell] = []
        writer_s = 0.0
        for block, is_on in enumerate(track((True, False, False, True) * args.cycles, "blocks", console=console, transient=True)):
            server.load_model("cosine", {"parameters": {**FIXED, "metrics": "on" if is_on else "off"}})
            _ask(client, prompts[:2], args)
            before_s = writer_seconds(server)
            cells += [
                Cell(block, is_on, place, _ask(client, prompts[place : place + args.concurrency], args))
                for place in range(0, len(prompts), args.concurrency)
            ]
            writer_s += writer_seconds(server) - before_s if is_on else 0.0
    settings = {"concurrency": args.concurrency, "max_tokens": args.max_tokens, "cycles": args.cycles, "parameters": FIXED}
    report |= {"schema": SCHEMA, "settings": settings} | figures(cells, writer_s)
    write_json(report, args.json)
    console.print(summary(report))
    return 0


def _ask(client: Client, prompts: Sequence[DomainPrompt], args: argparse.Namespace) -> Counters:
    options = GenerateOptions(max_tokens=args.max_tokens, min_tokens=args.max_tokens)
    before = read_when_idle(client).counters
    with ThreadPoolExecutor(args.concurrency) as pool:
        list(pool.map(lambda prompt: client.generate(prompt.prompt, options), prompts))
    return read_when_idle(client).counters - before


def writer_seconds(server: TritonServer) -> float:
    """Processor time of the writing threads of this server so far; 0 before the first."""
    with urllib.request.urlopen(f"http://{server.config.host}:{server.ports.metrics}/metrics", timeout=10) as response:
        found = re.search(rf"^{WRITER_SECONDS} (\S+)$", response.read().decode(), re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def figures(cells: Sequence[Cell], writer_s: float) -> dict[str, object]:
    """The report's figures.

    The ratio is of mean rounds, paired by prompts: those of a block with the same ones of its neighbour of the other arm. It is the median,
    because what else runs on a machine slows some pairs down by far more than metrics could. Its interval resamples the pairs.
    """
    pairs = _pairs(cells)
    ratios = np.array([on / off for on, off in pairs])
    rng = np.random.default_rng(0)
    medians = np.median(ratios[rng.integers(len(ratios), size=(_RESAMPLES, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5]).tolist()
    on_rounds_s = sum(cell.counters.round_wall_ns for cell in cells if cell.is_on) / 1e9
    return {
        "round_ms_on": float(np.median([on for on, _ in pairs])),
        "round_ms_off": float(np.median([off for _, off in pairs])),
        "round_time_on_over_off": {"value": float(np.median(ratios)), "ci95": [low, high], "pairs": len(pairs)},
        "writer_processor_share": writer_s / on_rounds_s,
        "rounds": {"on": sum(c.counters.rounds for c in cells if c.is_on), "off": sum(c.counters.rounds for c in cells if not c.is_on)},
    }


def _pairs(cells: Sequence[Cell]) -> list[tuple[float, float]]:
    """(on, off) round times of the same prompts in neighbouring blocks."""
    found = {(cell.block // 2, cell.place, cell.is_on): cell.round_ms for cell in cells}
    return [(round_ms, found[pair, place, False]) for (pair, place, is_on), round_ms in found.items() if is_on]


def summary(report: dict[str, object]) -> str:
    """The report in a line."""
    ratio, share = report["round_time_on_over_off"], report["writer_processor_share"]
    assert isinstance(ratio, dict)
    low, high = ratio["ci95"]
    times = f"a round takes {ratio['value']:.4f} times as long with metrics as without (95 % {low:.4f} to {high:.4f})"
    return f"{times}; the thread that writes them is busy for {share:.2%} of the rounds' time"
