"""What a replay did, and the figures of a report."""

from dataclasses import dataclass, field

import numpy as np

from drafthouse.pipeline.stats import RoundStats


@dataclass(frozen=True, slots=True)
class ReplayRecord:
    """One request, in seconds of virtual time since the replay began."""

    prompt_index: int
    arrival_s: float
    first_token_s: float
    end_s: float
    num_output_tokens: int

    @property
    def latency_s(self) -> float:
        """From sending to the last token."""
        return self.end_s - self.arrival_s


@dataclass(frozen=True)
class ReplayResult:
    """What a replay did; the definitions are those of docs/metrics.md."""

    records: tuple[ReplayRecord, ...]  # in the order of the prompts
    wall_s: float
    target_busy_s: float
    drafters_busy_s: float  # at least one drafter was
    both_busy_s: float
    sums: RoundStats  # over all rounds
    rounds: tuple[RoundStats, ...] = field(repr=False)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over the wall clock."""
        return sum(record.num_output_tokens for record in self.records) / self.wall_s

    @property
    def latencies_ms(self) -> list[float]:
        """By prompt."""
        return [1e3 * record.latency_s for record in self.records]

    @property
    def accepted_len_mean(self) -> float:
        """Tokens per request and verification, with the bonus token."""
        return self.sums.num_verified_emitted / self.sums.num_verified_rows if self.sums.num_verified_rows else 0.0

    @property
    def verify_idle_share(self) -> float:
        """Share of the wall clock in which the target's core is free."""
        return 1.0 - self.target_busy_s / self.wall_s

    @property
    def draft_idle_share(self) -> float:
        """Share of the wall clock in which no drafter's core is in use."""
        return 1.0 - self.drafters_busy_s / self.wall_s

    @property
    def num_verifications(self) -> int:
        """Rounds in which at least one request was verified."""
        return sum(1 for stats in self.rounds if stats.num_verified_rows)

    @property
    def overlap_share(self) -> float:
        """Share of the wall clock in which the target's core and at least one drafter's are in use."""
        return self.both_busy_s / self.wall_s

    def figures(self) -> dict[str, float]:
        """The figures of a report's row."""
        latencies = self.latencies_ms
        return {
            "tokens_per_s": self.tokens_per_s,
            "latency_ms_mean": float(np.mean(latencies)),
            "latency_ms_p95": float(np.percentile(latencies, 95)),
            "accepted_len_mean": self.accepted_len_mean,
            "verify_idle_share": self.verify_idle_share,
            "draft_idle_share": self.draft_idle_share,
        }
