"""One replay: closed-loop clients, the real pipeline, virtual time."""

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

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
from drafthouse_load.replay.virtual_time import BusyMeter, VirtualCore, run_virtual


class ReplayError(RuntimeError):
    """A request failed, or its text is not the target's: the pipeline, or the replay, is wrong."""


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
        ReplayError: a request failed or got another text, or a stand-in could not answer.
        ClientError: the profile lacks a model.
    """
    check_covers(profile, models.drafter_names)
    run = _Run(profile, models, config, fusion_options or FusionOptions(), router or models.router())
    return run_virtual(run.play(texts, concurrency, num_warmup))


class _Sink:
    """Remembers one answer and when its parts came."""

    cancelled = False

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.first_token_s: float | None = None
        self.error: DrafthouseError | None = None
        self.done = asyncio.Event()

    def send(self, chunk: OutputChunk) -> None:
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

    async def play(self, texts: Sequence[ReferenceText], concurrency: int, num_warmup: int) -> ReplayResult:
        """All requests, on the running virtual loop."""
        loop = asyncio.get_running_loop()
        pipeline = Pipeline(self._config, self._services())
        self._rehearse(pipeline)
        serving = asyncio.ensure_future(pipeline.run())
        await self._serve(pipeline, texts[:num_warmup], concurrency)
        began_s, busy_s, first_round = loop.time(), self._meters.read_s(), len(self._rounds)
        records = await self._serve(pipeline, texts, concurrency)
        wall_s = loop.time() - began_s
        target_s, drafters_s, both_s = (self._meters.read_s() - busy_s).tolist()
        rounds = tuple(self._rounds[first_round:])
        pipeline.stop()
        await serving
        if self._faults.seen:
            raise ReplayError(f"{len(self._faults.seen)} calls failed; the first: {self._faults.seen[0]!r}") from self._faults.seen[0]
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
        sink, arrival_s = _Sink(), loop.time()
        pipeline.submit(GenerationRequest(request_uid, prompt_ids, text.max_tokens, sampling, 0, stream=True), sink)
        await sink.done.wait()
        if sink.error is not None or tuple(sink.ids) != text.output_ids:
            raise ReplayError(f"prompt {index}: {sink.error or 'the text differs from what the target writes alone'}")
        end_s = loop.time()
        return ReplayRecord(index, arrival_s, end_s if sink.first_token_s is None else sink.first_token_s, end_s, len(sink.ids))

    def _services(self) -> Services:
        models, hops, engines, meters = self._models, self._profile.hops, self._profile.engines, self._meters
        target = ReplayEngine(models.target.shape, engines[TARGET], TargetOutputs(), self._texts)
        fanout = CallerWork(VirtualCore(), hops.fanout)
        drafters = [
            EngineProcess(
                name,
                ReplayEngine(model.shape, engines[name], models.outputs(name), self._texts),
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
