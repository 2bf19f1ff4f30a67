"""`drafthouse bench ablate`: the order of work, the report. Imports the engines: only where they are installed."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from drafthouse.pipeline.config import PipelineConfig
from drafthouse_client import Client
from drafthouse_client.local_server import running
from drafthouse_load import machine
from drafthouse_load.ablate.arms import TARGET_ONLY, VANILLA, arms_named, base_parameters
from drafthouse_load.ablate.measure import AblateSettings, Block, ServerBench, choose, measure_blocks, run_sweeps
from drafthouse_load.ablate.options import load_ablate_prompts, read_settings
from drafthouse_load.ablate.replayed import ReplayBench, hop_points, replay_arms
from drafthouse_load.ablate.report import Measured, Replayed, ablate_report
from drafthouse_load.ablate.show import LEGEND, ablate_table, write_ablate_plot
from drafthouse_load.modes import ModelControl
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.replay.costs import StageProfile, read_profile
from drafthouse_load.replay.models import TARGET, ReplayModels, read_parameters
from drafthouse_load.replay.record import HopPoint, hops_from, num_recordings, record_engines
from drafthouse_load.replay.record_fusion import record_fanout
from drafthouse_load.report import require_plotting, write_json

# Enough rounds of sequential modes to know what messages cost, where the measured half does not tell.
_HOP_PROMPTS = 16
_HOP_TOKENS = 32
_HOP_DRAFT_TOKENS = 4


def run_ablate(args: argparse.Namespace, console: Console) -> int:
    """Measure, replay, write the report, its table and its chart. Raises the errors of the server and of bad options."""
    settings = read_settings(args)
    plot = None if args.no_plot else args.plot or args.json.with_suffix(".png")
    if plot is not None:
        require_plotting(plot)
    prompts = load_ablate_prompts(args.prompts)
    profile = None if args.profile is None else read_profile(args.profile)
    head, measured, points = machine.describe(""), Measured(), list[HopPoint]()
    if profile is None or not args.replay_only:
        with running(args, console) as server, Client(server.grpc_address) as client:
            head = machine.describe(client.server_version())
            base = base_parameters(read_parameters(args.model_repository / "cosine" / "config.pbtxt"))
            if not args.replay_only:
                measured = _measure(ServerBench(server, client, prompts, base), settings, console)
            if profile is None and not args.no_replay:
                points = hop_points(measured.blocks) or hop_points(_sequential_blocks(server, client, prompts, base, settings))
    replayed = None if args.no_replay else _replay(args.model_repository, prompts, settings, profile, points, console)
    report = head | ablate_report(settings, prompts, measured, replayed)
    write_json(report, args.json)
    show(report, settings, console)
    if plot is not None:
        write_ablate_plot(_halves(report), plot)
    return 0


def _measure(bench: ServerBench, settings: AblateSettings, console: Console) -> Measured:
    num_sweeps = len(settings.fixed_arms) * len(settings.concurrency)
    with _steps(console, num_sweeps + settings.num_blocks) as advance:
        sweeps = run_sweeps(bench, settings, advance)
        return Measured(measure_blocks(bench, settings, choose(sweeps), advance), sweeps)


def _sequential_blocks(
    server: ModelControl, client: Client, prompts: Sequence[DomainPrompt], base: Mapping[str, str], settings: AblateSettings
) -> list[Block]:
    """A little of the sequential modes, to know what messages cost."""
    bench = ServerBench(server, client, prompts[:_HOP_PROMPTS], base)
    levels = sorted({min(settings.concurrency), max(settings.concurrency)})
    return [
        bench.block(arm, level, _HOP_DRAFT_TOKENS if arm.has_fixed_k else None, _HOP_TOKENS)
        for arm in arms_named((TARGET_ONLY, VANILLA))
        for level in levels
    ]


def _replay(
    repository: Path,
    prompts: Sequence[DomainPrompt],
    settings: AblateSettings,
    profile: StageProfile | None,
    points: Sequence[HopPoint],
    console: Console,
) -> Replayed:
    models = ReplayModels(repository)
    num_sweeps = len(settings.fixed_arms) * len(settings.concurrency)
    num_runs = len(settings.arms) * len(settings.concurrency)
    with _steps(console, num_sweeps + num_runs + (num_recordings(models) if profile is None else 0)) as advance:
        if profile is None:
            profile = record_profile(models, points, advance)
        bench = ReplayBench(models, profile, prompts, settings.max_tokens, base_parameters(models.parameters))
        sweeps = run_sweeps(bench, settings, lambda text: advance(f"replay, {text}"))
        return Replayed(replay_arms(bench, settings, choose(sweeps), advance), sweeps, profile)


def record_profile(models: ReplayModels, points: Sequence[HopPoint], advance: Callable[[str], None]) -> StageProfile:
    """Engines measured here and now, messages from a server's counters."""
    engines = record_engines(models, lambda: advance("stage costs of the engines"))
    drafter = models.parameters.get("single_drafter", PipelineConfig().single_drafter)
    hops = hops_from(points, engines[TARGET], engines[drafter], record_fanout())
    return StageProfile(engines, hops, f"engines and fusion alone in one process, messages from {len(points)} blocks of sequential modes")


@contextmanager
def _steps(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar; the block gets what announces each next step."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        is_first = True

        def advance(text: str) -> None:
            nonlocal is_first
            progress.update(task, description=text, advance=0 if is_first else 1)
            is_first = False

        yield advance


def _halves(report: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    replay = report.get("replay", {"results": []})
    measured = [own for own in report["results"] if "tokens_per_s" in own]
    return {f"measured on {report['hardware']['cores']} cores": measured, "replayed, a core per stage": replay["results"]}


def show(report: Mapping[str, Any], settings: AblateSettings, console: Console) -> None:
    """Print a table per half and concurrency, and what their columns mean."""
    all_ratios = (report["ratios"], report.get("replay", {"ratios": []})["ratios"])
    for (title, rows), ratios in zip(_halves(report).items(), all_ratios, strict=True):
        for concurrency in settings.concurrency if rows else ():
            console.print(ablate_table(rows, ratios, concurrency, title))
    console.print(LEGEND)
