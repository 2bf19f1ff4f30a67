"""Who takes part in the next round, and who keeps a slot: the queue's order put into effect, and what it is learned from.

A request is *waiting* (no slot), *running* (takes part in rounds) or *preempted* (keeps its slot and its caches). Preemption is free until
somebody more urgent needs the slot: then the least valuable preempted request is *evicted*, and computed again when it is next chosen.

Admission cannot deadlock: a round has no more rows than there are slots, and those who do not take part in it can be evicted, so whoever
is chosen gets a slot. Nor can requests evict each other for ever: a slot has to be earned before it can be taken (`Tenure`).
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drafthouse.core.clock import now_ns
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import FinishReason
from drafthouse.pipeline.state import Draft, RequestState
from drafthouse.pipeline.stats import RoundStats, SchedulingFigures
from drafthouse.scheduling.estimates.registry import LENGTH_PREDICTORS
from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse.scheduling.ready_queue import ReadyQueue
from drafthouse.scheduling.tenure import Tenure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Before:
    """A request's figures when a round began: what the round brought is the difference."""

    progress: tuple[int, int]
    draft: Draft | None
    num_verifications: int
    num_drafted: int
    num_accepted: int

    @staticmethod
    def of(state: RequestState) -> "_Before":
        progress = state.num_tokens, state.target_cached_len
        return _Before(progress, state.draft, state.num_verifications, state.num_drafted, state.num_accepted)

    def took_part(self, state: RequestState) -> bool:
        """Whether anything was done for it: not when the round's budget for prompts ran out before it, or a row was refused."""
        return self.progress != (state.num_tokens, state.target_cached_len) or self.draft is not state.draft


