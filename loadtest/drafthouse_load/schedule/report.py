"""The report of `bench schedule`: JSON for programs, a table and a chart for people."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from drafthouse_load.prompts import DomainPrompt, digest
from drafthouse_load.schedule.figures import (
    PolicySample,
    by_key,
    capacity_figures,
    differing_texts,
    length_figures,
    predicted,
    ratio,
    row,
    samples_of,
)
from drafthouse_load.schedule.measure import Measured
from drafthouse_load.schedule.options import BASELINE, ScheduleSettings
from drafthouse_load.schedule.predict import SimulatedServer, forecast_s, replayed_s, services_s
from drafthouse_load.schedule.requests import ServedRequest

SCHEMA = "drafthouse-bench-schedule/1"
_COLUMNS = ("mean", "÷ fcfs", "p99", "TTFT", "span", "put off", "simulated")

_NO_PREDICTIONS: dict[str, object] = {"simulated": None, "forecast": None}

LEGEND = (
    "Seconds from arrival to the last token. ÷ fcfs: mean over fcfs's on the same arrivals, 95 % interval. span: makespan ÷ fcfs's.\n"
    "put off: times a running request was preempted / lost its cache because all slots were held.\n"
    "simulated: the mean that the simulator gives for these rounds."
)


def schedule_report(
    settings: ScheduleSettings,
    prompts: Sequence[DomainPrompt],
    measured: Sequence[Measured],
    server: SimulatedServer,
    *,
    predict: bool = True,
) -> dict[str, object]:
    """Everything but the machine; docs/load_tests.md defines the entries. Without ``predict`` nothing is simulated."""
    reference = measured[0].capacity.served
    blocks = [block for own in measured for block in own.blocks]
    samples = samples_of(blocks)
    found = by_key(samples)
    differing = differing_texts(reference, blocks)
    slots: dict[str, object] = {"slots": server.slots}
    return {
        "schema": SCHEMA,
        "unit": "ms",
        "settings": _settings(settings, prompts, server),
        "lengths": length_figures(reference),
        "capacity": [slots | capacity_figures(own.capacity) for own in measured],
        "policies": [slots | row(sample) | (_predictions(sample, measured, server) if predict else _NO_PREDICTIONS) for sample in samples],
        "ratios": [slots | ratio(sample, found[BASELINE, *sample.key[1:]]) for sample in samples if sample.key[0] != BASELINE],
        "texts": {"identical": not any(differing.values()), "differing": differing},
        "requests": [_request(one, services) for services in (_services(measured),) for one in reference],
        "latencies": [slots | _latencies(sample) for sample in samples],
    }


def _settings(settings: ScheduleSettings, prompts: Sequence[DomainPrompt], server: SimulatedServer) -> dict[str, object]:
    return {
        "policies": list(settings.policies),
        "max_batch": list(settings.max_batch),
        "load": settings.load,
        "replay_load": settings.replay_load,
        "requests": settings.requests,
        "blocks": [list(settings.order(number)) for number in range(settings.blocks)],
        "warmup": settings.warmup,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "mode": settings.mode or "as configured",
        "slots": server.slots,
        "starvation_limit_ms": server.starvation_limit_ms,
        "length_predictor": server.length_predictor,
        "prompts": len(prompts),
        "prompts_digest": digest(prompts),
    }


def _predictions(sample: PolicySample, measured: Sequence[Measured], server: SimulatedServer) -> dict[str, object]:
    """Null where it was not measured what rounds take."""
    own = next(one for one in measured if one.capacity.max_batch == sample.key[1])
    if own.capacity.max_batch > 1 and not own.costs:
        return _NO_PREDICTIONS
    ways = {"simulated": replayed_s, "forecast": forecast_s}
    return {
        name: predicted(sample, 1e3 * np.concatenate([latencies_s(own, block, server) for block in sample.blocks]))
        for name, latencies_s in ways.items()
    }


def _services(measured: Sequence[Measured]) -> Mapping[int, float]:
    """Measured alone, where requests were served one at a time."""
    alone = [own.capacity.served for own in measured if own.capacity.max_batch == 1]
    return services_s(alone[0]) if alone else {}


def _request(one: ServedRequest, services: Mapping[int, float]) -> dict[str, object]:
    service_s = services.get(one.planned.number)
    return {
        "number": one.planned.number,
        "domain": one.planned.domain,
        "prompt_tokens": one.completion.num_input_tokens,
        "output_tokens": one.completion.num_output_tokens,
        "finish_reason": one.completion.finish_reason,
        "tokens_per_round": list(one.tokens_per_round),
        "drafted": sum(one.drafted_per_round),
        "service_ms": None if service_s is None else round(1e3 * service_s, 2),
    }


def _latencies(sample: PolicySample) -> dict[str, object]:
    policy, max_batch, load = sample.key
    return {
        "policy": policy,
        "max_batch": max_batch,
        "load": load,
        "blocks": [
            {
                "number": [one.planned.number for one in block.served],
                "arrival_ms": [round(1e3 * one.due_s, 1) for one in block.served],
                "latency_ms": [round(1e3 * one.latency_s, 1) for one in block.served],
            }
            for block in sample.blocks
        ],
    }


def schedule_table(report: Mapping[str, Any], max_batch: int, load: float) -> Table:
    """One `max_batch` and load: a row per policy."""
    capacity = next(own for own in report["capacity"] if own["max_batch"] == max_batch)
    title = f"max_batch {max_batch}, slots {capacity['slots']}, load {load:g} of {capacity['requests_per_s']:.2f} requests/s"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("policy", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    ratios = {(own["policy"], own["max_batch"], own["load"]): own for own in report["ratios"]}
    for own in report["policies"]:
        if (own["max_batch"], own["load"]) == (max_batch, load):
            table.add_row(*_cells(own, ratios.get((own["policy"], max_batch, load))))
    return table


def _cells(own: Mapping[str, Any], over: Mapping[str, Any] | None) -> list[str]:
    simulated = own["simulated"]
    return [
        str(own["policy"]),
        _seconds(own["latency_mean"]),
        "" if over is None else f"{over['latency_mean']:.2f} ({over['latency_mean_ci95'][0]:.2f}–{over['latency_mean_ci95'][1]:.2f})",
        *(_seconds(own[name]) for name in ("latency_p99", "ttft_mean")),
        "" if over is None else f"{over['makespan']:.3f}",
        f"{own['preemptions']}/{own['evictions']}",
        "" if simulated is None else f"{_seconds(simulated['latency_mean'])} {simulated['error']:+.0%}",
    ]


def _seconds(value_ms: float) -> str:
    return f"{value_ms / 1e3:.2f}"


def write_schedule_plot(report: Mapping[str, Any], file: Path) -> None:
    """Shares of requests by latency, a panel for each `max_batch` and load; needs matplotlib (`require_plotting`)."""
    panels = list(dict.fromkeys((own["max_batch"], own["load"]) for own in report["latencies"]))
    slots = report["settings"]["slots"]
    figure = import_module("matplotlib.figure").Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    for axes, (max_batch, load) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for own in report["latencies"]:
            if (own["max_batch"], own["load"]) == (max_batch, load):
                latencies = np.sort([latency for block in own["blocks"] for latency in block["latency_ms"]]) / 1e3
                axes.step(latencies, np.arange(1, len(latencies) + 1) / len(latencies), where="post", label=own["policy"])
        axes.set_xscale("log")
        axes.set_xlabel("latency, s")
        axes.set_title(f"max_batch {max_batch}, slots {slots}, load {load:g}")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    figure.axes[0].set_ylabel("share of requests")
    figure.savefig(file, dpi=150)
