"""The gateway's own Prometheus metrics; the server's are at Triton's metrics port."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from drafthouse_client.gateway.upstream import Totals

CONTENT_TYPE = CONTENT_TYPE_LATEST
ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/models")
_OTHER = "other"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """A registry of its own, so that several gateways in one process do not share counters."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        prefix = "drafthouse_gateway_"
        self.requests = Counter(prefix + "requests", "Answers by endpoint and HTTP status", ("endpoint", "status"), registry=registry)
        self.open_requests = Gauge(prefix + "open_requests", "Generations under way", registry=registry)
        self.disconnects = Counter(prefix + "disconnects", "Clients that went away before their answer ended", registry=registry)
        self.stalls = Counter(prefix + "stalls", "Clients that left their stream unread for too long", registry=registry)
        self.chunks = Counter(prefix + "chunks", "Chunks received from Triton", registry=registry)
        self.first_chunk_s = Histogram(
            prefix + "time_to_first_token_seconds", "From a request's body to its first chunk", buckets=_SECONDS, registry=registry
        )
        self.request_s = Histogram(
            prefix + "e2e_request_latency_seconds", "From a request's body to the end of its answer", buckets=_SECONDS, registry=registry
        )
        self._prompt_tokens = Counter(prefix + "prompt_tokens", "Prompt tokens of ended requests", registry=registry)
        self._generation_tokens = Counter(prefix + "generation_tokens", "Generated tokens of ended requests", registry=registry)
        self._accepted = Counter(prefix + "accepted_prediction_tokens", "Draft tokens that were accepted", registry=registry)
        self._rejected = Counter(prefix + "rejected_prediction_tokens", "Draft tokens that were rejected", registry=registry)

    def count_answer(self, path: str, status: int) -> None:
        """One answer of any kind; unknown paths share a label, because anybody may invent them."""
        self.requests.labels(path if path in ENDPOINTS else _OTHER, str(status)).inc()

    def count_usage(self, totals: Totals) -> None:
        """What an ended request has used, also one that was cut short."""
        self._prompt_tokens.inc(totals.prompt_tokens)
        self._generation_tokens.inc(totals.completion_tokens)
        self._accepted.inc(totals.accepted_tokens)
        self._rejected.inc(totals.drafted_tokens - totals.accepted_tokens)

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class Stopwatch:
    """Times one request."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._began_s = time.perf_counter()
        self._seen_chunk = False

    def saw_chunk(self) -> None:
        """Called with every chunk."""
        self._metrics.chunks.inc()
        if not self._seen_chunk:
            self._seen_chunk = True
            self._metrics.first_chunk_s.observe(time.perf_counter() - self._began_s)

    def ended(self) -> None:
        """The answer has ended by itself."""
        self._metrics.request_s.observe(time.perf_counter() - self._began_s)
