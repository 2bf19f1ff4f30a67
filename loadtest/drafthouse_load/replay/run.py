"""One replay: closed-loop clients, the real pipeline, virtual time."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import DrafthouseError
from drafthouse.core.sampling_params import SamplingParams
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import GenerationRequest, OutputChunk
from drafthouse.pipeline.loop import Pipeline, Services
from drafthouse.pipeline.rehearsal import drafted_shapes, verified_shapes
from drafthouse.pipeline.stats import RoundStats
from drafthouse.routing.contract import Router
from drafthouse_load.replay.cluster import CallerWork, EngineProcess, Faults, FusionProcess, RouterProcess
from drafthouse_load.replay.costs import StageProfile, check_covers
from drafthouse_load.replay.engine import ReplayEngine
from drafthouse_load.replay.models import TARGET, ReplayModels
from drafthouse_load.replay.outputs import ReferenceText, TargetOutputs
from drafthouse_load.replay.result import ReplayRecord, ReplayResult
from drafthouse_load.replay.virtual_time import BusyMeter, VirtualCore, run_virtual

STALLED_AFTER_S = 60.0  # of virtual time without a token: far longer than any stage takes


class ReplayError(RuntimeError):
    """A request failed or stands still, or its text is not the target's: the pipeline, or the replay, is wrong."""


def run_replay(
    profile: StageProfile,
    models: ReplayModels,
    texts: Sequence[ReferenceText],
    config: PipelineConfig,
    fusion_options: FusionOptions | None = None,
    concurrency: int = 1,
    router: Router | None = None,
    num_warmup: int = 0,
) -> ReplayResult:
    """Serve every text's prompt in virtual time, ``concurrency`` at once, each client sending its next prompt when it has an answer.

    Args:
        profile: stage costs; of the target and of every drafter.
        models: loaded once, used by any number of replays.
        texts: from `ReplayModels.texts`.
        config: of the pipeline, as `cosine` would read it.
        fusion_options: of fusion, as its model would read them.
        concurrency: clients.
        router: instead of the repository's.
        num_warmup: of the first texts, served before the clock starts; so many at once, too.

    Raises:
        ReplayError: a request failed or got another text, nothing was written any more, or a stand-in could not answer.
        DeadlockError: time stands still.
        ClientError: the profile lacks a model.
    """
    check_covers(profile, models.drafter_names)
    run = _Run(profile, models, config, fusion_options or FusionOptions(), router or models.router())
    return run_virtual(run.play(texts, concurrency, num_warmup))


class _Sink:
    """Remembers one answer and when its parts came."""

    cancelled = False

    def __init__(self, wrote: Callable[[], None]) -> None:
        self._wrote = wrote
        self.ids: list[int] = []
        self.first_token_s: float | None = None
        self.error: DrafthouseError | None = None
        self.done = asyncio.Event()

    def send(self, chunk: OutputChunk) -> None:
        self._wrote()
        self.ids += chunk.output_ids
        if self.first_token_s is None:
            self.first_token_s = asyncio.get_running_loop().time()

    def finish(self, chunk: OutputChunk) -> None:
        self.send(chunk)
        self.done.set()

    def fail(self, error: DrafthouseError) -> None:
        self.error = error
        self.done.set()


@dataclass(frozen=True, slots=True)
class _Meters:
    """Time in use of the target's core, of any drafter's, of any of all these."""

    target: BusyMeter
    drafters: BusyMeter
    any: BusyMeter

    def read_s(self) -> NDArray[np.float64]:
        """Target, drafters, both at once; up to this moment."""
        target, drafters = self.target.busy_s, self.drafters.busy_s
        return np.array([target, drafters, target + drafters - self.any.busy_s])


