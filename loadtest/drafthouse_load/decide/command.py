"""`drafthouse bench decide`: cost per scheduling decision against the length of the queue."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from drafthouse.core.errors import invalid
from drafthouse.scheduling.estimates.registry import LENGTH_PREDICTORS
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse_load import machine
from drafthouse_load.decide.measure import DecideSettings, DecisionCost, measure
from drafthouse_load.report import require_plotting, write_json

SCHEMA = "drafthouse-bench-decide/1"
_MAX_QUEUED = 10_000_000
_DEFAULT = DecideSettings(POLICIES.names)


def add_decide_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse bench decide`."""
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    parser.add_argument("--policies", default=",".join(POLICIES.names), metavar="NAME,NAME", help="(default: %(default)s)")
    parser.add_argument(
        "--sizes", default=",".join(map(str, _DEFAULT.sizes)), metavar="N,N", help="requests in the queue (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=_DEFAULT.batch, help="places in a round (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=_DEFAULT.decisions, help="timed per policy and size (default: %(default)s)")
    parser.add_argument("--length-predictor", default=_DEFAULT.length_predictor, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=_DEFAULT.seed, help="(default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="chart; needs matplotlib (default: beside the report)")
    parser.add_argument("--no-plot", action="store_true", help="no chart")


def run_decide(args: argparse.Namespace, console: Console) -> int:
    """Measure, write report and chart, print a table. Raises ClientError naming a bad option."""
    settings = read_settings(args)
    chart = None if args.no_plot else args.plot or args.json.with_suffix(".png")
    if chart is not None:
        require_plotting(chart)
    report = machine.describe("")
    with console.status("") as status:
        costs = measure(settings, lambda name, size: status.update(f"{name}, {size:,} requests"))
    rows = [cost.row() for cost in costs]
    write_json(report | {"schema": SCHEMA, "settings": asdict(settings), "decisions": rows}, args.json)
    console.print(_table(costs, settings))
    if chart is not None:
        write_decide_plot(costs, settings, chart)
    return 0


def read_settings(args: argparse.Namespace) -> DecideSettings:
    """The settings that the options ask for. Raises ClientError naming a bad option."""
    for name in ("batch", "decisions"):
        if getattr(args, name) < 1:
            raise invalid(f"--{name}", getattr(args, name), ">= 1")
    policies = tuple(dict.fromkeys(name.strip() for name in args.policies.split(",") if name.strip()))
    if not policies or not set(policies) <= set(POLICIES.names):
        raise invalid("--policies", args.policies, f"names of {', '.join(POLICIES.names)}, separated by commas")
    if args.length_predictor not in LENGTH_PREDICTORS.names:
        raise invalid("--length-predictor", args.length_predictor, f"one of {', '.join(LENGTH_PREDICTORS.names)}")
    sizes = _sizes(args.sizes)
    return DecideSettings(policies, sizes, args.batch, args.decisions, length_predictor=args.length_predictor, seed=args.seed)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or not all(1 <= size <= _MAX_QUEUED for size in sizes):
        raise invalid("--sizes", text, f"numbers from 1 to {_MAX_QUEUED}, separated by commas")
    return sizes


def _table(costs: Sequence[DecisionCost], settings: DecideSettings) -> Table:
    title = f"mean processor time of a decision, batch {settings.batch}, {settings.decisions} decisions each"
    table = Table(title=title, caption="µs by requests in the queue", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("policy", no_wrap=True)
    for size in settings.sizes:
        table.add_column(f"{size:,}", justify="right", no_wrap=True)
    for name in settings.policies:
        table.add_row(name, *(f"{cost.mean_us:.0f}" for cost in costs if cost.policy == name))
    return table


def write_decide_plot(costs: Sequence[DecisionCost], settings: DecideSettings, file: Path) -> None:
    """Mean and 99th percentile against the length of the queue; needs matplotlib (`require_plotting`)."""
    figure = import_module("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in settings.policies:
        own = [cost for cost in costs if cost.policy == name]
        (line,) = axes.plot(settings.sizes, [cost.mean_us for cost in own], marker="o", markersize=3, label=name)
        axes.plot(settings.sizes, [cost.p99_us for cost in own], linestyle=":", color=line.get_color())
    axes.axhline(1000.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="requests in the queue", ylabel="processor time per decision in µs")
    axes.set_title(f"select and update, batch {settings.batch}: mean, and 99th percentile (dotted)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    figure.savefig(file, dpi=150)
