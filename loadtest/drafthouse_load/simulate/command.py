"""`drafthouse simulate`: the order of work and the report."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from drafthouse.core.errors import DrafthouseError
from drafthouse_load import machine
from drafthouse_load.report import require_plotting, write_json
from drafthouse_load.simulate.compare import Advance, run_policy
from drafthouse_load.simulate.figures import PolicyFigures, ratios
from drafthouse_load.simulate.options import SWEEP_LOADS, parser, read_costs, read_settings
from drafthouse_load.simulate.settings import Experiment, experiment
from drafthouse_load.simulate.show import policy_table, write_simulate_plot
from drafthouse_load.simulate.theory_command import run_theory
from drafthouse_load.simulate.trace import read_trace

SCHEMA = "drafthouse-simulate/1"
_COMPARED = ("laps-sd",)  # whose ratios to the others are reported


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 refused (or a disagreement with theory), 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        return run_theory(args, console) if args.theory else run_simulate(args, console)
    except DrafthouseError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def run_simulate(args: argparse.Namespace, console: Console) -> int:
    """Simulate, show, write the report and its chart. Raises ClientError for bad options."""
    settings, costs = read_settings(args), read_costs(args)
    plot = _plot_file(args)
    own = experiment(settings, None if args.trace is None else read_trace(args.trace), costs)
    num_runs = len(settings.policies) * (1 + (len(SWEEP_LOADS) if args.sweep else 0))
    with _progress(console, num_runs * settings.num_requests) as start:
        rows = [run_policy(name, own, start(name)) for name in settings.policies]
        loads = [_sweep(own.at_load(load), start) for load in SWEEP_LOADS] if args.sweep else []
    console.print(policy_table([row.row() for row in rows], rows[0].unit, _title(own)))
    report = machine.describe("") | simulate_report(own, rows, loads)
    if args.json is not None:
        write_json(report, args.json)
    if plot is not None:
        write_simulate_plot(rows, loads, plot)
    return 0


def _plot_file(args: argparse.Namespace) -> Path | None:
    file: Path | None = args.plot or (args.json.with_suffix(".png") if args.json is not None else None)
    if args.no_plot or file is None:
        return None
    require_plotting(file)
    return file


Start = Callable[[str], Advance]  # a run with this description begins


def _sweep(own: Experiment, start: Start) -> dict[str, object]:
    load = own.settings.load
    found = [run_policy(name, own, start(f"{name} at load {load:g}")) for name in own.settings.policies]
    return {"load": load, "policies": [row.row() for row in found]}


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Start]:
    columns = TextColumn("{task.description:24}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)

        def start(description: str) -> Advance:
            progress.update(task, description=description)
            return lambda count: progress.advance(task, count)

        yield start


def _title(own: Experiment) -> str:
    settings = own.settings
    error = f", σ {settings.length_error:g}" if settings.length_predictor == "noisy" else ""
    return f"{len(own.workload):,} requests, load {settings.load:g}, batch {settings.batch}, lengths by {settings.length_predictor}{error}"


def simulate_report(own: Experiment, rows: list[PolicyFigures], loads: list[dict[str, object]]) -> dict[str, object]:
    """Everything but the machine; docs/scheduling.md defines the entries."""
    workload, unit_ns = own.workload, own.costs.unit_ns
    report: dict[str, object] = {
        "schema": SCHEMA,
        "settings": own.settings.to_json(),
        "costs": own.costs.to_json(),
        "unit": own.costs.unit,
        "workload": {
            "requests": len(workload),
            "output_tokens_mean": round(float(workload.output_len.mean()), 3),
            "prompt_tokens_mean": round(float(workload.prompt_len.mean()), 3),
            "rounds_mean": round(float(workload.num_rounds.mean()), 3),
            "service_mean": round(own.mean_service_ns / unit_ns, 4),
            "offered_load": round(float(workload.service_ns(own.costs, own.settings.batch).sum() / workload.arrival_ns[-1]), 6),
            "starvation_limit": round(own.starvation_limit_ns / unit_ns, 2),
        },
        "policies": [row.row() for row in rows],
        "ratios": ratios(rows, _COMPARED),
    }
    return report | ({"loads": loads} if loads else {})
