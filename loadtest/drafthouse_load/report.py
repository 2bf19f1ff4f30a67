"""Reports: JSON for programs, a table for people, a chart where matplotlib is installed."""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from drafthouse.core.errors import unsupported


def write_json(report: Mapping[str, object], file: Path) -> None:
    """Write a report; the file is there only when it is complete."""
    unfinished = file.with_name(file.name + ".new")
    unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(file)


def decode_table(report: Mapping[str, Any]) -> Table:
    """The headline figures of a decode report, one row per mode and, below each, per domain."""
    settings = report["settings"]
    title = f"{settings['precision']}, {settings['concurrency']} stream(s), {settings['max_tokens']} tokens, {report['hardware']['cpu']}"
    # Short headings and single spaces: the table fits 80 columns.
    table = Table(
        title=title, caption="TTFT p50, draft, verify and other in ms", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("mode", no_wrap=True)
    for column in ("tok/s", "× base", "TTFT", "tok/rnd", "draft", "verify", "other", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    baseline = report["modes"].get("target_only")
    for name, mode in report["modes"].items():
        table.add_row(*_cells(name, mode, baseline), style="bold")
        for domain, own in mode["by_domain"].items():
            table.add_row(*_cells(f"  {domain}", own, baseline["by_domain"].get(domain) if baseline else None))
    return table


def _cells(name: str, own: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[str]:
    speed_up = own["tokens_per_s"] / baseline["tokens_per_s"] if baseline and baseline["tokens_per_s"] else None
    times = own["round_ms"]
    return [
        name,
        f"{own['tokens_per_s']:.1f}",
        "" if speed_up is None else f"{speed_up:.2f}",
        f"{own['ttft_ms_p50']:.0f}",
        f"{own['accepted_len_mean']:.2f}",
        *(f"{times[part]:.2f}" for part in ("draft", "verify", "other")),
        f"{own['other_share']:.0%}",
    ]


def require_plotting(file: Path) -> None:
    """Refuse a chart before anything is measured. Raises ClientError (UNSUPPORTED) without matplotlib."""
    if find_spec("matplotlib") is None:
        raise unsupported("--plot", str(file), "with matplotlib installed: pip install 'drafthouse[plot]'")


def write_plot(report: Mapping[str, Any], file: Path) -> None:
    """A bar chart of tokens/s by domain and mode; needs matplotlib (`require_plotting`)."""
    figure = import_module("matplotlib.figure").Figure(figsize=(8, 4), layout="constrained")
    modes: Mapping[str, Any] = report["modes"]
    domains = list(next(iter(modes.values()))["by_domain"])
    axes = figure.subplots()
    width = 0.8 / len(modes)
    for at, (name, mode) in enumerate(modes.items()):
        places = [index + (at - (len(modes) - 1) / 2) * width for index in range(len(domains))]
        axes.bar(places, [mode["by_domain"][domain]["tokens_per_s"] for domain in domains], width, label=name)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("output tokens per second")
    axes.set_title(f"{report['settings']['precision']}, {report['settings']['concurrency']} stream(s), {report['hardware']['cpu']}")
    figure.legend(loc="outside lower center", ncols=len(modes))
    figure.savefig(file, dpi=150)
