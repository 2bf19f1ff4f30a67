"""Every metric that `cosine` shows at Triton's metrics port. docs/metrics.md defines each; a test holds the two together.

Where vLLM has the same figure its name and definition are taken over (vllm/v1/metrics/loggers.py, vllm/v1/spec_decode/metrics.py),
with `drafthouse_` for `vllm:`, because a name with a colon is kept for recording rules.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
NUM_QUEUES = 16  # label values of `queue`: "0", "1", …, and the last one for whatever lies beyond
STAGE_SECONDS = "drafthouse_stage_seconds_total"
SESSION_SECONDS = "drafthouse_session_seconds_total"
METRICS_SECONDS = "drafthouse_metrics_seconds_total"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One family: name, kind, what it says, its label names, and the upper bounds of a histogram's buckets (seconds)."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Series(NamedTuple):
    """One line of the exposition: a family and the values of its labels, in the family's order."""

    name: str
    values: tuple[str, ...] = ()


_ROUND_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
# vLLM's bounds, with finer ones at the lower end: small models write a token in a few milliseconds.
_FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_TOKEN_BUCKETS = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_REQUEST_BUCKETS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)

_BY_DRAFTER = ("drafter", "domain")
_BY_QUEUE = ("queue",)

METRICS = (
    MetricSpec("drafthouse_spec_decode_num_drafts_total", "counter", "Drafts of which at least one token was verified.", ("domain",)),
    MetricSpec("drafthouse_spec_decode_num_draft_tokens_total", "counter", "Draft tokens verified, by proposer.", _BY_DRAFTER),
    MetricSpec(
        "drafthouse_spec_decode_num_accepted_tokens_total", "counter", "Draft tokens accepted and emitted, by proposer.", _BY_DRAFTER
    ),
    MetricSpec(
        "drafthouse_spec_decode_num_accepted_tokens_per_pos_total",
        "counter",
        "Draft tokens accepted and emitted, by their position in the draft.",
        ("position",),
    ),
    MetricSpec("drafthouse_spec_decode_num_drafts_by_drafter_total", "counter", "Drafts for which this drafter proposed.", _BY_DRAFTER),
    MetricSpec("drafthouse_rounds_total", "counter", "Rounds in which at least one request was verified."),
    MetricSpec("drafthouse_verified_requests_total", "counter", "Requests verified, one per request and round."),
    MetricSpec("drafthouse_generation_tokens_total", "counter", "Tokens emitted."),
    MetricSpec("drafthouse_prefill_tokens_total", "counter", "Tokens computed by prefill, recomputed ones included."),
    MetricSpec("drafthouse_recomputed_tokens_total", "counter", "Tokens the target computed that it had held before.", _BY_QUEUE),
    MetricSpec("drafthouse_lost_caches_total", "counter", "Requests whose cache the target did not have any more."),
    MetricSpec("drafthouse_num_preemptions_total", "counter", "Running requests that were left out of the next round.", _BY_QUEUE),
    MetricSpec("drafthouse_num_evictions_total", "counter", "Slots taken from a preempted request.", _BY_QUEUE),
    MetricSpec("drafthouse_request_success_total", "counter", "Requests answered to the end.", ("finished_reason",)),
    MetricSpec("drafthouse_request_failure_total", "counter", "Requests answered with an error.", ("code",)),
    MetricSpec(STAGE_SECONDS, "counter", "Time of rounds by stage, on the clock of the loop.", ("stage",)),
    MetricSpec(SESSION_SECONDS, "counter", "Of that, inside engine sessions.", ("stage",)),
    MetricSpec(METRICS_SECONDS, "counter", "Processor time of the thread that writes these metrics."),
    MetricSpec("drafthouse_round_seconds", "histogram", "Time of a round without prefill.", buckets=_ROUND_BUCKETS),
    MetricSpec("drafthouse_time_to_first_token_seconds", "histogram", "Arrival to first token.", buckets=_FIRST_TOKEN_BUCKETS),
    MetricSpec(
        "drafthouse_request_time_per_output_token_seconds",
        "histogram",
        "Time per token after the first, one observation per finished request.",
        buckets=_TOKEN_BUCKETS,
    ),
    MetricSpec("drafthouse_e2e_request_latency_seconds", "histogram", "Arrival to last token.", buckets=_REQUEST_BUCKETS),
    MetricSpec("drafthouse_request_queue_time_seconds", "histogram", "Arrival to first round.", buckets=_FIRST_TOKEN_BUCKETS),
    MetricSpec("drafthouse_num_requests_running", "gauge", "Requests that take part in rounds.", _BY_QUEUE),
    MetricSpec("drafthouse_num_requests_waiting", "gauge", "Requests without a slot.", _BY_QUEUE),
    MetricSpec("drafthouse_num_requests_preempted", "gauge", "Requests that keep a slot while others run.", _BY_QUEUE),
    MetricSpec("drafthouse_slots_free", "gauge", "Cache slots of the target that nobody holds, by its last answer."),
    MetricSpec("drafthouse_slots", "gauge", "Cache slots of the target."),
    MetricSpec("drafthouse_draft_depth", "gauge", "Longest draft asked for in the last round."),
    MetricSpec("drafthouse_calibration_error", "gauge", "Expected calibration error of the chances of acceptance."),
    MetricSpec("drafthouse_estimation_error_ratio", "gauge", "Sum of absolute errors over the sum of true values.", ("estimate",)),
    MetricSpec("drafthouse_info", "gauge", "1, with the configuration as labels.", ("mode", "policy", "precision")),
)
BY_NAME = {spec.name: spec for spec in METRICS}
