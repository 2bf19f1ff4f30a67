"""From what the pipeline tells to the values of the metrics: sums, observations and gauges, without Triton."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drafthouse.pipeline.stats import PipelineSnapshot, RequestEnd, RoundStats, VerifiedDraft
from drafthouse.triton.metrics_table import NUM_QUEUES, SESSION_SECONDS, STAGE_SECONDS, Series

NO_DOMAIN = "unknown"
_NS = 1e-9
_SPEC = "drafthouse_spec_decode_num"
# Series that are sums of `Statistics.counters` times a unit.
_FROM_COUNTERS: Mapping[Series, tuple[tuple[str, ...], float]] = {
    Series("drafthouse_rounds_total"): (("rounds",), 1.0),
    Series("drafthouse_verified_requests_total"): (("verified_rows",), 1.0),
    Series("drafthouse_generation_tokens_total"): (("emitted_tokens", "prefill_emitted_tokens"), 1.0),
    Series("drafthouse_prefill_tokens_total"): (("prefill_tokens",), 1.0),
    Series("drafthouse_lost_caches_total"): (("lost_caches",), 1.0),
    **{Series(STAGE_SECONDS, (stage,)): ((f"{stage}_wall_ns",), _NS) for stage in ("prefill", "draft", "verify")},
    **{Series(SESSION_SECONDS, (stage,)): ((f"{stage}_session_ns",), _NS) for stage in ("prefill", "draft", "ahead", "verify")},
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One value for a histogram."""

    series: Series
    seconds: float


class Tally:
    """Sums over rounds and requests. The pipeline's thread only leaves its notes; they are added up on the thread that publishes them."""

    def __init__(self, drafter_names: Sequence[str]) -> None:
        self._names = tuple(drafter_names)
        self._rounds: deque[RoundStats] = deque()
        self._ends: deque[RequestEnd] = deque()
        self._sums: Counter[Series] = Counter()

    def saw_round(self, stats: RoundStats) -> None:
        """A round is over; nobody changes ``stats`` any more. Costs the caller one append."""
        self._rounds.append(stats)

    def saw_end(self, end: RequestEnd) -> None:
        """A request was answered. Costs the caller one append."""
        self._ends.append(end)

    def collect(self) -> tuple[dict[Series, float], list[Observation]]:
        """The sums since the start, and the observations since the last call. On one thread."""
        observations: list[Observation] = []
        for _ in range(len(self._rounds)):
            observations += self._add_round(self._rounds.popleft())
        for _ in range(len(self._ends)):
            observations += self._add_end(self._ends.popleft())
        return dict(self._sums), observations

    def _add_round(self, stats: RoundStats) -> list[Observation]:
        for queue, num_tokens in stats.recomputed_by_queue.items():
            self._sums[Series("drafthouse_recomputed_tokens_total", (queue_label(queue),))] += num_tokens
        for draft in stats.verified_drafts:
            self._add_draft(draft)
        if not stats.num_verified_rows:
            return []
        return [Observation(Series("drafthouse_round_seconds"), (stats.wall_ns - stats.prefill_wall_ns) * _NS)]

    def _add_draft(self, draft: VerifiedDraft) -> None:
        sums, best = self._sums, draft.best_drafter
        domain = self._names[best] if best >= 0 else NO_DOMAIN
        sums[Series(f"{_SPEC}_drafts_total", (domain,))] += 1
        for name, is_working, num_drafted in zip(self._names, draft.working.tolist(), draft.drafted.tolist(), strict=True):
            if is_working:
                sums[Series(f"{_SPEC}_drafts_by_drafter_total", (name, domain))] += 1
            if num_drafted:
                sums[Series(f"{_SPEC}_draft_tokens_total", (name, domain))] += num_drafted
        for position, source in enumerate(draft.accepted):
            sums[Series(f"{_SPEC}_accepted_tokens_total", (self._names[source], domain))] += 1
            sums[Series(f"{_SPEC}_accepted_tokens_per_pos_total", (str(position),))] += 1

    def _add_end(self, end: RequestEnd) -> list[Observation]:
        observed = []
        if end.first_scheduled_time_ns:
            observed.append(("drafthouse_request_queue_time_seconds", end.first_scheduled_time_ns - end.arrival_time_ns))
        if end.first_token_time_ns:
            observed.append(("drafthouse_time_to_first_token_seconds", end.first_token_time_ns - end.arrival_time_ns))
        if end.is_success:
            self._sums[Series("drafthouse_request_success_total", (end.outcome,))] += 1
            observed.append(("drafthouse_e2e_request_latency_seconds", end.last_token_time_ns - end.arrival_time_ns))
            if end.num_output_tokens > 1:
                per_token_ns = (end.last_token_time_ns - end.first_token_time_ns) // (end.num_output_tokens - 1)
                observed.append(("drafthouse_request_time_per_output_token_seconds", per_token_ns))
        # The wall clock may have been set back in between.
        return [Observation(Series(name), max(time_ns, 0) * _NS) for name, time_ns in observed]