class _Run:
    """One server's life in virtual time."""

    def __init__(
        self, profile: StageProfile, models: ReplayModels, config: PipelineConfig, fusion_options: FusionOptions, router: Router
    ) -> None:
        self._profile = profile
        self._models = models
        self._config = dataclasses.replace(config, rehearsal="off")  # `_rehearse` tells it from the profile
        self._fusion_options = fusion_options
        self._router = router
        self._texts: dict[int, ReferenceText] = {}  # by request uid
        self._rounds: list[RoundStats] = []
        self._meters = _Meters(BusyMeter(), BusyMeter(), BusyMeter())
        self._faults = Faults()
        self._written_s = 0.0  # when something was written last

    async def play(self, texts: Sequence[ReferenceText], concurrency: int, num_warmup: int) -> ReplayResult:
        """All requests, on the running virtual loop."""
        pipeline = Pipeline(self._config, self._services())
        self._rehearse(pipeline)
        serving = asyncio.ensure_future(pipeline.run())
        measuring = asyncio.ensure_future(self._measure(pipeline, texts, concurrency, num_warmup))
        standing_still = asyncio.ensure_future(self._stand_still())
        await asyncio.wait((serving, measuring, standing_still), return_when=asyncio.FIRST_COMPLETED)
        standing_still.cancel()
        if not measuring.done():
            what, books = f"nothing was written for {STALLED_AFTER_S:g} s of virtual time", pipeline.snapshot()
            if serving.done():
                what = f"the pipeline ended: {serving.exception()!r}"
            raise ReplayError(f"{what}; {books.num_running} requests run, {books.num_waiting} wait")
        result = measuring.result()
        pipeline.stop()
        await serving
        if self._faults.seen:
            raise ReplayError(f"{len(self._faults.seen)} calls failed; the first: {self._faults.seen[0]!r}") from self._faults.seen[0]
        return result

    def _wrote(self) -> None:
        self._written_s = asyncio.get_running_loop().time()

    async def _stand_still(self) -> None:
        """Returns when nothing was written for too long."""
        loop = asyncio.get_running_loop()
        while (left_s := self._written_s + STALLED_AFTER_S - loop.time()) > 0:
            await asyncio.sleep(left_s)

    async def _measure(self, pipeline: Pipeline, texts: Sequence[ReferenceText], concurrency: int, num_warmup: int) -> ReplayResult:
        loop = asyncio.get_running_loop()
        await self._serve(pipeline, texts[:num_warmup], concurrency)
        began_s, busy_s, first_round = loop.time(), self._meters.read_s(), len(self._rounds)
        records = await self._serve(pipeline, texts, concurrency)
        wall_s = loop.time() - began_s
        target_s, drafters_s, both_s = (self._meters.read_s() - busy_s).tolist()
        rounds = tuple(self._rounds[first_round:])
        sums = RoundStats()
        for stats in rounds:
            sums.add(stats)
        return ReplayResult(tuple(records), wall_s, target_s, drafters_s, both_s, sums, rounds)

    def _rehearse(self, pipeline: Pipeline) -> None:
        """Tell adaptation what a server's rehearsal would have seen: the recorded times of the same shapes."""
        target, hops = self._profile.engines[TARGET], self._profile.hops
        limits = self._models.target.shape.limits
        for rows, tokens in verified_shapes(limits):
            took_ms = target.session(rows, max(tokens, 2), rows * tokens) + hops.target.ms(rows)
            pipeline.speculation.saw_verification(rows, rows * tokens, 1e6 * took_ms)
        drafter = self._profile.engines[self._models.drafter_names[-1]]
        for rows, depth in drafted_shapes(limits):
            took_ms = depth * drafter.session(rows, 2, rows) + hops.drafter.ms(rows) + hops.fusion.ms(rows) + hops.fanout.ms(rows)
            pipeline.speculation.saw_drafting(rows, depth, 1e6 * took_ms)

    async def _serve(self, pipeline: Pipeline, texts: Sequence[ReferenceText], concurrency: int) -> list[ReplayRecord]:
        records: dict[int, ReplayRecord] = {}
        numbers = iter(range(len(texts)))

        async def client() -> None:
            for index in numbers:
                records[index] = await self._request(pipeline, index, texts[index])

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return [records[index] for index in range(len(texts))]

    async def _request(self, pipeline: Pipeline, index: int, text: ReferenceText) -> ReplayRecord:
        loop = asyncio.get_running_loop()
        request_uid = len(self._texts) + 1
        self._texts[request_uid] = text
        sampling = SamplingParams(end_ids=self._models.tokenizer.eos_ids, min_end_position=text.prompt_len)
        prompt_ids = tuple(text.tokens[: text.prompt_len].tolist())
        sink, arrival_s = _Sink(self._wrote), loop.time()
        pipeline.submit(GenerationRequest(request_uid, prompt_ids, text.max_tokens, sampling, 0, stream=True), sink)
        await sink.done.wait()
        if sink.error is not None or tuple(sink.ids) != text.output_ids:
            raise ReplayError(f"prompt {index}: {sink.error or 'the text differs from what the target writes alone'}")
        end_s = loop.time()
        return ReplayRecord(index, arrival_s, end_s if sink.first_token_s is None else sink.first_token_s, end_s, len(sink.ids))

    def _services(self) -> Services:
        models, hops, engines, meters = self._models, self._profile.hops, self._profile.engines, self._meters
        clock = asyncio.get_running_loop().time
        target = ReplayEngine(models.target.shape, engines[TARGET], TargetOutputs(), self._texts, clock)
        fanout = CallerWork(VirtualCore(), hops.fanout)
        drafters = [
            EngineProcess(
                name,
                ReplayEngine(model.shape, engines[name], models.outputs(name), self._texts, clock),
                VirtualCore(meters.drafters, meters.any),
                hops.drafter,
                fanout,
                self._faults,
            )
            for name, model in models.drafters.items()
        ]
        limits = [model.manifest.max_step_tokens for model in models.drafters.values()]
        fusion = CollaborativeFusion(drafters, limits, self._fusion_options)
        work = CallerWork(VirtualCore(), hops.pipeline)
        return Services(
            target=EngineProcess(TARGET, target, VirtualCore(meters.target, meters.any), hops.target, work, self._faults),
            limits=models.target.shape.limits,
            token_bytes=models.tokenizer.token_bytes,
            fusion=FusionProcess(fusion, VirtualCore(), hops.fusion, self._faults),
            router=RouterProcess(self._router, VirtualCore(), hops.router, self._faults),
            drafter_names=models.drafter_names,
            on_round=self._rounds.append,
            exact_trees=models.target.manifest.precision == "fp32",
        )
