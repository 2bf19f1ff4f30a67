"""`drafthouse bench decode`: target alone, one drafter and collaboration on one server in one run."""

import argparse
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from drafthouse.core.errors import invalid
from drafthouse_client import Client, GenerateOptions
from drafthouse_client.local_server import add_options, running
from drafthouse_load import machine
from drafthouse_load.modes import (
    ALL_MODES,
    COLLABORATIVE,
    SINGLE_DRAFTER,
    TARGET_ONLY,
    TARGET_ONLY_UNPADDED,
    Mode,
    ModelControl,
    ModeSwitch,
    block_order,
)
from drafthouse_load.prompts import DomainPrompt, digest, load_prompts
from drafthouse_load.records import RequestRecord, Segment, by_key, differing_prompts, figures, speed_ratio, tokens_per_s
from drafthouse_load.report import decode_table, require_plotting, write_json, write_plot
from drafthouse_load.requests import timed_request
from drafthouse_load.stats import read_when_idle

SCHEMA = "drafthouse-bench-decode/1"
RATIOS = (
    (COLLABORATIVE, TARGET_ONLY),
    (COLLABORATIVE, SINGLE_DRAFTER),
    (SINGLE_DRAFTER, TARGET_ONLY),
    (COLLABORATIVE, TARGET_ONLY_UNPADDED),
)


@dataclass(frozen=True)
class DecodeSettings:
    """What one benchmark run measures."""

    modes: tuple[Mode, ...] = ALL_MODES
    cycles: int = 1  # each cycle runs every mode twice, forwards and backwards
    concurrency: int = 1  # streams at once
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    warmup_requests: int = 2  # per block, discarded


def add_decode_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse bench decode`."""
    default = DecodeSettings()
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    parser.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="lines of {domain, prompt} (default: a small set of our own)")
    parser.add_argument("--precision", choices=("fp32", "int8"), help="refuse to measure engines of another precision")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bar chart of tokens/s; needs matplotlib")
    parser.add_argument("--concurrency", type=int, default=default.concurrency, help="streams at once (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="per request (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=default.temperature, help="(default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=default.top_p, help="(default: %(default)s)")
    parser.add_argument("--cycles", type=int, default=default.cycles, help="times A B B A over the modes (default: %(default)s)")
    add_options(parser)
    parser.add_argument("--repository", dest="model_repository", type=Path, metavar="DIR", help="short for --model-repository")


def run_decode(args: argparse.Namespace, console: Console) -> int:
    """Measure, write the report, print its table. Raises the errors of the server and of bad options."""
    for name in ("concurrency", "max_tokens", "cycles"):
        if getattr(args, name) < 1:
            raise invalid(f"--{name.replace('_', '-')}", getattr(args, name), ">= 1")
    if args.plot is not None:
        require_plotting(args.plot)
    prompts = load_prompts(args.prompts)
    settings = DecodeSettings(
        cycles=args.cycles, concurrency=args.concurrency, max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p
    )
    with running(args, console) as server, Client(server.grpc_address) as client:
        precision = read_when_idle(client).precision
        if args.precision not in (None, precision):
            remedy = f"drafthouse build --demo --precision {args.precision} --output DIR, then --repository DIR"
            raise invalid("--precision", args.precision, f"{precision}, which {args.model_repository} holds; else {remedy}")
        report = machine.describe(client.server_version())
        report |= measure(server, client, prompts, settings, precision, console)
    write_json(report, args.json)
    console.print(decode_table(report))
    if args.plot is not None:
        write_plot(report, args.plot)
    return 0


def measure(
    server: ModelControl, client: Client, prompts: Sequence[DomainPrompt], settings: DecodeSettings, precision: str, console: Console
) -> dict[str, object]:
    """Run all blocks on a running server and return the report's figures; the server is left in the last mode."""
    switch = ModeSwitch(server, client)
    order = block_order(settings.modes, settings.cycles)
    segments: list[Segment] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(order) * len(prompts))
        for block, mode in enumerate(order):
            progress.update(task, description=f"block {block + 1} of {len(order)}: {mode.name}")
            switch.to(mode)
            for request in prompts[: settings.warmup_requests]:
                _request(client, request, 0, settings)
            for segment in _block(client, prompts, settings, mode, block):
                segments.append(segment)
                progress.advance(task, len(segment.requests))
    return _report(segments, prompts, settings, precision, order)


def _block(client: Client, prompts: Sequence[DomainPrompt], settings: DecodeSettings, mode: Mode, block: int) -> list[Segment]:
    """One block, domain by domain, so that the server's counters can be split by domain."""
    segments = []
    for domain in dict.fromkeys(prompt.domain for prompt in prompts):
        chosen = [(index, prompt) for index, prompt in enumerate(prompts) if prompt.domain == domain]
        before = read_when_idle(client).counters
        began_s = time.perf_counter()
        with ThreadPoolExecutor(settings.concurrency) as pool:
            records = tuple(pool.map(lambda item: _request(client, item[1], item[0], settings), chosen))
        wall_s = time.perf_counter() - began_s
        counters = read_when_idle(client).counters - before
        segments.append(Segment(mode.name, block, domain, wall_s, records, counters))
    return segments


def _request(client: Client, prompt: DomainPrompt, index: int, settings: DecodeSettings) -> RequestRecord:
    options = GenerateOptions(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=index,  # one seed gives one text in every mode
        exclude_input_in_output=True,
    )
    return timed_request(client, prompt, index, options)


def _report(
    segments: Sequence[Segment], prompts: Sequence[DomainPrompt], settings: DecodeSettings, precision: str, order: Sequence[Mode]
) -> dict[str, object]:
    modes = by_key(segments, "mode")
    chosen = {**asdict(settings), "modes": [mode.name for mode in settings.modes]}
    return {
        "schema": SCHEMA,
        "settings": chosen
        | {"precision": precision, "prompts": len(prompts), "prompts_digest": digest(prompts), "blocks": [mode.name for mode in order]},
        "modes": {name: _mode_figures(own) for name, own in modes.items()},
        "ratios": _ratios(modes),
        "prompts_with_other_tokens_than_target_only": differing_prompts(segments, TARGET_ONLY.name),
    }


def _mode_figures(segments: Sequence[Segment]) -> dict[str, object]:
    blocks: dict[int, list[Segment]] = {}
    for segment in segments:
        blocks.setdefault(segment.block, []).append(segment)
    return figures(segments) | {
        "tokens_per_s_by_block": [round(tokens_per_s(own), 2) for own in blocks.values()],
        "by_domain": {domain: figures(own) for domain, own in by_key(segments, "domain").items()},
    }


def _ratios(modes: Mapping[str, list[Segment]]) -> dict[str, object]:
    ratios: dict[str, object] = {}
    for fast, slow in RATIOS:
        if fast.name in modes and slow.name in modes:
            rng = np.random.default_rng(0)
            domains = by_key(modes[fast.name], "domain")
            slow_domains = by_key(modes[slow.name], "domain")
            ratios[f"{fast.name}_over_{slow.name}"] = speed_ratio(modes[fast.name], modes[slow.name], rng) | {
                "by_domain": {domain: speed_ratio(own, slow_domains[domain], rng) for domain, own in domains.items()}
            }
    return ratios
