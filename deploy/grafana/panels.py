"""What the dashboard shows: rows of panels, each with its queries."""

from __future__ import annotations

import re
from dataclasses import dataclass

WINDOW = "$__rate_interval"
SELECTOR = '{instance=~"$instance"}'


@dataclass(frozen=True)
class Query:
    """An expression in which <NAME> is a metric of ours and [w] the panel's window, and the legend of its series."""

    text: str
    legend: str = ""

    @property
    def expression(self) -> str:
        """As Grafana sends it: of the servers that are selected."""
        return re.sub(r"<(\w+)>", rf"drafthouse_\1{SELECTOR}", self.text).replace("[w]", f"[{WINDOW}]")


@dataclass(frozen=True)
class Panel:
    """One graph. unit: Grafana's name; stacked: the series add up to something."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    stacked: bool = False


def quantiles(name: str) -> tuple[Query, ...]:
    """Median and 95 % of a histogram."""
    return tuple(Query(f"histogram_quantile({q}, sum by (le) (rate(<{name}_bucket>[w])))", f"{q:.0%}") for q in (0.5, 0.95))


SPEC = "spec_decode_num"
OF_DRAFTS = f"/ on () group_left sum(rate(<{SPEC}_drafts_total>[w]))"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Service": (
        Panel("Tokens per second", "Emitted by all requests together.", (Query("sum(rate(<generation_tokens_total>[w]))", "tokens/s"),)),
        Panel(
            "Requests",
            "Taking part in rounds, keeping a slot while others run, without a slot.",
            tuple(Query(f"sum(<num_requests_{state}>)", state) for state in ("running", "preempted", "waiting")),
            stacked=True,
        ),
        Panel("Slots of the target", "Free, and all there are.", (Query("sum(<slots_free>)", "free"), Query("sum(<slots>)", "all"))),
        Panel("Time to first token", "Arrival to first token.", quantiles("time_to_first_token_seconds"), "s"),
        Panel("Time per output token", "After the first, per request.", quantiles("request_time_per_output_token_seconds"), "s"),
        Panel("Latency of requests", "Arrival to last token.", quantiles("e2e_request_latency_seconds"), "s"),
        Panel(
            "Requests answered per second",
            "By finish reason, and by error code.",
            (
                Query("sum by (finished_reason) (rate(<request_success_total>[w]))", "{{finished_reason}}"),
                Query("sum by (code) (rate(<request_failure_total>[w]))", "{{code}}"),
            ),
            "reqps",
        ),
        Panel("Configuration", "1 for what is loaded.", (Query("<info> > 0", "{{mode}}, {{policy}}, {{precision}}"),)),
    ),
    "Speculation": (
        Panel(
            "Mean acceptance length",
            "Tokens per verified draft, the target's own included, by the field of the text.",
            (
                Query(
                    f"1 + sum by (domain) (rate(<{SPEC}_accepted_tokens_total>[w])) / sum by (domain) (rate(<{SPEC}_drafts_total>[w]))",
                    "{{domain}}",
                ),
            ),
        ),
        Panel(
            "Acceptance rate",
            "Accepted draft tokens / verified draft tokens, by who proposed them.",
            (
                Query(
                    f"sum by (drafter) (rate(<{SPEC}_accepted_tokens_total>[w])) / sum by (drafter) (rate(<{SPEC}_draft_tokens_total>[w]))",
                    "{{drafter}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Acceptance by position",
            "Share of the drafts of which this position was accepted.",
            (
                Query(
                    f"sum by (position) (rate(<{SPEC}_accepted_tokens_per_pos_total>[w])) {OF_DRAFTS}",
                    "{{position}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Routing: who drafts",
            "Share of the drafts for which a drafter proposed. Several may share a draft.",
            (
                Query(
                    f"sum by (drafter) (rate(<{SPEC}_drafts_by_drafter_total>[w])) {OF_DRAFTS}",
                    "{{drafter}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Accepted tokens per second",
            "By the drafter that had proposed them.",
            (Query(f"sum by (drafter) (rate(<{SPEC}_accepted_tokens_total>[w]))", "{{drafter}}"),),
            stacked=True,
        ),
        Panel(
            "Depth and calibration",
            "Draft depth of the last round (0: it did not pay), and the error of the chances of acceptance in percent.",
            (Query("max(<draft_depth>)", "depth"), Query("100 * max(<calibration_error>)", "calibration error, %")),
        ),
    ),
    "Rounds": (
        Panel("Time of a round", "Prefill not included.", quantiles("round_seconds"), "s"),
        Panel(
            "Stages of a round",
            "Mean per round; what is not a stage is the loop's own work.",
            (Query("sum by (stage) (rate(<stage_seconds_total>[w])) / on () group_left sum(rate(<rounds_total>[w]))", "{{stage}}"),),
            "s",
            stacked=True,
        ),
        Panel(
            "Engines at work",
            "Share of the time inside sessions. `ahead` runs beside a verification.",
            (Query("sum by (stage) (rate(<session_seconds_total>[w]))", "{{stage}}"),),
            "percentunit",
        ),
        Panel(
            "Requests per round",
            "Mean size of a verification.",
            (Query("sum(rate(<verified_requests_total>[w])) / sum(rate(<rounds_total>[w]))", "requests"),),
        ),
        Panel("Cost of these metrics", "Of one core.", (Query("sum(rate(<metrics_seconds_total>[w]))", "writing"),), "percentunit"),
    ),
    "Scheduling": (
        Panel(
            "Waiting, by queue",
            "Of the policy; 0 is the most urgent.",
            (Query("sum by (queue) (<num_requests_waiting>)", "{{queue}}"),),
            stacked=True,
        ),
        Panel("Running, by queue", "Of the policy.", (Query("sum by (queue) (<num_requests_running>)", "{{queue}}"),), stacked=True),
        Panel("Time until scheduled", "Arrival to first round.", quantiles("request_queue_time_seconds"), "s"),
        Panel(
            "Preemptions and evictions per second",
            "A preempted request keeps its slot; an evicted one is computed again.",
            (
                Query("sum(rate(<num_preemptions_total>[w])) or vector(0)", "preemptions"),
                Query("sum(rate(<num_evictions_total>[w])) or vector(0)", "evictions"),
            ),
        ),
        Panel(
            "Tokens computed again",
            "Per second, beside all that prefill computes.",
            (
                Query("sum(rate(<recomputed_tokens_total>[w])) or vector(0)", "again"),
                Query("sum(rate(<prefill_tokens_total>[w]))", "prefill"),
                Query("sum(rate(<lost_caches_total>[w]))", "lost caches"),
            ),
        ),
        Panel(
            "Error of the estimates",
            "Sum of absolute errors over the sum of true values, since the load.",
            (Query("max by (estimate) (<estimation_error_ratio>)", "{{estimate}}"),),
            "percentunit",
        ),
    ),
}
