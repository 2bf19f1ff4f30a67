"""The dashboard and the alerts are what their script makes, and name only metrics that exist."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from drafthouse.triton.metrics_table import METRICS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "grafana" / "generate.py"
PARTS = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
EXPOSED = {f"{spec.name}{part}" for spec in METRICS for part in PARTS[spec.kind]}
LABELS = {label for spec in METRICS for label in spec.labels} | {"le", "instance"}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))  # as for whoever runs it
        yield importlib.import_module(SCRIPT.stem)


def test_the_committed_files_are_up_to_date(script: ModuleType) -> None:
    for file, text in script.files().items():
        assert file.read_text(encoding="utf-8") == text, f"run: python {SCRIPT.relative_to(ROOT)}"
    assert script.main(["--check"]) == 0


def test_every_query_names_metrics_and_labels_that_exist(script: ModuleType) -> None:
    queries = [query.expression for panels in script.ROWS.values() for panel in panels for query in panel.queries]
    rules = [alert.expression for alert in script.ALERTING]
    for expression in (*queries, *rules):
        assert set(re.findall(r"drafthouse_\w+", expression)) <= EXPOSED, expression
        for names in re.findall(r"(?:by|on|group_left) \(([^)]*)\)", expression):
            assert {name.strip() for name in names.split(",") if name.strip()} <= LABELS, expression
    for expression in queries:
        assert "<" not in expression.replace(" < ", ""), "a metric that was not filled in"


def test_every_metric_is_on_the_dashboard(script: ModuleType) -> None:
    text = "".join(query.expression for panels in script.ROWS.values() for panel in panels for query in panel.queries)
    assert not {spec.name for spec in METRICS if spec.name not in text}


def test_panels_do_not_overlap(script: ModuleType) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in script.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= script.WIDTH
        taken |= cells
    numbers = [panel["id"] for panel in script.dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)
