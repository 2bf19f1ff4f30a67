"""`drafthouse bench schedule`: the order of work, the report, the exit status."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from drafthouse_client import Client
from drafthouse_client.local_server import running
from drafthouse_load import machine
from drafthouse_load.ablate.options import load_ablate_prompts
from drafthouse_load.replay.models import read_parameters
from drafthouse_load.report import require_plotting, write_json
from drafthouse_load.schedule.measure import Measured, ScheduleBench
from drafthouse_load.schedule.options import read_settings
from drafthouse_load.schedule.predict import SimulatedServer
from drafthouse_load.schedule.report import LEGEND, schedule_report, schedule_table, write_schedule_plot
from drafthouse_load.schedule.server import ScheduleServer, scheduling_parameters


def run_schedule(args: argparse.Namespace, console: Console) -> int:
    """Measure, predict, write the report, its tables and its chart.

    Returns 1 when any policy gave another text. Raises the errors of the server and of bad options.
    """
    settings = read_settings(args)
    plot = None if args.no_plot else args.plot or args.json.with_suffix(".png")
    if plot is not None:
        require_plotting(plot)
    prompts = load_ablate_prompts(args.prompts)
    limit_ms, predictor = scheduling_parameters(read_parameters(args.model_repository / "cosine" / "config.pbtxt"))
    with running(args, console) as triton, Client(triton.grpc_address) as client:
        head = machine.describe(client.server_version())
        server = ScheduleServer(triton, client, triton.grpc_address, max(settings.requests, settings.warmup), settings.mode, settings.slots)
        num_slots = server.num_slots()
        settings = settings.on(num_slots)
        simulated = SimulatedServer(num_slots, limit_ms, predictor, settings.max_tokens)
        bench, measured = ScheduleBench(server, settings, prompts), list[Measured]()
        with _progress(console, bench.num_answers) as bench.advance:
            for max_batch in settings.max_batch:
                measured.append(bench.run(max_batch))
                # Hours of measuring are not to be lost to whatever comes after them.
                write_json(head | schedule_report(settings, prompts, measured, simulated, predict=False), args.json)
    report = head | schedule_report(settings, prompts, measured, simulated)
    write_json(report, args.json)
    for max_batch, load in dict.fromkeys((block.max_batch, block.load) for own in measured for block in own.blocks):
        console.print(schedule_table(report, max_batch, load))
    console.print(LEGEND)
    if plot is not None:
        write_schedule_plot(report, plot)
    return _verdict(report["texts"], console)


def _verdict(texts: object, console: Console) -> int:
    assert isinstance(texts, dict)
    differing = {policy: numbers for policy, numbers in texts["differing"].items() if numbers}
    for policy, numbers in differing.items():
        console.print(f"violation: {policy} answered requests {numbers} with another text", style="red", markup=False)
    return 1 if differing else 0


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar; the block gets what is told of each answer and the step it belongs to."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda step: progress.update(task, description=step, advance=1)
