"""Figures of one round, and their sums: for metrics, and for benchmarks that ask where the time went."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedDraft:
    """What became of one request's draft in a round. D drafters, in the repository's order.

    It holds on to what the round has anyway, so that it costs the round nothing; whoever wants figures works them out later, elsewhere.
    """

    scores: NDArray[np.float32]  # [D], how good each drafter was held to be; NaN where nobody has routed it
    proposals: NDArray[np.int32]  # [D, K], on the trunk; -1 = none
    source: NDArray[np.int32]  # [n], per verified token: the drafter that proposed it
    accepted: tuple[int, ...]  # per accepted and emitted token, from the first position on: its drafter

    @property
    def best_drafter(self) -> int:
        """The drafter that suited the request best; -1 where nobody has routed it."""
        return best_of(self.scores)

    @property
    def working(self) -> NDArray[np.bool_]:
        """[D], who proposed anything for it."""
        proposed: NDArray[np.bool_] = (self.proposals >= 0).any(axis=1)
        return proposed | (self.drafted > 0)

    @property
    def drafted(self) -> NDArray[np.int64]:
        """[D], verified tokens by the drafter that proposed each."""
        return np.bincount(self.source, minlength=len(self.scores))


def best_of(scores: NDArray[np.float32]) -> int:
    """The index of the best score: [D] -> 0 ... D - 1, or -1 where all are NaN."""
    scored = np.where(np.isnan(scores), np.float32(-1.0), scores)
    best = int(scored.argmax()) if len(scored) else -1
    return best if best >= 0 and scored[best] >= 0.0 else -1


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """One request that was answered. Times are wall-clock nanoseconds since the epoch, 0 = it never came to that."""

    outcome: str  # finish reason, or the code of the error
    is_success: bool
    num_output_tokens: int
    arrival_time_ns: int
    first_scheduled_time_ns: int
    first_token_time_ns: int
    last_token_time_ns: int


@dataclass(slots=True)
class RoundStats:
    """One round. Filled by the stages while it runs; nobody changes it afterwards.

    ``*_session_ns`` is time inside engine sessions on the critical path, as the engines report it; ``*_wall_ns`` is
    what the stage took here. A round without prefill spends ``wall_ns - draft_session_ns - verify_session_ns`` on
    everything that is not a model.
    """

    wall_ns: int = 0
    num_prefill_rows: int = 0
    num_prefill_tokens: int = 0
    num_prefill_emitted: int = 0  # tokens committed by prefill: one per prompt whose last chunk was computed
    num_recomputed_tokens: int = 0  # of all tokens computed: those that the target had held before, until an eviction or a loss
    num_lost_caches: int = 0  # rows whose cache the target did not have any more: it expired, or the engine was loaded anew
    prefill_wall_ns: int = 0
    prefill_session_ns: int = 0  # the target's; the drafters take in the prompt beside it
    draft_wall_ns: int = 0
    draft_session_ns: int = 0
    ahead_session_ns: int = 0  # of drafts made while the target verified, off the critical path unless they take longer
    num_drafted_ahead: int = 0  # drafts gone on with while they were verified
    num_ready_ahead: int = 0  # requests that had a draft when their round began
    num_verified_rows: int = 0  # the decode batch; rows the target answered
    num_verified_tokens: int = 0  # computed for all rows together: each one's last committed token and its draft
    num_verified_emitted: int = 0  # tokens committed by verification, with the bonus token
    num_drafts: int = 0  # requests of which at least one draft token was verified
    num_drafted: int = 0  # tree nodes the target verified
    num_accepted: int = 0  # those of them that were emitted
    verify_wall_ns: int = 0
    target_wall_ns: int = 0  # of that the target's call alone, without what ran beside it
    verify_session_ns: int = 0
    verified_drafts: list[VerifiedDraft] = field(default_factory=list, compare=False)  # one per draft; of a single round, not summed
    recomputed_by_queue: Counter[int] = field(default_factory=Counter)  # `num_recomputed_tokens` by scheduler queue; not summed

    @property
    def num_emitted(self) -> int:
        """Tokens committed in this round."""
        return self.num_prefill_emitted + self.num_verified_emitted

    @property
    def made_progress(self) -> bool:
        """False when no row was computed: all of them wait for a slot or have to be prefilled again."""
        return self.num_prefill_rows + self.num_verified_rows > 0

    def add(self, other: "RoundStats") -> None:
        """Sum ``other`` into this one."""
        for name in _NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_NAMES = tuple(item.name for item in dataclasses.fields(RoundStats) if item.type is int)


@dataclass(frozen=True, slots=True)
class SchedulingFigures:
    """What scheduling does: gauges, and counters since the start."""

    num_preempted: int  # have a slot and do not take part in rounds
    num_preemptions: int  # times that a request which ran did not take part in the next round
    num_evictions: int  # slots taken from a preempted request
    queue_lengths: Mapping[int, int]  # open requests by the policy's queue, 0 = the most urgent
    running_by_queue: Mapping[int, int]
    preempted_by_queue: Mapping[int, int]
    preemptions_by_queue: Mapping[int, int]  # by the queue in which the request was then
    evictions_by_queue: Mapping[int, int]
    length_error: Mapping[str, object]  # of predicted output lengths, see `LengthError`
    estimation_error: Mapping[str, object]  # of estimated execution times, see `EstimationError`


@dataclass(frozen=True, slots=True)
class PipelineSnapshot:
    """The state of the pipeline at one moment, and sums since it started."""

    mode: str
    policy: str
    num_waiting: int  # without a slot
    num_running: int  # taking part in rounds
    max_active: int  # slots
    max_batch: int
    slots_free: int  # of the target, by its last answer
    slots_total: int  # 0 before its first answer
    num_rounds: int
    num_finished: int
    scheduling: SchedulingFigures
    sums: RoundStats  # a copy
    is_rehearsing: bool = False  # made-up requests hold slots, or are about to
    num_failed: Mapping[str, int] = field(default_factory=dict)  # by error code
    speculation: Mapping[str, object] = field(default_factory=dict)  # see `Speculation.statistics`
