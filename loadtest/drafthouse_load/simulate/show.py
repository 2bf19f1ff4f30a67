"""The report of `drafthouse simulate` for people: a table and a chart."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from drafthouse_load.simulate.figures import PolicyFigures

_CDF_POINTS = 512
_TIME = ""  # a format: three digits or all before the point
# Heading, entry, format.
_COLUMNS = (
    ("mean", "latency_mean", _TIME),
    ("p50", "latency_p50", _TIME),
    ("p95", "latency_p95", _TIME),
    ("p99", "latency_p99", _TIME),
    ("TTFT", "ttft_mean", _TIME),
    ("slow", "slowdown_p99", ".0f"),
    ("preempt.", "preemptions", "d"),
    ("recomp.", "recomputed_tokens", "d"),
    ("error", "estimation_error", ".1%"),
)


def policy_table(rows: Sequence[Mapping[str, Any]], unit: str, title: str) -> Table:
    """A row per policy."""
    table = Table(
        title=title,
        caption=f"latencies in {unit}; slow: p99 of latency over time alone; error: of execution times",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *(_cell(row[entry], form) for _, entry, form in _COLUMNS))
    return table


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return format(value, form or (".1f" if value < 100 else ".0f"))


def write_simulate_plot(rows: Sequence[PolicyFigures], loads: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Distributions of latency, and with ``loads`` mean latency against load; needs matplotlib (`require_plotting`)."""
    figure = import_module("matplotlib.figure").Figure(figsize=(12 if loads else 7, 4.5), layout="constrained")
    panels = figure.subplots(1, 2 if loads else 1, squeeze=False)[0]
    shares = np.linspace(0.0, 1.0, _CDF_POINTS)
    for row in rows:
        panels[0].plot(np.quantile(row.latency, shares), shares, label=row.name)
    panels[0].set(xscale="log", xlabel=f"latency in {rows[0].unit}", ylabel="share of requests", title="latency")
    panels[0].legend()
    if loads:
        _loads(panels[1], loads, rows[0].unit)
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def _loads(axes: Any, loads: Sequence[Mapping[str, Any]], unit: str) -> None:  # noqa: ANN401 - matplotlib is an extra
    at = [entry["load"] for entry in loads]
    for index, row in enumerate(loads[0]["policies"]):
        axes.plot(at, [entry["policies"][index]["latency_mean"] for entry in loads], marker="o", markersize=3, label=row["name"])
    axes.set(yscale="log", xlabel="offered load", ylabel=f"mean latency in {unit}", title="mean latency")
