"""Figures of streams as entries of locust's own statistics, so that they are in its table, its web page and its CSV files.

A request is one entry of type `E2E` (milliseconds, with locust's count of failures). Beside it, for every stream that came to its end:

    TTFT             ms from when it was due to its first token
    TPOT             ms per output token after the first
    ITL              ms between two events; one entry per gap
    tokens/event     one entry per event
    acceptance %     accepted of 100 verified draft tokens
    goodput          E2E of the requests that kept the SLO: its Requests/s is the goodput (only with an SLO)
    SLO met %        100 or 0 per request, a failed one 0: its average is the share (only with an SLO)

each under the protocol and domain (`SSE code`) and under the protocol alone (`SSE`). They bypass locust's total: `Aggregated` is about
requests.
Averages are exact; percentiles are locust's, rounded to whole numbers below 100 and to two digits above.
"""

from typing import TYPE_CHECKING

from drafthouse_load.locust_users.observed import Slo, StreamRecord

if TYPE_CHECKING:  # importing locust patches the standard library, which is the locustfile's to decide
    from locust.stats import RequestStats

REQUEST = "E2E"


def log_stream(stats: "RequestStats", protocol: str, domain: str, record: StreamRecord, slo: Slo) -> None:
    """Book everything about an ended stream but the request itself."""
    figures: list[tuple[str, float]] = [("TTFT", record.ttft_ms)]
    if record.tpot_ms is not None:
        figures.append(("TPOT", record.tpot_ms))
    figures += [("ITL", gap_ms) for gap_ms in record.gaps_ms]
    figures += [("tokens/event", count) for count in record.tokens_per_event]
    if record.acceptance_percent is not None:
        figures.append(("acceptance %", record.acceptance_percent))
    if slo.met_by(record) and slo.is_set:
        figures.append(("goodput", record.e2e_ms))
    for kind, value in figures:
        _log(stats, protocol, domain, kind, value)
    if slo.is_set:
        _log(stats, protocol, domain, "SLO met %", 100.0 if slo.met_by(record) else 0.0)


def log_failure(stats: "RequestStats", protocol: str, domain: str, slo: Slo) -> None:
    """A request that failed did not keep the SLO; the failure itself is locust's to count."""
    if slo.is_set:
        _log(stats, protocol, domain, "SLO met %", 0.0)


def _log(stats: "RequestStats", protocol: str, domain: str, kind: str, value: float) -> None:
    for name in (f"{protocol} {domain}", protocol):
        stats.get(name, kind).log(value, 0)  # type: ignore[arg-type]  # locust's own times are floats, too
