"""The replayed half: the same arms on the same prompts in virtual time, a core per stage."""

from collections.abc import Callable, Mapping, Sequence

from drafthouse.fusion.fuser import FusionOptions
from drafthouse.pipeline.config import PipelineConfig
from drafthouse_load.ablate.arms import FIXED_K, TARGET_ONLY, VANILLA, Arm
from drafthouse_load.ablate.figures import Sample, replayed_sample
from drafthouse_load.ablate.measure import WARMUP_EXTRA, AblateSettings, Block, Chosen, Sweep
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.replay.costs import StageProfile
from drafthouse_load.replay.models import ReplayModels, read_parameters
from drafthouse_load.replay.record import HopPoint
from drafthouse_load.replay.result import ReplayResult
from drafthouse_load.replay.run import run_replay

_NS_PER_MS = 1e6
_NOT_OF_THE_PIPELINE = ("drafters", "target_timeout_ms", "draft_timeout_ms", "metrics")  # read by the `cosine` model itself


class ReplayBench:
    """Runs arms in virtual time."""

    def __init__(
        self, models: ReplayModels, profile: StageProfile, prompts: Sequence[DomainPrompt], max_tokens: int, base: Mapping[str, str]
    ) -> None:
        self._models = models
        self._profile = profile
        self.domains = [prompt.domain for prompt in prompts]
        self._texts = models.texts([prompt.prompt for prompt in prompts], max_tokens)
        self._base = base
        self._router = models.router()
        self._fusion_options = fusion_options(read_parameters(models.repository / "fusion" / "config.pbtxt"))

    def run(self, arm: Arm, concurrency: int, num_draft_tokens: int | None) -> ReplayResult:
        """All prompts once."""
        config = pipeline_config(self._models.parameters, arm.parameters(self._base, num_draft_tokens))
        warmup = concurrency + WARMUP_EXTRA
        return run_replay(self._profile, self._models, self._texts, config, self._fusion_options, concurrency, self._router, warmup)

    def sweep(self, arm: Arm, concurrency: int) -> Sweep:
        """Every fixed k on all prompts."""
        return Sweep(arm.name, concurrency, {k: round(self.run(arm, concurrency, k).tokens_per_s, 2) for k in FIXED_K})


def replay_arms(bench: ReplayBench, settings: AblateSettings, chosen: Chosen, advance: Callable[[str], None]) -> list[Sample]:
    """Every arm at every concurrency; ``advance`` hears of each one."""
    samples = []
    for concurrency in settings.concurrency:
        for arm in settings.arms:
            advance(f"replay: {arm.name}, {concurrency} at once")
            k = chosen.get((arm.name, concurrency))
            samples.append(replayed_sample(arm.name, concurrency, bench.run(arm, concurrency, k), k, bench.domains))
    return samples


def pipeline_config(configured: Mapping[str, str], changed: Mapping[str, str]) -> PipelineConfig:
    """What `cosine` would make of its config.pbtxt and a load call's overrides. Raises ClientError."""
    return PipelineConfig.parse({name: value for name, value in {**configured, **changed}.items() if name not in _NOT_OF_THE_PIPELINE})


def fusion_options(configured: Mapping[str, str]) -> FusionOptions:
    """What `fusion` would make of its config.pbtxt; its timeout has no meaning in a replay."""
    return FusionOptions(fuse_every=int(configured.get("fuse_every", FusionOptions().fuse_every)))


def hop_points(blocks: Sequence[Block]) -> list[HopPoint]:
    """Where the time of the sequential modes' rounds went, from the server's counters; nothing without a block of `vanilla`."""
    points = []
    for block in blocks:
        counters = block.counters
        if block.arm in (TARGET_ONLY, VANILLA) and counters.rounds:
            verify_ns, draft_ns = counters.verify_wall_ns - counters.verify_session_ns, counters.draft_wall_ns - counters.draft_session_ns
            rest_ns = counters.round_wall_ns - counters.verify_wall_ns - counters.draft_wall_ns
            times = (time_ns / counters.rounds / _NS_PER_MS for time_ns in (verify_ns, draft_ns, rest_ns))
            points.append(HopPoint(counters.verified_rows / counters.rounds, counters.drafted / counters.verified_rows, *times))
    return points if any(point.drafted for point in points) else []
