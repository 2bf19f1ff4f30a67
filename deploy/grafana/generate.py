"""Writes the Grafana dashboard (`drafthouse.json`) from `panels.py`, and Prometheus' alerts (`../prometheus/alerts.yml`) from `alerting.py`

    python deploy/grafana/generate.py [--check]

With --check nothing is written: the status is 1 when the committed files are not what this script makes. tests/unit/test_dashboards.py
does the same, and holds every metric that a query names to the table of metrics.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alerting import ALERTING
from panels import ROWS, Panel

HERE = Path(__file__).parent
DASHBOARD = HERE / "drafthouse.json"
ALERTS = HERE.parent / "prometheus" / "alerts.yml"
WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8


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
