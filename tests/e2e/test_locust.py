"""Locust against the real server: no failure it should not see, none it should see and does not."""

from pathlib import Path

from drafthouse.launcher import TritonServer
from fakes.locust_run import LocustRun, run_locust

CSV_COLUMNS = {"Type", "Name", "Request Count", "Failure Count", "Average Response Time", "Requests/s", "50%", "99%"}
KINDS = {"E2E", "TTFT", "TPOT", "ITL", "tokens/event", "acceptance %", "goodput", "SLO met %"}


def load(server: TritonServer, folder: Path, *arguments: str) -> LocustRun:
    return run_locust(folder, "--host", server.http_url, "--grpc-url", server.grpc_address, *arguments)


def test_both_protocols_in_a_closed_loop_without_a_failure(server: TritonServer, tmp_path: Path) -> None:
    run = load(server, tmp_path, "-u", "4", "-r", "4", "-t", "4s", "--max-tokens", "12", "--slo-ttft-ms", "60000")
    assert (run.status, run.failures) == (0, []), run.output
    assert all(set(row) >= CSV_COLUMNS for row in run.entries.values())
    for protocol in ("SSE", "gRPC"):
        own = {kind: row for (kind, name), row in run.entries.items() if name == protocol}
        assert set(own) == KINDS - {"E2E"}, run.output
        num_requests = sum(int(row["Request Count"]) for (kind, name), row in run.entries.items() if kind == "E2E" and protocol in name)
        assert num_requests == int(own["TTFT"]["Request Count"]) > 0
        assert float(own["SLO met %"]["Average Response Time"]) == 100.0
        assert float(own["tokens/event"]["Average Response Time"]) >= 1.0
        assert 0.0 <= float(own["acceptance %"]["Average Response Time"]) <= 100.0


def test_an_error_under_status_200_is_counted(server: TritonServer, tmp_path: Path) -> None:
    endless = ("--max-tokens", "400", "--min-tokens", "400", "--deadline-ms", "250")
    run = load(server, tmp_path, "-u", "2", "-r", "2", "-t", "3s", *endless)
    assert run.status == 1, run.output
    total = run.entries["", "Aggregated"]
    assert int(total["Failure Count"]) > 0, run.output
    # A busy machine may not get to the first token in time: then it is the status that tells. Some request always does.
    assert any("DEADLINE_EXCEEDED field=deadline_ms (HTTP 200)" in row["Error"] for row in run.failures), run.failures
    assert any("DEADLINE_EXCEEDED field=deadline_ms (gRPC stream)" in row["Error"] for row in run.failures), run.failures
