"""The `cosine` model: Triton's side of the front door, and the thread on which the pipeline runs."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import triton_python_backend_utils as pb_utils

from drafthouse.core.errors import DrafthouseError, ErrorCode, ServerError
from drafthouse.engine.contract import EngineLimits
from drafthouse.engine.engine import TOKENIZER_NAME
from drafthouse.engine.manifest import EngineManifest, read_manifest
from drafthouse.engine.options import EngineOptions
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.frontdoor import FrontDoorContext, parse_request
from drafthouse.pipeline.loop import Pipeline, Services
from drafthouse.pipeline.stats import PipelineSnapshot, RoundStats
from drafthouse.pipeline.tokenizer import FileTokenizer
from drafthouse.triton.loops import new_loop
from drafthouse.triton.metrics import MetricsPublisher
from drafthouse.triton.metrics_tally import Collector, Tally
from drafthouse.triton.parameters import Parameters, parameter_in, version_folder
from drafthouse.triton.responder import Responder, TritonSink
from drafthouse.triton.statistics import STATS_INPUT, Statistics, StatisticsDesk, check_stats_request
from drafthouse.triton.tensors import read_inputs
from drafthouse.triton.wiring import reach_inner_models

JOIN_TIMEOUT_S = 10.0
SNAPSHOT_TIMEOUT_S = 2.0


class CosineModel:
    """Receives requests, hands them to the pipeline, and answers each exactly once."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read configuration and tokenizer. Raises when anything is missing, which refuses the load."""
        logging.basicConfig(level=logging.INFO, format="[drafthouse] %(levelname)s %(name)s: %(message)s")
        parameters = Parameters.from_triton(args)
        drafters = parameters.names("drafters")
        target_timeout_s = parameters.integer("target_timeout_ms", 60_000, 1, 3_600_000) / 1e3
        draft_timeout_s = parameters.integer("draft_timeout_ms", 10_000, 1, 3_600_000) / 1e3
        self._tally = Tally(drafters) if parameters.choice("metrics", "on", ("on", "off")) == "on" else None
        config = PipelineConfig.parse(parameters.rest())
        repository, version = Path(args["model_repository"]).parent, args["model_version"]
        target_folder = repository / "target"
        manifest = read_manifest(target_folder / version)
        limits = _target_limits(manifest, target_folder)
        tokenizer = FileTokenizer(version_folder(args) / TOKENIZER_NAME, manifest.eos_token_ids)
        models = reach_inner_models(drafters, target_timeout_s, draft_timeout_s, repository, version)
        self._statistics = Statistics(manifest.precision, models.engines)
        services = Services(
            target=models.target,
            limits=limits,
            token_bytes=tokenizer.token_bytes,
            fusion=models.fusion,
            router=models.router,
            drafter_names=drafters,
            exact_trees=manifest.precision == "fp32",
            on_round=self._on_round,
            on_end=self._tally.saw_end if self._tally else None,
        )
        self._context = FrontDoorContext(tokenizer, limits, config.usable_drafters(drafters), config)
        self._responder = Responder()
        self._pipeline = Pipeline(config, services)
        self._desk = StatisticsDesk(self._statistics, self._pipeline.snapshot)
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._serve, name="drafthouse-pipeline", daemon=True)
        self._publisher: MetricsPublisher | None = None
        if self._tally is not None:
            collector = Collector(self._tally, self._statistics.counters, self._read_snapshot, manifest.precision)
            self._publisher = MetricsPublisher(collector.collect)
            self._publisher.start()

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Triton's entry point: only enqueues. Answers come from the pipeline through the responder's thread."""
        self._pipeline.open()
        if self._thread.ident is None:
            # Not before: a model that calls another one while it is being loaded takes the whole server down (SIGSEGV).
            self._thread.start()
        for request in requests:
            sink = TritonSink(request, self._responder)
            self._responder.watch(sink)
            try:
                self._take(request, sink)
            except DrafthouseError as error:
                sink.fail(error)
            except Exception:
                incident = uuid.uuid4().hex[:12]
                logging.getLogger(__name__).exception("incident %s", incident)
                sink.fail(ServerError(ErrorCode.INTERNAL, "request", f"incident {incident}"))

    def finalize(self) -> None:
        """Triton is unloading the model: answer what is open, then end all threads."""
        if self._publisher is not None:
            self._publisher.retire()
        self._pipeline.stop()
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIMEOUT_S)
        self._responder.close()
        if self._publisher is not None:
            self._publisher.close()

    def _take(self, request: pb_utils.InferenceRequest, sink: TritonSink) -> None:
        tensors = read_inputs(request)
        if STATS_INPUT in tensors:
            check_stats_request(tensors)
            asyncio.run_coroutine_threadsafe(self._desk.answer(sink), self._loop)
            return
        parameters = json.loads(request.parameters() or "{}")
        sink.generation = parse_request(tensors, parameters, self._context)
        self._pipeline.submit(sink.generation, sink)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._pipeline.run())

    def _read_snapshot(self) -> PipelineSnapshot:
        """The pipeline's figures, on any other thread. Raises TimeoutError when the pipeline's thread does not get to it."""

        async def take() -> PipelineSnapshot:
            return self._pipeline.snapshot()

        if not self._thread.is_alive():  # before the first request, and after the last
            return self._pipeline.snapshot()
        return asyncio.run_coroutine_threadsafe(take(), self._loop).result(SNAPSHOT_TIMEOUT_S)

    def _on_round(self, stats: RoundStats) -> None:
        self._statistics.add(stats)
        if self._tally is not None:
            self._tally.saw_round(stats)
        self._responder.poll_cancelled()


def _target_limits(manifest: EngineManifest, folder: Path) -> EngineLimits:
    """What the target can take, as its engine and its configuration say."""
    slots = int(parameter_in(folder / "config.pbtxt", "slots") or EngineOptions().slots)
    return EngineLimits(manifest.max_step_tokens, manifest.usable_context, manifest.vocab_size, slots)
