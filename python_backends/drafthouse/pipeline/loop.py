"""The main loop: every request from its arrival to its last token."""

import asyncio
import dataclasses
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drafthouse.core.clock import now_ns
from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse.engine.contract import EngineClient, EngineError, EngineLimits
from drafthouse.fusion.contract import Fusion
from drafthouse.pipeline.book import Book
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import GenerationRequest, ResponseSink
from drafthouse.pipeline.links import FusionLink, TargetLink
from drafthouse.pipeline.rehearsal import Rehearsal, made_up_uids
from drafthouse.pipeline.speculation import Speculation
from drafthouse.pipeline.stage_draft import DraftStage
from drafthouse.pipeline.stage_route import RouteStage
from drafthouse.pipeline.stage_target import PrefillStage, VerifyStage, internal_error
from drafthouse.pipeline.state import RequestState, new_state
from drafthouse.pipeline.stats import PipelineSnapshot, RequestEnd, RoundStats
from drafthouse.pipeline.turns import Turns, new_estimator
from drafthouse.pipeline.ways import Ways
from drafthouse.routing.contract import Router

logger = logging.getLogger(__name__)
PAUSE_WITHOUT_PROGRESS_S = 0.005
SWEEP_PERIOD_S = 0.1
IDLE_RETRY_S = 1.0  # between attempts to deliver releases while there is nothing else to do
MAX_BACKOFF_FACTOR = 25


@dataclass(frozen=True, slots=True)
class Services:
    """What the pipeline is built on."""

    target: EngineClient
    limits: EngineLimits  # the target's
    token_bytes: Callable[[int], bytes]  # of the target's tokenizer
    fusion: Fusion | None = None
    router: Router | None = None
    drafter_names: tuple[str, ...] = ()  # in the repository's order: the index is a drafter's number everywhere
    exact_trees: bool = True  # False: the target rounds side branches so that they would change texts; drafts are chains then
    on_round: Callable[[RoundStats], None] | None = None  # hears about every round, failed ones included
    on_end: Callable[[RequestEnd], None] | None = None  # hears about every request that was taken in and has been answered


