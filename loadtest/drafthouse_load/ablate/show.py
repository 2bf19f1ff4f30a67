"""The report of `bench ablate` for people: a table and a chart."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

_COLUMNS = ("k", "tok/s", "cosine ×", "mean", "p95", "t/v", "v idle", "d idle")

LEGEND = (
    "− part: cosine without it. k: fixed draft tokens. cosine ×: cosine's tokens/s over this mode's, 95 % interval.\n"
    "mean, p95: latency in ms. t/v: tokens per verification. v idle, d idle: share of the time without target or drafter work."
)


def ablate_table(results: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]], concurrency: int, title: str) -> Table:
    """One concurrency: a row per mode."""
    table = Table(title=f"{title}, {concurrency} at once", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("mode", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    over = {entry["mode"]: entry for entry in ratios if entry["concurrency"] == concurrency}
    for own in results:
        if own["concurrency"] == concurrency:
            table.add_row(*_cells(own, over.get(own["mode"])))
    return table


def _cells(own: Mapping[str, Any], over: Mapping[str, Any] | None) -> list[str]:
    k = own["num_draft_tokens"]
    return [
        str(own["mode"]).replace("cosine_without_", "− "),
        "" if k is None else str(k),
        f"{own['tokens_per_s']:.1f}",
        "" if over is None else f"{over['throughput']:.2f} ({over['throughput_ci95'][0]:.2f}–{over['throughput_ci95'][1]:.2f})",
        f"{own['latency_ms_mean']:.0f}",
        f"{own['latency_ms_p95']:.0f}",
        f"{own['accepted_len_mean']:.2f}",
        f"{own['verify_idle_share']:.0%}",
        f"{own['draft_idle_share']:.0%}",
    ]


def write_ablate_plot(halves: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Tokens/s by mode and concurrency with 95 % intervals, a panel for each half; needs matplotlib (`require_plotting`).

    Args:
        halves: rows of `results` by the panel's title; halves without rows are left out.
        file: a PNG.
    """
    shown = {title: rows for title, rows in halves.items() if rows}
    figure = import_module("matplotlib.figure").Figure(figsize=(11, 4.5 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, shown.items(), strict=True):
        _bars(axes, rows)
        axes.set_title(title)
        axes.set_ylabel("output tokens per second")
    panels[0].legend(title="at once")
    figure.savefig(file, dpi=150)


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:  # noqa: ANN401 - matplotlib is an extra
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    levels = list(dict.fromkeys(row["concurrency"] for row in rows))
    width = 0.8 / len(levels)
    for at, level in enumerate(levels):
        own = [row for row in rows if row["concurrency"] == level]
        places = [modes.index(row["mode"]) + (at - (len(levels) - 1) / 2) * width for row in own]
        heights = [row["tokens_per_s"] for row in own]
        spread = [
            [max(row["tokens_per_s"] - row["tokens_per_s_ci95"][0], 0.0) for row in own],
            [max(row["tokens_per_s_ci95"][1] - row["tokens_per_s"], 0.0) for row in own],
        ]
        axes.bar(places, heights, width, yerr=spread, capsize=2, label=str(level))
    axes.set_xticks(range(len(modes)), [mode.replace("cosine_without_", "cosine without\n") for mode in modes], rotation=20)
