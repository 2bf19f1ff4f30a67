"""A pipeline on fakes, started and stopped around a test body, and the reference it is compared with."""

import asyncio
import codecs
import functools
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import FinishReason, GenerationRequest
from drafthouse.pipeline.loop import Pipeline, Services
from drafthouse.pipeline.modes import Mode
from drafthouse.pipeline.stats import RoundStats
from fakes.pipeline_fusion import DRAFTERS, FakeFusion, FakeRouter
from fakes.pipeline_model import END_ID, continuation, token_bytes
from fakes.pipeline_sink import FakeSink
from fakes.pipeline_target import FakeTarget

_uids = itertools.count(2**63 + 5)

# Every mode, and cosine with one part turned.
WAYS = {mode.value: PipelineConfig(mode=mode) for mode in Mode} | {
    "cosine without routing": PipelineConfig(routing="off"),
    "cosine without fusion": PipelineConfig(fusion="off"),
    "cosine without overlap": PipelineConfig(overlap="off"),
    "cosine always overlapped": PipelineConfig(overlap="on"),
    "cosine without adaptation": PipelineConfig(adaptation="off"),
    "cosine without tetris": PipelineConfig(tetris="off"),
    "cosine without adaptation and tetris": PipelineConfig(adaptation="off", tetris="off"),
    "overlapped specinfer": PipelineConfig(mode=Mode.SPECINFER, overlap="on"),
}


def make_request(prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 20, **changes: object) -> GenerationRequest:
    """A request with defaults; ``temperature``, ``seed`` and ``end_ids`` go to its sampling parameters."""
    min_tokens = changes.get("min_tokens", 0)
    assert isinstance(min_tokens, int)
    sampling = SamplingParams(end_ids=(END_ID,), min_end_position=len(prompt) + min_tokens)
    for name in ("temperature", "seed", "end_ids"):
        if name in changes:
            sampling = replace(sampling, **{name: changes.pop(name)})  # type: ignore[arg-type]
    request = GenerationRequest(next(_uids), tuple(prompt), max_tokens, sampling, arrival_time_ns=time.time_ns())
    return replace(request, **changes)  # type: ignore[arg-type]


def async_test(body: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Run a test coroutine on a loop of its own, for at most a minute."""

    @functools.wraps(body)
    def run(*args: object, **kwargs: object) -> None:
        asyncio.run(asyncio.wait_for(body(*args, **kwargs), 60))

    return run


@dataclass
class Rig:
    pipeline: Pipeline
    target: FakeTarget
    fusion: FakeFusion
    router: FakeRouter
    rounds: list[RoundStats]

    def submit(self, request: GenerationRequest) -> FakeSink:
        sink = FakeSink()
        self.pipeline.submit(request, sink)
        return sink

    async def generate(self, *requests: GenerationRequest) -> list[FakeSink]:
        sinks = [self.submit(request) for request in requests]
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        return sinks


@asynccontextmanager
async def running(config: PipelineConfig | None = None, target: FakeTarget | None = None, **services: object) -> AsyncIterator[Rig]:
    """Run a pipeline around the body; afterwards it must be idle with balanced books and nothing held by any engine."""
    target, fusion, router, rounds = target or FakeTarget(), FakeFusion(), FakeRouter(), list[RoundStats]()
    parts = Services(target, target.limits, token_bytes, fusion, router, DRAFTERS, on_round=rounds.append)
    pipeline = Pipeline(config or PipelineConfig(), replace(parts, **services))  # type: ignore[arg-type]
    rig = Rig(pipeline, target, fusion, router, rounds)
    task = asyncio.ensure_future(pipeline.run())
    try:
        yield rig
        target.down = rig.fusion.failing = False
        if not task.done():
            await until_idle(rig)
    finally:
        rig.pipeline.stop()
        await asyncio.wait_for(task, 10)
    assert rig.pipeline.check_integrity() == []
    assert target.held == {}
    assert all(not held for held in rig.fusion.held)


async def until_idle(rig: Rig) -> None:
    """Until nothing is open and every release was delivered."""
    for _ in range(2_000):
        snapshot = rig.pipeline.snapshot()
        if snapshot.num_running == snapshot.num_waiting == 0 and not rig.target.held:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"not idle: {rig.pipeline.snapshot()}, target holds {list(rig.target.held)}")


def reference_ids(request: GenerationRequest) -> list[int]:
    """The output ids of the target alone: no batch, no draft, and stop words searched in the whole text each time."""
    ids: list[int] = []
    for token in continuation(request.prompt_ids, request.sampling, request.max_tokens):
        ids.append(token)
        if len(ids) > request.min_tokens and token in request.sampling.end_ids:
            break
        if len(ids) >= request.min_tokens and _completed(ids, request.stop_words):
            break
    return ids


def _shown(ids: Sequence[int]) -> str:
    """The complete characters of these tokens."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(b"".join(map(token_bytes, ids)))


def _completed(ids: Sequence[int], stop_words: Sequence[str]) -> list[tuple[int, int]]:
    """(end, start) of the stop words that the last token completes."""
    before, after = _shown(ids[:-1]), _shown(ids)
    starts = [(word, after.find(word, max(0, len(before) - len(word) + 1))) for word in stop_words]
    return [(start + len(word), start) for word, start in starts if start >= 0]


def reference_text(request: GenerationRequest) -> str:
    ids = reference_ids(request)
    stops = _completed(ids, request.stop_words) if len(ids) >= request.min_tokens else []
    ended = len(ids) > request.min_tokens and ids[-1] in request.sampling.end_ids
    if stops and not ended:
        return request.echo_text + _shown(ids)[: min(stops)[1]]
    shown = ids[:-1] if ended else ids
    return request.echo_text + b"".join(map(token_bytes, shown)).decode(errors="replace")


def expect_reference(request: GenerationRequest, sink: FakeSink) -> None:
    """The answer is the target's own: text, ids, one final chunk, and chunks that add up."""
    assert sink.error is None, str(sink.error)
    assert sink.num_finals == 1
    assert sink.output_ids == reference_ids(request)
    assert sink.text == reference_text(request)
    assert sum(chunk.num_output_tokens for chunk in sink.chunks) == len(sink.output_ids)
    ended_early = len(sink.output_ids) < request.max_tokens
    assert sink.chunks[-1].finish_reason in ([FinishReason.STOP] if ended_early else [FinishReason.STOP, FinishReason.LENGTH])
    if request.return_log_probs:
        assert sum(len(chunk.log_probs) for chunk in sink.chunks) == len(sink.output_ids)
