"""The discrete-event simulation of one server: virtual time, one event per round, the server's own queue, policy and estimates."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policy import Policy
from drafthouse.scheduling.ready_queue import ReadyQueue
from drafthouse.scheduling.tenure import Tenure
from drafthouse_load.simulate.costs import RoundCosts
from drafthouse_load.simulate.packing import Packing
from drafthouse_load.simulate.request import SimulatedRequest
from drafthouse_load.simulate.workload import Workload

PROGRESS_EVERY = 1000  # finished requests

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ServerShape:
    """What the simulated server is."""

    batch: int  # rows of a round
    slots: int  # caches kept at a time, >= batch
    starvation_limit_ns: int
    max_tokens: int  # of every request: a cap, not a prediction
    max_verified_tokens: int = 0  # of a verification, over all rows; 0: no limit


@dataclass
class Outcome:
    """What happened, by request in order of arrival [n], and in sum."""

    arrival_ns: Ints
    first_token_ns: Ints
    finish_ns: Ints
    attained_ns: Ints
    preemptions: int = 0
    evictions: int = 0
    recomputed_tokens: int = 0
    rounds: int = 0
    rows: int = 0
    busy_ns: int = 0
    finished: list[int] = field(default_factory=list)  # in order of their ends

    @property
    def makespan_ns(self) -> int:
        """From the start to the last end."""
        return int(self.finish_ns.max())


class Simulation:
    """One run of one policy. Rounds are never interrupted; between two of them the queue chooses anew, as in the server.

    In a round those who lack a cache are prefilled, one after the other, then all draft and are verified together.
    """

    def __init__(self, workload: Workload, costs: RoundCosts, policy: Policy, estimator: Estimator, shape: ServerShape) -> None:
        """Nothing of the arguments but ``policy`` and ``estimator``, which learn, is changed."""
        self._workload, self._costs, self._estimator, self._shape = workload, costs, estimator, shape
        self._queue = ReadyQueue[SimulatedRequest](policy, shape.starvation_limit_ns, shape.slots)
        self._running: list[SimulatedRequest] = []
        self._holders: dict[int, SimulatedRequest] = {}  # of a slot, by request_uid
        limit = shape.max_verified_tokens
        self._packing = Packing(limit, workload.num_draft_tokens, shape.batch, costs, estimator) if limit else None
        self._now_ns = 0
        self._arrivals = [*workload.arrival_ns.tolist()]
        self._num_arrived = 0
        drafts = workload.num_draft_tokens
        rows = range(shape.batch + 1)
        self._draft_ns = [costs.draft_ns(count, drafts) if count else 0 for count in rows]
        self._verify_ns = [costs.verify_ns(count, count * (1 + drafts)) if count else 0 for count in rows]
        empty = np.zeros(len(workload), np.int64)
        self._outcome = Outcome(workload.arrival_ns, empty, empty.copy(), empty.copy())

    def run(self, advance: Callable[[int], None]) -> Outcome:
        """Serve every request. ``advance`` is told of every `PROGRESS_EVERY` that have finished."""
        finished, reported = self._outcome.finished, 0
        while len(finished) < len(self._workload):
            self._admit()
            self._switch(self._queue.select(self._shape.batch, self._now_ns))
            self._round()
            if len(finished) - reported >= PROGRESS_EVERY:
                advance(len(finished) - reported)
                reported = len(finished)
        advance(len(finished) - reported)
        return self._outcome

    def _admit(self) -> None:
        """Take in who has arrived by now; with nobody there, sleep until somebody does."""
        arrivals, at = self._arrivals, self._num_arrived
        if not self._queue:
            self._now_ns = max(self._now_ns, arrivals[at])
        while at < len(arrivals) and arrivals[at] <= self._now_ns:
            request = SimulatedRequest(at, self._workload, self._shape.max_tokens)
            self._estimator.saw_arrival(request)
            self._queue.add(request, self._now_ns)
            at += 1
        self._num_arrived = at

    def _switch(self, chosen: list[SimulatedRequest]) -> None:
        """Preempt and start, and give slots to those who need one."""
        if chosen == self._running:
            return
        going = {request.request_uid for request in chosen}
        for request in self._running:
            if request.request_uid not in going:
                request.is_running = False
                self._outcome.preemptions += 1
        num_lacking = sum(not request.holds_slot for request in chosen)
        self._evict(len(self._holders) + num_lacking - self._shape.slots, going)
        for request in chosen:
            if not request.holds_slot:
                request.tenure = Tenure()
            request.is_running = request.holds_slot = True
            self._holders[request.request_uid] = request
        self._running = chosen

    def _evict(self, num_slots: int, going: set[int]) -> None:
        """Take the caches of those to whom they are worth least."""
        if num_slots <= 0:
            return
        losers = self._queue.least_valuable(request for uid, request in self._holders.items() if uid not in going)[:num_slots]
        for request in losers:
            request.holds_slot = False
            request.lost_cache = True
            request.num_uncached = request.prompt_len + request.num_output_tokens
            del self._holders[request.request_uid]
            self._queue.rerank(request)
        self._outcome.evictions += len(losers)

    def _round(self) -> None:
        """Prefill, draft, verify, commit."""
        running, outcome = self._running, self._outcome
        start_ns = self._now_ns
        for request in running:
            if request.num_uncached > 1:
                self._prefill(request)
        prefilled_ns = self._now_ns
        verified = self._verified([request for request in running if request.num_output_tokens < request.output_len])
        draft_ns, verify_ns = self._round_ns(verified[0][0], len(verified)) if verified else (0, 0)
        self._now_ns += draft_ns + verify_ns
        whole_ns = self._now_ns - start_ns
        for request in running:
            request.attained_ns += whole_ns
            request.tenure.had(whole_ns, True)
        num_emitted = sum(self._commit(request, most, draft_ns, verify_ns, len(verified)) for request, most in verified)
        if self._packing is not None:
            self._packing.saw_round(num_emitted, self._now_ns - prefilled_ns)
        outcome.rounds += 1
        outcome.rows += len(running)
        outcome.busy_ns += whole_ns
        self._running = [request for request in running if not self._leaves(request)]

    def _verified(self, candidates: list[SimulatedRequest]) -> list[tuple[SimulatedRequest, int]]:
        """Who is verified with how many draft tokens; with a limit of verified tokens the server's assignment says so."""
        if self._packing is not None and candidates:
            return self._packing.choose(candidates)
        return [(request, self._workload.num_draft_tokens) for request in candidates]

    def _round_ns(self, first: SimulatedRequest, rows: int) -> tuple[int, int]:
        """Drafting and verifying, for ``first`` and others."""
        draft_ns, verify_ns = self._draft_ns[rows], self._verify_ns[rows]
        measured = self._workload.measured
        if measured is None or measured.round_ns is None or rows > 1:
            return draft_ns, verify_ns
        whole_ns = int(measured.round_ns[first.next_round])
        draft_ns = min(draft_ns, whole_ns)
        return draft_ns, whole_ns - draft_ns

    def _prefill_ns(self, request: SimulatedRequest, num_tokens: int) -> int:
        measured = self._workload.measured
        if measured is None or request.lost_cache:
            return self._costs.prefill_ns(num_tokens)
        return int(measured.prefill_ns[request.request_uid])

    def _prefill(self, request: SimulatedRequest) -> None:
        """All tokens that its cache lacks; the first time, that brings its first token."""
        num_tokens = request.num_uncached
        prefill_ns = self._prefill_ns(request, num_tokens)
        self._now_ns += prefill_ns
        request.num_uncached = 1
        self._estimator.saw_prefill(num_tokens, prefill_ns)
        if request.lost_cache:
            self._outcome.recomputed_tokens += num_tokens
        if not request.num_output_tokens:
            request.num_output_tokens = 1
            request.first_token_ns = self._now_ns

    def _commit(self, request: SimulatedRequest, most: int, draft_ns: int, verify_ns: int, rows: int) -> int:
        """What its verification with at most ``most`` draft tokens brought: the tokens that it emits."""
        at, workload = request.next_round, self._workload
        num_drafted, num_accepted = min(workload.num_drafted(at), most), min(workload.accepted[at], most)
        # With shorter drafts it takes more rounds than were drawn for it: then they come again.
        request.next_round = at + 1 if at + 1 < request.end_round else request.first_round
        num_output_tokens = min(request.num_output_tokens + num_accepted + 1, request.output_len)
        num_emitted = num_output_tokens - request.num_output_tokens
        request.num_output_tokens = num_output_tokens
        request.num_verifications += 1
        request.num_drafted += num_drafted
        request.num_accepted += num_accepted
        self._estimator.saw_round(request, num_drafted, num_accepted, draft_ns, verify_ns, rows)
        return num_emitted

    def _leaves(self, request: SimulatedRequest) -> bool:
        """Whether it is finished; if not, it is ranked anew."""
        if request.num_output_tokens < request.output_len:
            self._queue.update(request, self._now_ns)
            return False
        index, outcome = request.request_uid, self._outcome
        self._queue.remove(request)
        del self._holders[index]
        request.is_running = request.holds_slot = False
        self._estimator.saw_end(request, True)
        outcome.first_token_ns[index] = request.first_token_ns
        outcome.finish_ns[index] = self._now_ns
        outcome.attained_ns[index] = request.attained_ns
        outcome.finished.append(index)
        return True
