"""The metrics without a server: what is counted, what is written when, and what the documentation says about it."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drafthouse.pipeline.stats import PipelineSnapshot, RequestEnd, RoundStats, SchedulingFigures, VerifiedDraft
from drafthouse.triton import metrics
from drafthouse.triton.metrics import FLUSHES_PER_REWRITE, MetricsPublisher
from drafthouse.triton.metrics_table import BY_NAME, METRICS, NUM_QUEUES, Series
from drafthouse.triton.metrics_tally import Collected, Collector, Observation, Tally
from drafthouse.triton.statistics import Statistics
from fakes import pb_utils

MS = 1_000_000
DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
DRAFT = VerifiedDraft(
    scores=np.array([0.7, 0.6, np.nan], np.float32),
    proposals=np.array([[5, 6], [5, -1], [-1, -1]], np.int32),
    source=np.array([0, 1, 0, 0], np.int32),
    accepted=(0, 1, 0),
)
ROUND = RoundStats(
    wall_ns=40 * MS,
    prefill_wall_ns=10 * MS,
    num_prefill_tokens=7,
    num_prefill_emitted=1,
    draft_wall_ns=8 * MS,
    draft_session_ns=5 * MS,
    num_verified_rows=2,
    num_verified_emitted=5,
    num_drafts=1,
    num_drafted=4,
    num_accepted=3,
    verify_wall_ns=20 * MS,
    verify_session_ns=18 * MS,
    num_recomputed_tokens=6,
    verified_drafts=[DRAFT],
    recomputed_by_queue=Counter({0: 2, 40: 4}),
)
END = RequestEnd("stop", True, 11, 1_000 * MS, 1_050 * MS, 1_200 * MS, 2_200 * MS)
SNAPSHOT = PipelineSnapshot(
    mode="cosine",
    policy="laps-sd",
    num_waiting=1,
    num_running=2,
    max_active=8,
    max_batch=2,
    slots_free=0,
    slots_total=0,
    num_rounds=1,
    num_finished=1,
    scheduling=SchedulingFigures(
        num_preempted=1,
        num_preemptions=3,
        num_evictions=1,
        queue_lengths={0: 2, 3: 2},
        running_by_queue={0: 2},
        preempted_by_queue={3: 1},
        preemptions_by_queue={0: 1, 3: 2},
        evictions_by_queue={20: 1},
        length_error={"relative": 0.5},
        estimation_error={"at_arrival": {"relative": None}, "at_perceptible": {"relative": 0.25}},
    ),
    sums=RoundStats(),
    num_failed={"CANCELLED": 2},
    speculation={"depth": 4, "reliability": {"expected_calibration_error": 0.03}},
)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[tuple[tuple[str, str], ...], pb_utils.Metric]]]:
    monkeypatch.setattr(metrics, "BREATH_S", 0.0)
    pb_utils.registry.clear()
    yield pb_utils.registry
    pb_utils.registry.clear()


def collector(snapshot: PipelineSnapshot = SNAPSHOT) -> Collector:
    tally, statistics = Tally(("code", "math", "docs")), Statistics("fp32", {})
    for stats in (ROUND, ROUND):
        statistics.add(stats)
        tally.saw_round(stats)
    tally.saw_end(END)
    return Collector(tally, statistics.counters, lambda: snapshot, "fp32")


def value(name: str, **labels: str) -> float:
    return pb_utils.registry[name][tuple(sorted(labels.items()))].value()


def test_drafts_are_counted_by_drafter_domain_and_position() -> None:
    sums = collector().collect().sums
    spec = "drafthouse_spec_decode_num"
    assert sums[Series(f"{spec}_drafts_total", ("code",))] == 2
    assert sums[Series(f"{spec}_draft_tokens_total", ("code", "code"))] == 6
    assert sums[Series(f"{spec}_draft_tokens_total", ("math", "code"))] == 2
    assert Series(f"{spec}_draft_tokens_total", ("docs", "code")) not in sums
    assert sums[Series(f"{spec}_drafts_by_drafter_total", ("math", "code"))] == 2
    assert sums[Series(f"{spec}_accepted_tokens_total", ("code", "code"))] == 4
    assert [sums[Series(f"{spec}_accepted_tokens_per_pos_total", (str(position),))] for position in range(3)] == [2, 2, 2]


def test_a_draft_that_nobody_routed_belongs_to_no_field_and_a_drafter_of_which_nothing_was_taken_worked_all_the_same() -> None:
    tally = Tally(("code", "math", "docs"))
    draft = replace(DRAFT, scores=np.full(3, np.nan, np.float32), source=np.array([0], np.int32), accepted=())
    tally.saw_round(replace(ROUND, verified_drafts=[draft]))
    sums = tally.collect()[0]
    assert sums[Series("drafthouse_spec_decode_num_drafts_total", ("unknown",))] == 1
    assert sums[Series("drafthouse_spec_decode_num_drafts_by_drafter_total", ("math", "unknown"))] == 1
    assert Series("drafthouse_spec_decode_num_draft_tokens_total", ("math", "unknown")) not in sums


def test_rounds_are_counted_as_the_statistics_count_them() -> None:
    sums = collector().collect().sums
    assert sums[Series("drafthouse_generation_tokens_total")] == 12
    assert sums[Series("drafthouse_stage_seconds_total", ("verify",))] == pytest.approx(0.040)
    assert sums[Series("drafthouse_session_seconds_total", ("draft",))] == pytest.approx(0.010)
    assert sums[Series("drafthouse_recomputed_tokens_total", ("0",))] == 4
    assert sums[Series("drafthouse_recomputed_tokens_total", (str(NUM_QUEUES - 1),))] == 8, "queues beyond the last share its label"
    assert sums[Series("drafthouse_num_preemptions_total", ("3",))] == 2
    assert sums[Series("drafthouse_num_evictions_total", (str(NUM_QUEUES - 1),))] == 1
    assert sums[Series("drafthouse_request_failure_total", ("CANCELLED",))] == 2
    assert sums[Series("drafthouse_request_success_total", ("stop",))] == 1


def test_a_round_is_observed_without_its_prefill_and_a_request_by_its_times() -> None:
    seen = [(o.series.name, pytest.approx(o.seconds)) for o in collector().collect().observations]
    assert seen == [
        ("drafthouse_round_seconds", 0.03),
        ("drafthouse_round_seconds", 0.03),
        ("drafthouse_request_queue_time_seconds", 0.05),
        ("drafthouse_time_to_first_token_seconds", 0.2),
        ("drafthouse_e2e_request_latency_seconds", 1.2),
        ("drafthouse_request_time_per_output_token_seconds", 0.1),
    ]


def test_observations_are_handed_out_once_and_sums_again() -> None:
    source = collector()
    first, second = source.collect(), source.collect()
    assert second.sums == first.sums
    assert second.observations == []


@pytest.mark.parametrize(
    ("end", "names"),
    [
        (replace(END, outcome="CANCELLED", is_success=False), ["request_queue_time", "time_to_first_token"]),
        (replace(END, outcome="UNAVAILABLE", is_success=False, first_scheduled_time_ns=0, first_token_time_ns=0), []),
        (replace(END, num_output_tokens=1), ["request_queue_time", "time_to_first_token", "e2e_request_latency"]),
    ],
)
def test_a_request_is_observed_as_far_as_it_came(end: RequestEnd, names: list[str]) -> None:
    tally = Tally(())
    tally.saw_end(end)
    assert [o.series.name for o in tally.collect()[1]] == [f"drafthouse_{name}_seconds" for name in names]


def test_a_clock_set_back_gives_no_negative_time() -> None:
    tally = Tally(())
    tally.saw_end(replace(END, arrival_time_ns=3_000 * MS))
    assert min(o.seconds for o in tally.collect()[1]) == 0.0


def test_gauges_name_every_queue_and_leave_out_what_is_not_known() -> None:
    gauges = collector().collect().gauges
    waiting = [gauges[Series("drafthouse_num_requests_waiting", (str(queue),))] for queue in range(NUM_QUEUES)]
    assert waiting == [0, 0, 0, 1, *[0] * (NUM_QUEUES - 4)]
    assert gauges[Series("drafthouse_num_requests_running", ("0",))] == 2
    assert gauges[Series("drafthouse_slots")] == gauges[Series("drafthouse_slots_free")] == 8, "before the target's first answer"
    assert gauges[Series("drafthouse_estimation_error_ratio", ("time_at_perceptible",))] == 0.25
    assert Series("drafthouse_estimation_error_ratio", ("time_at_arrival",)) not in gauges
    known = collector(replace(SNAPSHOT, slots_free=3, slots_total=5)).collect().gauges
    assert (known[Series("drafthouse_slots_free")], known[Series("drafthouse_slots")]) == (3, 5)


def test_every_series_fits_its_family() -> None:
    collected = collector().collect()
    for series in (*collected.sums, *collected.gauges, *(o.series for o in collected.observations)):
        assert len(series.values) == len(BY_NAME[series.name].labels), series
    assert {series.name for series in collected.gauges} == {spec.name for spec in METRICS if spec.kind == "gauge"}
    assert {BY_NAME[series.name].kind for series in collected.sums} == {"counter"}


class Readings:
    """What `collect` says, set by the test."""

    def __init__(self) -> None:
        self.sums: dict[Series, float] = {Series("drafthouse_rounds_total"): 3.0}
        self.gauges: dict[Series, float] = {Series("drafthouse_slots_free"): 8.0}
        self.observations = [Observation(Series("drafthouse_round_seconds"), 0.02)]

    def collect(self) -> Collected:
        observations, self.observations = self.observations, []
        return Collected(dict(self.sums), dict(self.gauges), observations)


def test_a_flush_writes_what_has_changed() -> None:
    readings = Readings()
    publisher = MetricsPublisher(readings.collect)
    publisher.flush()
    readings.sums[Series("drafthouse_rounds_total")] = 5.0
    readings.gauges[Series("drafthouse_slots_free")] = 7.0
    publisher.flush()
    assert value("drafthouse_rounds_total") == 5.0
    assert value("drafthouse_slots_free") == 7.0
    assert pb_utils.registry["drafthouse_round_seconds"][()]._observed == [0.02]


def test_gauges_that_another_process_changed_are_written_again() -> None:
    publisher = MetricsPublisher(Readings().collect)
    publisher.flush()
    pb_utils.registry["drafthouse_slots_free"][()].set(0.0)
    for _ in range(FLUSHES_PER_REWRITE):
        publisher.flush()
    assert value("drafthouse_slots_free") == 8.0


def test_a_retired_publisher_zeroes_its_gauges_once_and_goes_on_counting() -> None:
    readings = Readings()
    publisher = MetricsPublisher(readings.collect)
    publisher.flush()
    publisher.retire()
    publisher.flush()
    assert value("drafthouse_slots_free") == 0.0
    pb_utils.registry["drafthouse_slots_free"][()].set(6.0)  # its successor
    readings.sums[Series("drafthouse_rounds_total")] = 9.0
    for _ in range(2 * FLUSHES_PER_REWRITE):
        publisher.flush()
    assert value("drafthouse_slots_free") == 6.0
    assert value("drafthouse_rounds_total") == 9.0


def test_a_successor_goes_on_where_the_last_one_ended() -> None:
    for _ in range(2):
        publisher = MetricsPublisher(Readings().collect)
        publisher.start()
        publisher.close()
    assert value("drafthouse_rounds_total") == 6.0
    assert len(pb_utils.registry["drafthouse_rounds_total"]) == 1


def test_nothing_is_lost_when_a_write_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(metric: pb_utils.Metric, seconds: float) -> None:
        raise pb_utils.TritonModelException("the server is busy")

    publisher = MetricsPublisher(Readings().collect, period_s=0.0)
    with monkeypatch.context() as broken:
        broken.setattr(pb_utils.Metric, "observe", fail)
        with pytest.raises(pb_utils.TritonModelException):
            publisher.flush()
    publisher.start()
    publisher.close()
    assert pb_utils.registry["drafthouse_round_seconds"][()]._observed == [0.02]
    assert value("drafthouse_rounds_total") == 3.0
    assert not caplog.records


def test_a_collection_that_fails_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    readings, times = Readings(), iter((TimeoutError, TimeoutError))

    def collect() -> Collected:
        for error in times:
            raise error
        return readings.collect()

    publisher = MetricsPublisher(collect, period_s=0.0)
    publisher.start()
    while "drafthouse_rounds_total" not in pb_utils.registry:
        assert publisher._thread.is_alive()
    publisher.close()
    assert len(caplog.records) == 1, "once per outage"


def test_the_documentation_names_every_metric_with_its_kind_and_labels() -> None:
    rows = re.findall(r"^\| `(drafthouse_\w+)` \| (\w+) \|([^|]*)\|", DOCS.read_text(), re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == {spec.name: (spec.kind, spec.labels) for spec in METRICS}


def test_names_and_buckets_are_what_prometheus_expects() -> None:
    for spec in METRICS:
        assert (spec.kind == "counter") == spec.name.endswith("_total"), spec.name
        assert (spec.kind == "histogram") == bool(spec.buckets), spec.name
        assert list(spec.buckets) == sorted(set(spec.buckets)), spec.name
        assert not {"le", "quantile", "job", "instance"} & set(spec.labels), spec.name
