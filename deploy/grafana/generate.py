"""Writes the Grafana dashboard (`drafthouse.json`) and Prometheus' alerts (`../prometheus/alerts.yml`) from the tables below.

    python deploy/grafana/generate.py [--check]

With --check nothing is written: the status is 1 when the committed files are not what this script makes. tests/unit/test_dashboards.py
does the same, and holds every metric that a query names to the table of metrics.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DASHBOARD = HERE / "drafthouse.json"
ALERTS = HERE.parent / "prometheus" / "alerts.yml"
WINDOW = "$__rate_interval"
SELECTOR = '{instance=~"$instance"}'
WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8


@dataclass(frozen=True)
class Query:
    """An expression in which <NAME> is a metric of ours and [w] the panel's window, and the legend of its series."""

    text: str
    legend: str = ""

    @property
    def expression(self) -> str:
        """As Grafana sends it: of the servers that are selected."""
        return re.sub(r"<(\w+)>", rf"drafthouse_\1{SELECTOR}", self.text).replace("[w]", f"[{WINDOW}]")


@dataclass(frozen=True)
class Panel:
    """One graph. unit: Grafana's name; stacked: the series add up to something."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    stacked: bool = False


def quantiles(name: str) -> tuple[Query, ...]:
    """Median and 95 % of a histogram."""
    return tuple(Query(f"histogram_quantile({q}, sum by (le) (rate(<{name}_bucket>[w])))", f"{q:.0%}") for q in (0.5, 0.95))


SPEC = "spec_decode_num"
OF_DRAFTS = f"/ on () group_left sum(rate(<{SPEC}_drafts_total>[w]))"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Service": (
        Panel("Tokens per second", "Emitted by all requests together.", (Query("sum(rate(<generation_tokens_total>[w]))", "tokens/s"),)),
        Panel(
            "Requests",
            "Taking part in rounds, keeping a slot while others run, without a slot.",
            tuple(Query(f"sum(<num_requests_{state}>)", state) for state in ("running", "preempted", "waiting")),
            stacked=True,
        ),
        Panel("Slots of the target", "Free, and all there are.", (Query("sum(<slots_free>)", "free"), Query("sum(<slots>)", "all"))),
        Panel("Time to first token", "Arrival to first token.", quantiles("time_to_first_token_seconds"), "s"),
        Panel("Time per output token", "After the first, per request.", quantiles("request_time_per_output_token_seconds"), "s"),
        Panel("Latency of requests", "Arrival to last token.", quantiles("e2e_request_latency_seconds"), "s"),
        Panel(
            "Requests answered per second",
            "By finish reason, and by error code.",
            (
                Query("sum by (finished_reason) (rate(<request_success_total>[w]))", "{{finished_reason}}"),
                Query("sum by (code) (rate(<request_failure_total>[w]))", "{{code}}"),
            ),
            "reqps",
        ),
        Panel("Configuration", "1 for what is loaded.", (Query("<info> > 0", "{{mode}}, {{policy}}, {{precision}}"),)),
    ),
    "Speculation": (
        Panel(
            "Mean acceptance length",
            "Tokens per verified draft, the target's own included, by the field of the text.",
            (
                Query(
                    f"1 + sum by (domain) (rate(<{SPEC}_accepted_tokens_total>[w])) / sum by (domain) (rate(<{SPEC}_drafts_total>[w]))",
                    "{{domain}}",
                ),
            ),
        ),
        Panel(
            "Acceptance rate",
            "Accepted draft tokens / verified draft tokens, by who proposed them.",
            (
                Query(
                    f"sum by (drafter) (rate(<{SPEC}_accepted_tokens_total>[w])) / sum by (drafter) (rate(<{SPEC}_draft_tokens_total>[w]))",
                    "{{drafter}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Acceptance by position",
            "Share of the drafts of which this position was accepted.",
            (
                Query(
                    f"sum by (position) (rate(<{SPEC}_accepted_tokens_per_pos_total>[w])) {OF_DRAFTS}",
                    "{{position}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Routing: who drafts",
            "Share of the drafts for which a drafter proposed. Several may share a draft.",
            (
                Query(
                    f"sum by (drafter) (rate(<{SPEC}_drafts_by_drafter_total>[w])) {OF_DRAFTS}",
                    "{{drafter}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Accepted tokens per second",
            "By the drafter that had proposed them.",
            (Query(f"sum by (drafter) (rate(<{SPEC}_accepted_tokens_total>[w]))", "{{drafter}}"),),
            stacked=True,
        ),
        Panel(
            "Depth and calibration",
            "Draft depth of the last round (0: it did not pay), and the error of the chances of acceptance in percent.",
            (Query("max(<draft_depth>)", "depth"), Query("100 * max(<calibration_error>)", "calibration error, %")),
        ),
    ),
    "Rounds": (
        Panel("Time of a round", "Prefill not included.", quantiles("round_seconds"), "s"),
        Panel(
            "Stages of a round",
            "Mean per round; what is not a stage is the loop's own work.",
            (Query("sum by (stage) (rate(<stage_seconds_total>[w])) / on () group_left sum(rate(<rounds_total>[w]))", "{{stage}}"),),
            "s",
            stacked=True,
        ),
        Panel(
            "Engines at work",
            "Share of the time inside sessions. `ahead` runs beside a verification.",
            (Query("sum by (stage) (rate(<session_seconds_total>[w]))", "{{stage}}"),),
            "percentunit",
        ),
        Panel(
            "Requests per round",
            "Mean size of a verification.",
            (Query("sum(rate(<verified_requests_total>[w])) / sum(rate(<rounds_total>[w]))", "requests"),),
        ),
        Panel("Cost of these metrics", "Of one core.", (Query("sum(rate(<metrics_seconds_total>[w]))", "writing"),), "percentunit"),
    ),
    "Scheduling": (
        Panel(
            "Waiting, by queue",
            "Of the policy; 0 is the most urgent.",
            (Query("sum by (queue) (<num_requests_waiting>)", "{{queue}}"),),
            stacked=True,
        ),
        Panel("Running, by queue", "Of the policy.", (Query("sum by (queue) (<num_requests_running>)", "{{queue}}"),), stacked=True),
        Panel("Time until scheduled", "Arrival to first round.", quantiles("request_queue_time_seconds"), "s"),
        Panel(
            "Preemptions and evictions per second",
            "A preempted request keeps its slot; an evicted one is computed again.",
            (
                Query("sum(rate(<num_preemptions_total>[w])) or vector(0)", "preemptions"),
                Query("sum(rate(<num_evictions_total>[w])) or vector(0)", "evictions"),
            ),
        ),
        Panel(
            "Tokens computed again",
            "Per second, beside all that prefill computes.",
            (
                Query("sum(rate(<recomputed_tokens_total>[w])) or vector(0)", "again"),
                Query("sum(rate(<prefill_tokens_total>[w]))", "prefill"),
                Query("sum(rate(<lost_caches_total>[w]))", "lost caches"),
            ),
        ),
        Panel(
            "Error of the estimates",
            "Sum of absolute errors over the sum of true values, since the load.",
            (Query("max by (estimate) (<estimation_error_ratio>)", "{{estimate}}"),),
            "percentunit",
        ),
    ),
}


@dataclass(frozen=True)
class Alert:
    """One rule."""

    name: str
    expression: str
    minutes: int
    severity: str
    summary: str
    remedy: str


_FAILED = 'sum by (instance) (rate(drafthouse_request_failure_total{code!~"CANCELLED|INVALID_ARG|UNSUPPORTED"}[5m]))'
_SUCCEEDED = "sum by (instance) (rate(drafthouse_request_success_total[5m]))"
_ACCEPTANCE = (
    "sum by (instance) (rate(drafthouse_spec_decode_num_accepted_tokens_total[15m]))"
    " / sum by (instance) (rate(drafthouse_spec_decode_num_draft_tokens_total[15m]))"
)
_OPEN = "sum by (instance) (drafthouse_num_requests_running + drafthouse_num_requests_waiting + drafthouse_num_requests_preempted)"
ALERTING = (
    Alert(
        "DrafthouseDown",
        'up{job="drafthouse"} == 0',
        1,
        "critical",
        "The metrics port does not answer.",
        "See the server's log; start it again.",
    ),
    Alert(
        "DrafthouseNotServing",
        'drafthouse_slots == 0 or (up{job="drafthouse"} == 1 unless on (instance) drafthouse_slots)',
        2,
        "critical",
        "No front door is loaded.",
        "`cosine` has been unloaded or died and was not reloaded: see the server's log.",
    ),
    Alert(
        "DrafthouseStuck",
        "sum by (instance) (drafthouse_num_requests_running) > 0 and on (instance) rate(drafthouse_rounds_total[2m]) == 0"
        " and on (instance) rate(drafthouse_prefill_tokens_total[2m]) == 0",
        2,
        "critical",
        "Requests run, and no round ends.",
        "The target does not answer: see the log for EngineError.",
    ),
    Alert(
        "DrafthouseSlotsLost",
        f"drafthouse_slots_free < drafthouse_slots and on (instance) {_OPEN} == 0",
        5,
        "warning",
        "Nobody is being served, and slots are held.",
        "`stats_request` says which engine; loading it anew frees them.",
    ),
    Alert(
        "DrafthouseQueueLong",
        "sum by (instance) (drafthouse_num_requests_waiting) > on (instance) 4 * drafthouse_slots",
        5,
        "warning",
        "More than four requests wait for every slot.",
        "More slots, another policy or another server.",
    ),
    Alert(
        "DrafthouseFirstTokenLate",
        "histogram_quantile(0.95, sum by (instance, le) (rate(drafthouse_time_to_first_token_seconds_bucket[10m]))) > 5",
        10,
        "warning",
        "One request in twenty waits more than 5 s for its first token.",
        "See the queue and what prefill takes.",
    ),
    Alert(
        "DrafthouseFailing",
        f"{_FAILED} / ({_FAILED} + ({_SUCCEEDED} or {_FAILED} * 0)) > 0.05",
        5,
        "critical",
        "More than 5 % of the requests fail, cancelled and refused ones not counted.",
        "The label `code` tells why; the log knows more of INTERNAL.",
    ),
    Alert(
        "DrafthouseDraftsRejected",
        f"{_ACCEPTANCE} < 0.1",
        15,
        "warning",
        "The target accepts less than a tenth of the drafts.",
        "Texts that no drafter knows, or drafters that do not belong to this target.",
    ),
    Alert(
        "DrafthouseDraftsTooGood",
        f"{_ACCEPTANCE} > 0.98",
        15,
        "warning",
        "The target accepts nearly everything: often a sign of texts that repeat themselves.",
        "Look at some answers.",
    ),
    Alert(
        "DrafthouseRecomputing",
        "sum by (instance) (rate(drafthouse_recomputed_tokens_total[10m]))"
        " > 0.3 * sum by (instance) (rate(drafthouse_prefill_tokens_total[10m]))",
        10,
        "warning",
        "Much of what prefill computes had been computed before.",
        "Evictions: more slots, a smaller batch, or a policy that preempts less.",
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Server",
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": "label_values(drafthouse_rounds_total, instance)", "refId": "instance"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    return {
        "uid": "drafthouse",
        "title": "Drafthouse",
        "description": "Collaborative speculative decoding on Triton. docs/metrics.md defines every figure.",
        "tags": ["drafthouse", "triton", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for row, panels in ROWS.items():
        yield {"id": number, "type": "row", "title": row, "collapsed": False, "panels": [], "gridPos": _place(top, 0, WIDTH, 1)}
        number, top = number + 1, top + 1
        for index, panel in enumerate(panels):
            column = index * PANEL_WIDTH % WIDTH
            line = index * PANEL_WIDTH // WIDTH * PANEL_HEIGHT
            yield _panel(panel, number, _place(top + line, column, PANEL_WIDTH, PANEL_HEIGHT))
            number += 1
        top += -(-len(panels) * PANEL_WIDTH // WIDTH) * PANEL_HEIGHT


def _place(top: int, left: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": source, "expr": query.expression, "legendFormat": query.legend, "editorMode": "code"}
        for index, query in enumerate(panel.queries)
    ]
    custom = {"drawStyle": "line", "fillOpacity": 20 if panel.stacked else 0, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def alerts() -> str:
    """The rules file. Quoted as JSON, which YAML is a superset of."""
    lines = ["# Made by deploy/grafana/generate.py: change that.", "groups:", "  - name: drafthouse", "    rules:"]
    for alert in ALERTING:
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.expression)}",
            f"        for: {alert.minutes}m",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {json.dumps(alert.summary)}",
            f"          description: {json.dumps(alert.remedy)}",
        ]
    return "\n".join(lines) + "\n"


def files() -> dict[Path, str]:
    """Every file this script makes, and what belongs into it."""
    return {DASHBOARD: json.dumps(dashboard(), indent=2) + "\n", ALERTS: alerts()}


def main(arguments: list[str]) -> int:
    """Write the files, or compare them."""
    if arguments == ["--check"]:
        return int(any(not file.exists() or file.read_text(encoding="utf-8") != text for file, text in files().items()))
    for file, text in files().items():
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