class Turns:
    """Open requests in the order of the policy. All calls come from the loop's thread."""

    def __init__(self, config: PipelineConfig, estimator: Estimator, num_slots: int, release: Callable[[int], None]) -> None:
        """Args: num_slots: of the target, at least 1; release: told each request that the engines have to forget."""
        self.num_slots = num_slots
        self.max_batch = min(config.max_batch or num_slots, num_slots)
        self._estimator = estimator
        self._release = release
        self._queue: ReadyQueue[RequestState] = ReadyQueue(
            POLICIES.create(config.policy, estimator), config.starvation_limit_ms * 1_000_000, num_slots
        )
        self._running: dict[int, RequestState] = {}  # by sequence_no
        self._holders: dict[int, RequestState] = {}  # by sequence_no; running and preempted
        self._before: dict[int, _Before] = {}  # by sequence_no; of the round under way
        self._round_began_ns = 0
        self._preemptions: Counter[int] = Counter()  # by queue
        self._evictions: Counter[int] = Counter()

    def add(self, state: RequestState) -> None:
        """A request arrived."""
        state.arrival_ns = now_ns()
        self._tell(lambda: self._estimator.saw_arrival(state))
        self._queue.add(state, state.arrival_ns)
        state.queue = self._queue.queue_of(state)

    def next(self) -> list[RequestState]:
        """Who should take part in the next round, most urgent first; nothing is changed by asking. Empty only when nobody is there.

        Raises RuntimeError when the queue's choice is none.
        """
        chosen = self._queue.select(self.max_batch, now_ns())
        if not min(len(self._queue), 1) <= len(chosen) == len({state.sequence_no for state in chosen}) <= self.max_batch:
            raise RuntimeError(f"{len(chosen)} of {len(self._queue)} requests were chosen for {self.max_batch} places")
        return chosen

    def begin(self, chosen: Sequence[RequestState]) -> None:
        """A round of these, each of which gets a slot; the others that ran are preempted."""
        self._round_began_ns = now_ns()
        self._before = {state.sequence_no: _Before.of(state) for state in chosen}
        for number in self._running.keys() - self._before.keys():
            preempted = self._running.pop(number)
            preempted.is_running = False
            self._preemptions[preempted.queue] += 1
        self._make_room([state for state in chosen if not state.holds_slot])
        for state in chosen:
            if not state.holds_slot:
                state.admitted_len, state.tenure = state.num_tokens, Tenure()
            state.is_running = state.holds_slot = True
            self._running[state.sequence_no] = self._holders[state.sequence_no] = state

    def _make_room(self, newcomers: Sequence[RequestState]) -> None:
        num_lacking = len(self._holders) + len(newcomers) - self.num_slots
        if num_lacking <= 0:
            return
        preempted = [state for state in self._holders.values() if not (state.is_running or state.sequence_no in self._before)]
        for state in self._queue.least_valuable(preempted)[:num_lacking]:
            del self._holders[state.sequence_no]
            state.holds_slot = False
            state.forget_caches()
            self._release(state.request_uid)
            self._evictions[state.queue] += 1
            self._queue.refresh(state)
            state.queue = self._queue.queue_of(state)

    def end(self, states: Sequence[RequestState], stats: RoundStats) -> None:
        """The round is over: those whom it served have had their turn. Before they are answered, so that the last round counts, too."""
        round_ended_ns = now_ns()
        if stats.num_prefill_tokens:
            self._tell(lambda: self._estimator.saw_prefill(stats.num_prefill_tokens, stats.prefill_wall_ns))
        for state in states:
            before = self._before.pop(state.sequence_no, None)
            if before is None or state not in self._queue or not before.took_part(state):
                continue
            round_ns = round_ended_ns - self._round_began_ns
            state.attained_ns += round_ns
            state.tenure.had(round_ns, state.num_tokens > state.admitted_len)
            state.domain = state.best_drafter
            if state.num_verifications > before.num_verifications:
                self._saw_round(state, before, round_ns, stats)
            self._queue.update(state, round_ended_ns)
            state.queue = self._queue.queue_of(state)

    def _saw_round(self, state: RequestState, before: _Before, round_ns: int, stats: RoundStats) -> None:
        """Whatever is not drafting counts as verification, others' prompts too: the two are what the round took for this request."""
        num_drafted, num_accepted = state.num_drafted - before.num_drafted, state.num_accepted - before.num_accepted
        was_prefilled = state.num_tokens - before.progress[0] > num_accepted + 1  # its prompt's end gave a token before the verification
        verify_ns = max(round_ns - stats.draft_wall_ns - was_prefilled * stats.prefill_wall_ns, 0)
        num_rows = max(stats.num_verified_rows, 1)
        self._tell(lambda: self._estimator.saw_round(state, num_drafted, num_accepted, stats.draft_wall_ns, verify_ns, num_rows))

    def remove(self, state: RequestState) -> None:
        """It has been answered. Its slot is free from now on."""
        before = self._before.pop(state.sequence_no, None)
        if before is not None and before.took_part(state):  # it leaves in the middle of a round
            state.attained_ns += now_ns() - self._round_began_ns
        if state in self._queue:
            self._queue.remove(state)
        self._running.pop(state.sequence_no, None)
        if self._holders.pop(state.sequence_no, None) is not None and state.first_scheduled_time_ns:
            self._release(state.request_uid)
        state.is_running = state.holds_slot = False
        self._tell(lambda: self._estimator.saw_end(state, state.finish_reason is FinishReason.STOP))

    def _tell(self, news: Callable[[], None]) -> None:
        """What the estimator cannot digest must not harm requests."""
        try:
            news()
        except Exception:
            logger.exception("nothing was learned about how long requests take")

    @property
    def num_running(self) -> int:
        """Requests that take part in rounds."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._queue) - len(self._holders)

    @property
    def running(self) -> list[RequestState]:
        """Those that take part in rounds."""
        return list(self._running.values())

    def figures(self) -> SchedulingFigures:
        """Gauges, and counters since the start."""
        return SchedulingFigures(
            num_preempted=len(self._holders) - len(self._running),
            num_preemptions=self._preemptions.total(),
            num_evictions=self._evictions.total(),
            queue_lengths=self._queue.queue_lengths(),
            running_by_queue=Counter(state.queue for state in self._running.values()),
            preempted_by_queue=Counter(state.queue for state in self._holders.values() if not state.is_running),
            preemptions_by_queue=dict(self._preemptions),
            evictions_by_queue=dict(self._evictions),
            length_error=self._estimator.length_error().as_dict(),
            estimation_error=self._estimator.error().as_dict(),
        )

    def violations(self, num_listed: int) -> list[str]:
        """What does not add up; ``num_listed``: open requests, by the book."""
        holders, running = self._holders, self._running
        checks = {
            f"{len(self._queue)} requests in the queue, {num_listed} listed": len(self._queue) == num_listed,
            f"{len(running)} running, {self.max_batch} allowed": len(running) <= self.max_batch,
            f"{len(holders)} hold a slot, {self.num_slots} allowed": len(holders) <= self.num_slots,
            "a request runs without a slot": running.keys() <= holders.keys(),
            "a finished request holds a slot": not any(state.finished or state not in self._queue for state in holders.values()),
        }
        return [message for message, holds in checks.items() if not holds]


def new_estimator(config: PipelineConfig) -> Estimator:
    """What the configured policy asks about the future of requests."""
    return Estimator(LENGTH_PREDICTORS.create(config.length_predictor))
