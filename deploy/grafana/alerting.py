"""When somebody should look: Prometheus' alerts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alert:
    """One rule."""

    name: str
    expression: str
    minutes: int
    severity: str
    summary: str
    remedy: str


_FAILED = 'sum by (instance) (rate(drafthouse_request_failure_total{code!~"CANCELLED|INVALID_ARG|UNSUPPORTED"}[5m]))'
_SUCCEEDED = "sum by (instance) (rate(drafthouse_request_success_total[5m]))"
_ACCEPTANCE = (
    "sum by (instance) (rate(drafthouse_spec_decode_num_accepted_tokens_total[15m]))"
    " / sum by (instance) (rate(drafthouse_spec_decode_num_draft_tokens_total[15m]))"
)
_OPEN = "sum by (instance) (drafthouse_num_requests_running + drafthouse_num_requests_waiting + drafthouse_num_requests_preempted)"
ALERTING = (
    Alert(
        "DrafthouseDown",
        'up{job="drafthouse"} == 0',
        1,
        "critical",
        "The metrics port does not answer.",
        "See the server's log; start it again.",
    ),
    Alert(
        "DrafthouseNotServing",
        'drafthouse_slots == 0 or (up{job="drafthouse"} == 1 unless on (instance) drafthouse_slots)',
        2,
        "critical",
        "No front door is loaded.",
        "`cosine` has been unloaded or died and was not reloaded: see the server's log.",
    ),
    Alert(
        "DrafthouseStuck",
        "sum by (instance) (drafthouse_num_requests_running) > 0 and on (instance) rate(drafthouse_rounds_total[2m]) == 0"
        " and on (instance) rate(drafthouse_prefill_tokens_total[2m]) == 0",
        2,
        "critical",
        "Requests run, and no round ends.",
        "The target does not answer: see the log for EngineError.",
    ),
    Alert(
        "DrafthouseSlotsLost",
        f"drafthouse_slots_free < drafthouse_slots and on (instance) {_OPEN} == 0",
        5,
        "warning",
        "Nobody is being served, and slots are held.",
        "`stats_request` says which engine; loading it anew frees them.",
    ),
    Alert(
        "DrafthouseQueueLong",
        "sum by (instance) (drafthouse_num_requests_waiting) > on (instance) 4 * drafthouse_slots",
        5,
        "warning",
        "More than four requests wait for every slot.",
        "More slots, another policy or another server.",
    ),
    Alert(
        "DrafthouseFirstTokenLate",
        "histogram_quantile(0.95, sum by (instance, le) (rate(drafthouse_time_to_first_token_seconds_bucket[10m]))) > 5",
        10,
        "warning",
        "One request in twenty waits more than 5 s for its first token.",
        "See the queue and what prefill takes.",
    ),
    Alert(
        "DrafthouseFailing",
        f"{_FAILED} / ({_FAILED} + ({_SUCCEEDED} or {_FAILED} * 0)) > 0.05",
        5,
        "critical",
        "More than 5 % of the requests fail, cancelled and refused ones not counted.",
        "The label `code` tells why; the log knows more of INTERNAL.",
    ),
    Alert(
        "DrafthouseDraftsRejected",
        f"{_ACCEPTANCE} < 0.1",
        15,
        "warning",
        "The target accepts less than a tenth of the drafts.",
        "Texts that no drafter knows, or drafters that do not belong to this target.",
    ),
    Alert(
        "DrafthouseDraftsTooGood",
        f"{_ACCEPTANCE} > 0.98",
        15,
        "warning",
        "The target accepts nearly everything: often a sign of texts that repeat themselves.",
        "Look at some answers.",
    ),
    Alert(
        "DrafthouseRecomputing",
        "sum by (instance) (rate(drafthouse_recomputed_tokens_total[10m]))"
        " > 0.3 * sum by (instance) (rate(drafthouse_prefill_tokens_total[10m]))",
        10,
        "warning",
        "Much of what prefill computes had been computed before.",
        "Evictions: more slots, a smaller batch, or a policy that preempts less.",
    ),
)
