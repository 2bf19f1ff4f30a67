"""Shows the metrics at Triton's metrics port, from a thread of its own.

Every call of Triton's metrics API is a round trip to the server process that keeps Python's lock (22 µs). So nothing of it happens in a
round: once a second the thread works out what has changed, and calls once per changed counter and gauge and once per observation.

**Nothing is ever deleted.** The server's registry gives two models that make the same metric the same object, and deleting it in one takes
it away from the other: after a load call that replaces a loaded `cosine`, whose old process ends after the new one has begun, the
server crashed at the next increment. So the metrics belong to the server: they go on where the last load left off, as counters should, and
gauges read 0 while no `cosine` is loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from drafthouse.triton.metrics_table import BY_NAME, METRICS_SECONDS, Series
from drafthouse.triton.metrics_tally import Collected, Observation

logger = logging.getLogger(__name__)
PERIOD_S = 1.0
BREATH_S = 50e-6  # after every call: whoever wants Python's lock gets it
FLUSHES_PER_REWRITE = (
    4  # of the gauges that are not 0: the process that this one has replaced may have set them to 0 after this one wrote them
)
CLOSE_TIMEOUT_S = 5.0
_immortal: list[object] = []  # see above: a metric is deleted with its last reference


class TritonRegistry:
    """Families and metrics of the server, made when first needed. Every call blocks for a round trip."""

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}
        self._metrics: dict[Series, Any] = {}
        _immortal.extend((self._families, self._metrics))

    def increment(self, series: Series, amount: float) -> None:
        """Add to a counter; amount > 0."""
        self._metric(series).increment(amount)

    def set(self, series: Series, value: float) -> None:
        """Set a gauge."""
        self._metric(series).set(value)

    def observe(self, series: Series, value: float) -> None:
        """Note one value of a histogram."""
        self._metric(series).observe(value)

    def _metric(self, series: Series) -> Any:  # noqa: ANN401 - Triton's module has no types
        metric = self._metrics.get(series)
        if metric is None:
            spec = BY_NAME[series.name]
            labels = dict(zip(spec.labels, series.values, strict=True))
            buckets = {"buckets": list(spec.buckets)} if spec.kind == "histogram" else {}
            metric = self._metrics[series] = self._family(series.name).Metric(labels=labels, **buckets)
        return metric

    def _family(self, name: str) -> Any:  # noqa: ANN401
        family = self._families.get(name)
        if family is None:
            spec = BY_NAME[name]
            kind = getattr(pb_utils.MetricFamily, spec.kind.upper())
            family = self._families[name] = pb_utils.MetricFamily(name=name, description=spec.help, kind=kind)
        return family


class MetricsPublisher:
    """Writes what `collect` says into the registry until it is closed. What could not be written is written the next time."""

    def __init__(self, collect: Callable[[], Collected], period_s: float = PERIOD_S) -> None:
        self._collect = collect
        self._period_s = period_s
        self._registry = TritonRegistry()
        self._shown_sums: dict[Series, float] = {}
        self._shown_gauges: dict[Series, float] = {}
        self._pending: deque[Observation] = deque()
        self._num_flushes = 0
        self._is_failing = False
        self._is_retired = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drafthouse-metrics", daemon=True)

    def start(self) -> None:
        """Begin. Metrics may be made while the model is being loaded."""
        self._thread.start()

    def retire(self) -> None:
        """Set the gauges to 0 with the next flush and leave them alone from then on: a successor may be writing them already."""
        self._is_retired = True

    def close(self) -> None:
        """Write the last figures and end. To be called when the pipeline has ended."""
        self.retire()
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        self._try(self.flush)
        while not self._closing.wait(self._period_s):
            self._try(self.flush)
        self._try(self.flush)

    def _try(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:
            if not self._is_failing:  # once per outage
                logger.exception("metrics could not be written")
            self._is_failing = True
        else:
            self._is_failing = False

    def flush(self) -> None:
        """Write everything that has changed."""
        collected = self._collect()
        self._pending.extend(collected.observations)
        if self._num_flushes % FLUSHES_PER_REWRITE == 0 and not self._is_retired:
            self._shown_gauges = {series: value for series, value in self._shown_gauges.items() if value == 0.0}
        self._num_flushes += 1
        sums = {**collected.sums, Series(METRICS_SECONDS): time.thread_time()}  # of this thread alone
        for series, amount in self._grown(sums):
            self._registry.increment(series, amount)
            self._shown_sums[series] = sums[series]
            time.sleep(BREATH_S)
        gauges = dict.fromkeys(self._shown_gauges, 0.0) if self._is_retired else collected.gauges
        for series, value in gauges.items():
            if self._shown_gauges.get(series) != value:
                self._registry.set(series, value)
                self._shown_gauges[series] = value
                time.sleep(BREATH_S)
        while self._pending:
            observation = self._pending[0]
            self._registry.observe(observation.series, observation.seconds)
            self._pending.popleft()
            time.sleep(BREATH_S)

    def _grown(self, sums: Mapping[Series, float]) -> Iterator[tuple[Series, float]]:
        """What counters have to be incremented by. One that is at 0 is shown, too: a rate needs a beginning."""
        for series, value in sums.items():
            shown = self._shown_sums.get(series)
            if shown is None or value > shown:
                yield series, value - (shown or 0.0)
