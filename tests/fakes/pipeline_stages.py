"""A pipeline in virtual time, whose stages take what one says: for what adaptation does, and whether that pays."""

import asyncio
from dataclasses import dataclass, field

from drafthouse.engine.contract import EngineLimits, StepCall
from drafthouse.fusion.contract import DraftCall
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.stats import RoundStats
from drafthouse_load.replay.virtual_time import run_virtual
from fakes.pipeline_harness import Rig, make_request, running
from fakes.pipeline_model import VOCAB_SIZE, path_hash
from fakes.pipeline_target import FakeTarget

LIMITS = EngineLimits(max_step_tokens=64, usable_context=200, vocab_size=VOCAB_SIZE, slots=8)
TOKENS_PER_REQUEST = 60


@dataclass(frozen=True)
class Stages:
    """What the stages take in ms, and how often a drafter is right. The drafters know how often that is."""

    verify_ms: float = 14.0  # a call
    row_ms: float = 0.1
    token_ms: float = 0.1
    beyond_ms: float = 0.7  # further tokens beyond the knee
    knee: int = 12
    draft_ms: float = 1.0  # a call
    step_ms: float = 0.4
    row_step_ms: float = 0.03
    accuracy: float = 0.7

    def install(self, rig: Rig) -> None:
        """From now on it is like this."""
        rig.target.step_s, rig.fusion.draft_s = self._verify_s, self._draft_s
        rig.fusion.confidence = self.accuracy
        rig.fusion.is_right = lambda path, drafter, _: path_hash(path, salt=drafter + 77) % 1009 < 1009 * self.accuracy

    def _verify_s(self, call: StepCall) -> float:
        # Accepted drafts are in the cache: of what is committed a row computes its last token, except at first.
        tokens = sum(len(row.tokens) - (row.num_committed - 1 if row.prefix_len else 0) for row in call.rows)
        ms = self.verify_ms + self.row_ms * len(call.rows) + self.token_ms * tokens + self.beyond_ms * max(tokens - self.knee, 0)
        return ms / 1e3

    def _draft_s(self, call: DraftCall) -> float:
        depth = max(row.num_draft_tokens for row in call.rows)
        return (self.draft_ms + (self.step_ms + self.row_step_ms * len(call.rows)) * depth) / 1e3 if depth else 0.0


@dataclass
class Phase:
    """What was seen while the stages were like this."""

    rounds: list[RoundStats] = field(default_factory=list)  # those that verified every request and did nothing else

    @property
    def tokens_per_s(self) -> float:
        """Of all requests together."""
        return sum(stats.num_emitted for stats in self.rounds) / (sum(stats.wall_ns for stats in self.rounds) / 1e9)

    @property
    def drafted_per_row(self) -> float:
        """Draft tokens that a request had verified per round."""
        return sum(stats.num_drafted for stats in self.rounds) / sum(stats.num_verified_rows for stats in self.rounds)


def simulate(config: PipelineConfig, concurrency: int, *phases: tuple[Stages, int]) -> list[Phase]:
    """Always so many requests at a time; each phase lasts for so many requests. Every second one counts, so that a phase can settle."""
    return run_virtual(_simulate(config, concurrency, phases))


async def _simulate(config: PipelineConfig, concurrency: int, phases: tuple[tuple[Stages, int], ...]) -> list[Phase]:
    results = []
    async with running(config, FakeTarget(LIMITS)) as rig:
        for number, (stages, num_requests) in enumerate(phases):
            stages.install(rig)
            await _serve(rig, concurrency, num_requests // 2, 2 * number)
            rig.rounds.clear()
            await _serve(rig, concurrency, num_requests // 2, 2 * number + 1)
            results.append(Phase([stats for stats in rig.rounds if not stats.num_prefill_rows and stats.num_verified_rows == concurrency]))
    return results


async def _serve(rig: Rig, concurrency: int, num_requests: int, salt: int) -> None:
    waiting = iter(range(num_requests))

    async def client() -> None:
        for item in waiting:
            (sink,) = await rig.generate(make_request((1 + item % 17, 1 + salt % 17, 3), TOKENS_PER_REQUEST, end_ids=()))
            assert sink.error is None

    await asyncio.gather(*(client() for _ in range(concurrency)))
