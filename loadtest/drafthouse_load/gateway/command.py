"""`drafthouse bench gateway`: latency that the gateway adds to gRPC, and many streams at once, in one run."""

import argparse
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drafthouse.core.errors import ErrorCode, ServerError, invalid
from drafthouse.launcher import TritonServer
from drafthouse.launcher.gateway import GatewayConfig, GatewayProcess
from drafthouse.launcher.ports import free_port
from drafthouse_client import Client
from drafthouse_client.client import DEFAULT_MODEL
from drafthouse_client.local_server import add_options, running
from drafthouse_load import machine
from drafthouse_load.gateway.streams import Request, Stream, direct, through_gateway
from drafthouse_load.prompts import DomainPrompt, digest, load_prompts
from drafthouse_load.report import write_json
from drafthouse_load.stats import read_when_idle

SCHEMA = "drafthouse-bench-gateway/1"
_START_S = 60.0
_RESAMPLES = 2000
_ORDER = ("direct", "gateway", "gateway", "direct")


@dataclass(frozen=True)
class GatewaySettings:
    """How much is asked."""

    num_prompts: int = 24
    """Of the latency part; each is asked for twice each way."""
    max_tokens: int = 48
    streams: int = 64
    """At once, in the other part."""
    stream_tokens: int = 32
    seed: int = 0