class Pipeline:
    """Continuous batching with speculation: requests join and leave between rounds.

    `submit` and `stop` may be called from any thread; `run` is one asyncio task, started once.
    """

    def __init__(self, config: PipelineConfig, services: Services) -> None:
        self._config = config
        self._services = services
        self._usable_drafters = config.usable_drafters(services.drafter_names)
        self._target = TargetLink(services.target)
        self._fusion = FusionLink(services.fusion)
        routes = RouteStage(services.router if config.switches.routing else None, config.route_every)
        num_drafters, num_usable = len(services.drafter_names), len(self._usable_drafters)
        self._speculation = Speculation(config, services.limits, num_drafters, num_usable, services.exact_trees)
        self._draft = DraftStage(self._fusion, routes, self._speculation, services.limits)
        self._prefill = PrefillStage(self._target, self._draft, services.limits, config)
        self._verify = VerifyStage(self._target, routes, self._speculation, config)
        self._ways = Ways(config.switches.overlap, self._speculation.company)
        self._turns = Turns(config, new_estimator(config), config.max_active(services.limits.slots), self._release)
        self._book = Book(self._turns, config.max_queue_size, services.on_end)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopping = threading.Event()
        self._drafted_in_vain: set[int] = set()  # request uids, in the last overlapped round
        self._is_open = False
        self._rehearsal = self._new_rehearsal()
        self._num_rounds = 0
        self._sums = RoundStats()

    async def run(self) -> None:
        """Serve until `stop`; then every open request has been answered.

        A target that does not answer is waited for; any other surprise fails the requests of its round, not the loop.
        """
        self._loop = asyncio.get_running_loop()
        sweeper = asyncio.ensure_future(self._sweep_regularly())
        try:
            while not self._stopping.is_set():
                active: list[RequestState] = []
                try:
                    active = self._book.next_batch()
                    if active:
                        await self._round(active)
                    else:
                        await self._idle()
                except EngineError as error:
                    await self._wait_for_target(error)
                except Exception:
                    error_id = secrets.token_hex(4)
                    logger.exception("error %s: a round of %d requests failed", error_id, len(active))
                    await self._give_up(active or self._book.open_requests(), error_id)
        finally:
            sweeper.cancel()
            self._book.close()
        await self._flush_releases()

    async def _round(self, active: Sequence[RequestState]) -> None:
        """Prefill one chunk, draft, verify; what is committed is sent at once."""
        started_ns = now_ns()
        stats = RoundStats()
        try:
            await self._target.revive()
            await self._prefill.run(active, stats)
            self._book.settle(active)
            decoding = [state for state in active if state.is_running and not self._prefill.is_due(state)]
            if decoding:
                way = self._ways.decide(len(decoding))
                self._speculation.has_company = way.has_company
                await (self._overlapped(decoding, stats) if way.overlaps else self._in_turn(decoding, stats))
            self._turns.end(active, stats)
            self._book.settle(active)
        finally:
            stats.wall_ns = now_ns() - started_ns
            self._observe(stats)
        if decoding:
            self._learn(stats)
        if not stats.made_progress:
            await asyncio.sleep(PAUSE_WITHOUT_PROGRESS_S)

    def _learn(self, stats: RoundStats) -> None:
        """Adaptation hears of the round. What it cannot digest must not harm requests."""
        try:
            self._speculation.learn(stats)
            self._ways.learn(stats)
        except Exception:
            logger.exception("nothing was learned from a round")

    async def _in_turn(self, decoding: Sequence[RequestState], stats: RoundStats) -> None:
        """The plain way: draft for everybody, then verify everybody."""
        self._speculation.decide(len(decoding), overlaps=False)
        await self._draft.run(self._draft.lacking(decoding), stats)
        ready = [state for state in decoding if state.is_running]  # some may have been answered meanwhile
        if ready:
            going = self._speculation.choose(ready, stats.draft_wall_ns)
            await self._verify.run(going, stats)
            for state in going:
                state.draft = None

    async def _overlapped(self, decoding: Sequence[RequestState], stats: RoundStats) -> None:
        """While the target verifies, the drafters go on from where each request is expected to end, and draft for those that lack one."""
        self._speculation.decide(len(decoding), overlaps=True)
        # Whoever was drafted for in vain goes without: else it would wait for as long as others have drafts.
        lacking = [state for state in self._draft.lacking(decoding) if state.request_uid not in self._drafted_in_vain]
        ready = [state for state in decoding if state not in lacking]
        stats.num_ready_ahead += len(ready)
        if not self._speculation.goes_without(len(ready), len(lacking)):
            await self._draft.run(lacking, stats)
            ready, lacking = list(decoding), []
        ready = [state for state in ready if state.is_running]
        if ready:
            going = self._speculation.choose(ready, stats.draft_wall_ns)
            await self._verify.run(going, stats, self._draft.meanwhile(going, lacking, stats))
        self._drafted_in_vain = {state.request_uid for state in lacking if state.draft is None}

    @property
    def speculation(self) -> Speculation:
        """What is learned about chances and stage times: for reports, and for replays that begin with recorded times."""
        return self._speculation

    def submit(self, request: GenerationRequest, sink: ResponseSink) -> None:
        """Take a request, or answer it at once with UNAVAILABLE when the queue is full or the server stops."""
        self._book.submit(request, sink, self._new_state, self._wake_up)

    def open(self) -> None:
        """Calls to other models are possible from now on: Triton's Python backend must not be asked for any while a model loads.

        Requests open the pipeline by themselves; this is for whoever comes before the first one. May be called from any thread.
        """
        if not self._is_open:
            self._is_open = True
            for request_uid in made_up_uids(self._services.limits):
                self._release(request_uid)
            self._wake_up()

    def stop(self) -> None:
        """End `run` after the current round; open requests are answered UNAVAILABLE."""
        self._stopping.set()
        self._wake_up()

    def snapshot(self) -> PipelineSnapshot:
        """Gauges and sums since the start. Call it from the loop's thread for figures of one moment."""
        return PipelineSnapshot(
            mode=self._config.mode,
            policy=self._config.policy,
            num_waiting=self._book.num_waiting,
            num_running=self._book.num_running,
            is_rehearsing=self._rehearsal is not None and self._is_open,
            max_active=self._turns.num_slots,
            max_batch=self._turns.max_batch,
            slots_free=self._target.slots_free,
            slots_total=self._target.slots_total,
            num_rounds=self._num_rounds,
            num_finished=self._book.num_finished,
            scheduling=self._turns.figures(),
            sums=dataclasses.replace(self._sums),
            num_failed=self._book.num_failed,
            speculation=self._speculation.statistics(),
        )

    def check_integrity(self) -> list[str]:
        """What does not add up in the books, and in the target's slots once it knows of every release; [] = all well."""
        violations = self._book.violations()
        nothing_runs = self._book.num_running == 0 and len(self._target.releases) == 0
        if nothing_runs and self._target.slots_free != self._target.slots_total:
            violations.append(f"nothing runs, and the target has {self._target.slots_free} of {self._target.slots_total} slots free")
        return violations

    def _new_state(self, request: GenerationRequest, sink: ResponseSink, sequence_no: int) -> RequestState:
        services = self._services
        return new_state(request, sink, sequence_no, services.drafter_names, self._usable_drafters, services.token_bytes)

    def _new_rehearsal(self) -> Rehearsal | None:
        if self._config.rehearsal == "off" or not self._speculation.is_adaptive:
            return None
        usable = np.array([name in self._usable_drafters for name in self._services.drafter_names], np.bool_)
        return Rehearsal(self._target, self._fusion, self._speculation, self._services.limits, usable, self._is_wanted)

    def _is_wanted(self) -> bool:
        """True when there is something better to do than to rehearse."""
        return self._stopping.is_set() or self._book.num_waiting > 0

    def _wake_up(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake.set)

    def _release(self, request_uid: int) -> None:
        self._target.releases.add(request_uid)
        self._fusion.releases.add(request_uid)

    async def _flush_releases(self) -> bool:
        return all(await asyncio.gather(self._target.flush(), self._fusion.flush()))

    async def _sweep_regularly(self) -> None:
        """Rounds sweep when they start; this is for the time in which an engine does not come back from one."""
        while True:
            await asyncio.sleep(SWEEP_PERIOD_S)
            self._book.sweep()

    async def _idle(self) -> None:
        """Nothing to do: deliver releases, check the books, sleep until a request arrives."""
        self._wake.clear()
        if self._book.num_waiting:
            return  # it arrived before the event was cleared
        if self._rehearsal is not None and self._is_open:
            if await self._rehearsal.run():
                self._rehearsal = None
            return
        flushed = await self._flush_releases()
        for violation in self.check_integrity():
            logger.error("the books do not balance: %s", violation)
        try:
            await asyncio.wait_for(self._wake.wait(), None if flushed else IDLE_RETRY_S)
        except TimeoutError:
            logger.debug("still idle; trying again to deliver releases")

    async def _wait_for_target(self, error: EngineError) -> None:
        """The target did not answer: give its client time to bring it back, or answer its requests UNAVAILABLE."""
        num_failures = max(self._target.num_failures, self._target.num_failed_batches)
        attempts = self._config.target_retry_attempts
        logger.warning("the target does not answer (%d in a row): %s", num_failures, error)
        if num_failures > attempts:
            for state in self._book.open_requests():
                self._book.fail(state, ServerError(ErrorCode.UNAVAILABLE, "target", "does not answer", "try again later"))
            self._target.num_failed_batches = 0  # the batch is gone
            return
        factor = min(2 ** min(num_failures - 1, 10), MAX_BACKOFF_FACTOR)
        await asyncio.sleep(self._config.target_retry_delay_ms * factor / 1e3)

    async def _give_up(self, states: Sequence[RequestState], error_id: str) -> None:
        """A bug: the requests it hit are answered INTERNAL, the loop goes on."""
        hit = {state.sequence_no for state in states}
        for state in self._book.open_requests():
            if state.sequence_no in hit:
                self._book.fail(state, internal_error(error_id))
        await asyncio.sleep(PAUSE_WITHOUT_PROGRESS_S)

    def _observe(self, stats: RoundStats) -> None:
        self._num_rounds += 1
        self._sums.add(stats)
        if self._services.on_round is None:
            return
        try:
            self._services.on_round(stats)
        except Exception:
            logger.exception("the observer of rounds failed")
