"""Every query of the dashboard and every alert, asked of a real Prometheus that scrapes a real server under load.

Prometheus comes from PATH or from DRAFTHOUSE_PROMETHEUS (its program); on Debian: apt-get install prometheus.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from drafthouse.launcher import TritonServer
from drafthouse_client import Client, GenerateOptions, ServerSideError
from e2e.support import eventually

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "drafthouse.json"
DEPLOY = ROOT / "deploy" / "prometheus"
PROGRAM = os.environ.get("DRAFTHOUSE_PROMETHEUS") or shutil.which("prometheus")
PROMPTS = ("def add(a, b):", "ROMEO: But soft,", "Theorem 1. Let x be", "The function returns")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no prometheus on PATH and no DRAFTHOUSE_PROMETHEUS")]


class Prometheus:
    """A running server; `get` asks its HTTP interface."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
            return json.load(response)["data"]

    def values(self, expression: str) -> list[float]:
        return [float(result["value"][1]) for result in self.get("/api/v1/query", query=expression)["result"]]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@pytest.fixture(scope="module")
def prometheus(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the server with the committed configuration, but every half second and on the test's ports."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = (DEPLOY / "prometheus.yml").read_text().replace("127.0.0.1:8002", f"127.0.0.1:{server.ports.metrics}")
    assert str(server.ports.metrics) in config
    (folder / "prometheus.yml").write_text(config.replace(" 5s", " 500ms"))
    shutil.copy(DEPLOY / "alerts.yml", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log, subprocess.Popen([str(PROGRAM), *command], stdout=log, stderr=log) as process:
        try:
            running = Prometheus(port)
            assert eventually(running.is_ready), (folder / "log").read_text()
            yield running
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def under_load(server: TritonServer, prometheus: Prometheus) -> Prometheus:
    """The same after a few seconds of requests: enough for a rate over several scrapes."""
    with Client(server.grpc_address) as client:

        def work(prompt: str) -> None:
            for _ in range(4):
                client.generate(prompt, GenerateOptions(max_tokens=32, min_tokens=32))

        # A rate needs two scrapes, and a series that begins with an event begins at its first one: so everything happens in two halves.
        for _ in range(2):
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(work, PROMPTS))
            with pytest.raises(ServerSideError, match="DEADLINE_EXCEEDED"):
                client.generate(PROMPTS[0], GenerateOptions(max_tokens=400, min_tokens=400, deadline_ms=1))
            seen = f"drafthouse_request_failure_total >= {sum(client.stats()['failed'].values())}"
            assert eventually(lambda expression=seen: bool(prometheus.values(expression)))  # type: ignore[misc]
    return prometheus


def test_every_query_of_the_dashboard_returns_data(under_load: Prometheus) -> None:
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] == "timeseries"]
    assert len(panels) > 20
    silent = []
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            values = under_load.values(expression)
            if not values or not any(value == value for value in values):  # NaN: nothing was divided by nothing
                silent.append((panel["title"], expression))
    assert not silent


def test_the_servers_in_the_menu_are_those_that_are_scraped(under_load: Prometheus, server: TritonServer) -> None:
    assert under_load.get("/api/v1/label/instance/values", **{"match[]": "drafthouse_rounds_total"}) == [
        f"127.0.0.1:{server.ports.metrics}"
    ]


def test_every_alert_is_evaluated_and_none_is_raised_on_a_server_that_is_well(under_load: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        (group,) = under_load.get("/api/v1/rules")["groups"]
        found: list[dict[str, Any]] = group["rules"]
        return found

    assert eventually(lambda: all(rule["health"] == "ok" for rule in rules())), rules()
    assert len(rules()) >= 10
    assert [rule["name"] for rule in rules() if rule["state"] == "firing"] == []


def test_types_and_help_reach_prometheus(under_load: Prometheus) -> None:
    metadata = under_load.get("/api/v1/metadata")
    assert metadata["drafthouse_rounds_total"][0]["type"] == "counter"
    assert metadata["drafthouse_time_to_first_token_seconds"][0]["type"] == "histogram"
    assert metadata["drafthouse_slots_free"][0]["help"]