def add_gateway_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse bench gateway`."""
    default = GatewaySettings()
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    parser.add_argument("--num-prompts", type=int, default=default.num_prompts, help="of the latency part (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="of the latency part (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=default.streams, help="streams at once (default: %(default)s)")
    parser.add_argument("--stream-tokens", type=int, default=default.stream_tokens, help="of each of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the sampled texts (default: %(default)s)")
    parser.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="lines of {domain, prompt} (default: a small set of our own)")
    add_options(parser)
    parser.add_argument("--repository", dest="model_repository", type=Path, metavar="DIR", help="short for --model-repository")


def run_gateway(args: argparse.Namespace, console: Console) -> int:
    """Measure a server and a gateway of our own, write the report. Returns 1 when a stream lost, mixed up or repeated anything."""
    settings = GatewaySettings(args.num_prompts, args.max_tokens, args.streams, args.stream_tokens, args.seed)
    if min(settings.num_prompts, settings.max_tokens, settings.streams, settings.stream_tokens) < 1:
        raise invalid("--num-prompts, --max-tokens, --streams, --stream-tokens", None, ">= 1")
    prompts = load_prompts(args.prompts)
    with running(args, console) as server, gateway_of(server, console) as url, Client(server.grpc_address) as client:
        head = machine.describe(client.server_version())
        read_when_idle(client)  # it rehearses when it is first idle
        report = measure(client, url, prompts, settings, console)
    write_json({"schema": SCHEMA} | head | {"prompts_digest": digest(prompts)} | report, args.json)
    return 0 if report["faulty_streams"] == [] else 1


@contextmanager
def gateway_of(server: TritonServer, console: Console) -> Iterator[str]:
    """A gateway before a running server, on a free port; yields its URL. Errors: ServerError when it does not come up."""
    port = free_port("127.0.0.1")
    process = GatewayProcess(
        GatewayConfig(port=port), server.grpc_address, server.config.model_repository, lambda text: console.print(text, markup=False)
    )
    process.start()
    try:
        deadline_s = time.monotonic() + _START_S
        while not _is_ready(process.url):
            if process.pid is None or time.monotonic() > deadline_s:
                raise ServerError(ErrorCode.UNAVAILABLE, "gateway", "does not come up", "a gateway that starts")
            time.sleep(0.1)
        yield process.url
    finally:
        process.stop()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def measure(client: Client, url: str, prompts: Sequence[DomainPrompt], settings: GatewaySettings, console: Console) -> dict[str, Any]:
    """Both parts against a running server and its gateway; the figures of the report."""
    latency, faults = _latency(client, url, prompts, settings, console)
    crowd, more_faults = _crowd(client, url, prompts, settings)
    console.print(_table(latency, crowd))
    return {"settings": asdict(settings), "latency": latency, "streams": crowd, "faulty_streams": faults + more_faults}


def _latency(
    client: Client, url: str, prompts: Sequence[DomainPrompt], settings: GatewaySettings, console: Console
) -> tuple[dict[str, Any], list[str]]:
    """One request at a time, each prompt direct, through the gateway, through the gateway, direct; greedy."""
    requests = [Request(prompts[at % len(prompts)].prompt, settings.seed, settings.max_tokens, 0.0) for at in range(settings.num_prompts)]
    ways: dict[str, Callable[[Request], Stream]] = {
        "direct": lambda request: direct(client, request),
        "gateway": lambda request: through_gateway(url, DEFAULT_MODEL, request),
    }
    for way in ways.values():
        way(requests[0])  # warm-up
    runs: dict[str, list[list[Stream]]] = {way: [] for way in ways}
    faults: list[str] = []
    with Progress(console=console, transient=True) as progress:
        for request in progress.track(requests, description="latency"):
            streams = [(name, ways[name](request)) for name in _ORDER]
            for name, own in runs.items():
                own.append([stream for other, stream in streams if other == name])
            faults += [f"latency: {fault}" for _, stream in streams for fault in _faults(stream, streams[0][1].text)]
    return _latency_figures(runs, settings.seed), faults


def _latency_figures(runs: dict[str, list[list[Stream]]], seed: int) -> dict[str, Any]:
    """Medians each way, and of their difference an interval by resampling prompts, the same ones in both."""
    gaps = {way: [[gap for stream in own for gap in stream.gaps_s] for own in prompts] for way, prompts in runs.items()}
    firsts = {way: [[stream.times_s[0] for stream in own if stream.times_s] for own in prompts] for way, prompts in runs.items()}
    figures: dict[str, Any] = {}
    for name, values in (("inter_token", gaps), ("first_token", firsts)):
        medians = {way: _median_ms(own) for way, own in values.items()}
        draws = np.random.default_rng(seed).integers(0, len(values["direct"]), (_RESAMPLES, len(values["direct"])))
        added = [
            _median_ms([values["gateway"][at] for at in draw]) - _median_ms([values["direct"][at] for at in draw])
            for draw in draws.tolist()
        ]
        figures[f"{name}_ms_p50"] = {way: round(value, 3) for way, value in medians.items()}
        figures[f"added_{name}_ms_p50"] = round(medians["gateway"] - medians["direct"], 3)
        figures[f"added_{name}_ms_ci95"] = [round(float(np.percentile(added, q)), 3) for q in (2.5, 97.5)]
    figures["num_gaps"] = {way: sum(map(len, own)) for way, own in gaps.items()}
    return figures


def _median_ms(per_prompt: Sequence[Sequence[float]]) -> float:
    values = [value for own in per_prompt for value in own]
    return 1e3 * float(np.median(values)) if values else 0.0


def _crowd(client: Client, url: str, prompts: Sequence[DomainPrompt], settings: GatewaySettings) -> tuple[dict[str, Any], list[str]]:
    """Many sampled streams at once, first direct, then through the gateway: one seed gives one text, however it comes."""
    requests = [
        Request(prompts[at % len(prompts)].prompt, settings.seed + at, settings.stream_tokens, 1.0) for at in range(settings.streams)
    ]
    with ThreadPoolExecutor(settings.streams) as threads:
        began_s = time.perf_counter()
        expected = list(threads.map(lambda request: direct(client, request), requests))
        middle_s = time.perf_counter()
        found = list(threads.map(lambda request: through_gateway(url, DEFAULT_MODEL, request), requests))
        ended_s = time.perf_counter()
    pairs = enumerate(zip(expected, found, strict=True))
    faults = [f"stream {at}: {fault}" for at, (one, other) in pairs for fault in _faults(other, one.text)]
    figures: dict[str, Any] = {
        "at_once": settings.streams,
        "num_events": sum(len(stream.times_s) for stream in found),
        "wall_s": {"direct": round(middle_s - began_s, 3), "gateway": round(ended_s - middle_s, 3)},
    }
    return figures, faults


def _faults(stream: Stream, expected: str) -> list[str]:
    """What is wrong with a stream; a lost, repeated, mixed-up or foreign chunk makes another text."""
    found = [] if stream.text == expected else [f"text {stream.text!r}, expected {expected!r}"]
    return found if stream.num_ends == 1 else [*found, f"{stream.num_ends} ends"]


def _table(latency: dict[str, Any], crowd: dict[str, Any]) -> Table:
    table = Table(caption="medians at one request at a time, ms", box=box.SIMPLE_HEAD)
    for at, column in enumerate(("", "direct", "gateway", "added", "95 %")):
        table.add_column(column, justify="right" if at else "left")
    for name in ("inter_token", "first_token"):
        ways, (low, high) = latency[f"{name}_ms_p50"], latency[f"added_{name}_ms_ci95"]
        table.add_row(name, str(ways["direct"]), str(ways["gateway"]), str(latency[f"added_{name}_ms_p50"]), f"{low} to {high}")
    wall_s = crowd["wall_s"]
    table.add_row(f"{crowd['at_once']} at once, s", str(wall_s["direct"]), str(wall_s["gateway"]), "", "")
    return table