def queue_label(queue: int) -> str:
    """The label of one of the policy's queues; the last one stands for all beyond, so that their number is bounded."""
    return str(min(queue, NUM_QUEUES - 1))


def counter_sums(counters: Mapping[str, int], snapshot: PipelineSnapshot) -> dict[Series, float]:
    """The sums that statistics keep anyway."""
    sums = {series: unit * sum(counters[name] for name in names) for series, (names, unit) in _FROM_COUNTERS.items()}
    figures = snapshot.scheduling
    sums |= _by_queue("drafthouse_num_preemptions_total", figures.preemptions_by_queue)
    sums |= _by_queue("drafthouse_num_evictions_total", figures.evictions_by_queue)
    return sums | {Series("drafthouse_request_failure_total", (code,)): float(count) for code, count in snapshot.num_failed.items()}


def gauge_values(snapshot: PipelineSnapshot, precision: str) -> dict[Series, float]:
    """The gauges at the moment of the snapshot: for every queue, so that one that has emptied does not keep its last figure."""
    figures = snapshot.scheduling
    held = Counter(figures.running_by_queue) + Counter(figures.preempted_by_queue)
    none: Mapping[int, int] = dict.fromkeys(range(NUM_QUEUES), 0)
    gauges: dict[Series, float] = {
        Series("drafthouse_slots_free"): snapshot.slots_free if snapshot.slots_total else snapshot.max_active,
        Series("drafthouse_slots"): snapshot.slots_total or snapshot.max_active,
        Series("drafthouse_info", (str(snapshot.mode), snapshot.policy, precision)): 1.0,
        **_by_queue("drafthouse_num_requests_running", {**none, **figures.running_by_queue}),
        **_by_queue("drafthouse_num_requests_preempted", {**none, **figures.preempted_by_queue}),
        **_by_queue("drafthouse_num_requests_waiting", {**none, **(Counter(figures.queue_lengths) - held)}),
    }
    learned = snapshot.speculation
    errors = {
        "length": figures.length_error,
        **{f"time_{when}": figures.estimation_error[when] for when in ("at_arrival", "at_perceptible")},
    }
    named = {
        Series("drafthouse_draft_depth"): learned["depth"],
        Series("drafthouse_calibration_error"): _figure(learned["reliability"], "expected_calibration_error"),
        **{Series("drafthouse_estimation_error_ratio", (name,)): _figure(error, "relative") for name, error in errors.items()},
    }
    return gauges | {series: float(value) for series, value in named.items() if isinstance(value, int | float)}


def _by_queue(name: str, counts: Mapping[int, int]) -> dict[Series, float]:
    sums: Counter[Series] = Counter()
    for queue, count in counts.items():
        sums[Series(name, (queue_label(queue),))] += count
    return {series: float(count) for series, count in sums.items()}


def _figure(figures: object, name: str) -> object:
    """A figure of a report; None where nothing was seen yet."""
    return figures.get(name) if isinstance(figures, Mapping) else None


@dataclass(frozen=True, slots=True)
class Collected:
    """What is to be shown now. Sums count from the start; observations are new."""

    sums: Mapping[Series, float]
    gauges: Mapping[Series, float]
    observations: Sequence[Observation]


class Collector:
    """Reads everything once per period, on the publishing thread."""

    def __init__(
        self, tally: Tally, counters: Callable[[], Mapping[str, int]], snapshot: Callable[[], PipelineSnapshot], precision: str
    ) -> None:
        """``snapshot`` may block until the pipeline's thread has taken one, and raise when it does not."""
        self._tally = tally
        self._counters = counters
        self._snapshot = snapshot
        self._precision = precision

    def collect(self) -> Collected:
        """Everything at this moment. Whatever ``snapshot`` raises loses nothing: it comes first."""
        snapshot = self._snapshot()
        sums, observations = self._tally.collect()
        return Collected(sums | counter_sums(self._counters(), snapshot), gauge_values(snapshot, self._precision), observations)
