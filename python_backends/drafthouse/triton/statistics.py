"""Counters since the model was loaded, as the JSON that `stats_request` answers. docs/metrics.md defines each."""

from collections import Counter
from collections.abc import Mapping

from drafthouse.engine.contract import EngineClient, EngineError, StepCall
from drafthouse.pipeline.stats import PipelineSnapshot, RoundStats


class Statistics:
    """Sums over rounds; written by the pipeline's thread, read on it too."""

    def __init__(self, precision: str, engines: Mapping[str, EngineClient]) -> None:
        self._precision = precision
        self._engines = engines
        self._counters: Counter[str] = Counter()
        self._rounds_by_batch: Counter[int] = Counter()

    def add(self, stats: RoundStats) -> None:
        """Book one round. Prefill is kept apart, so that a round's times are those of draft and verify."""
        counters = self._counters
        counters["prefill_tokens"] += stats.num_prefill_tokens
        counters["prefill_emitted_tokens"] += stats.num_prefill_emitted
        counters["prefill_wall_ns"] += stats.prefill_wall_ns
        counters["prefill_session_ns"] += stats.prefill_session_ns
        if not stats.num_verified_rows:
            return
        self._rounds_by_batch[stats.num_verified_rows] += 1
        counters["rounds"] += 1
        counters["verified_rows"] += stats.num_verified_rows
        counters["emitted_tokens"] += stats.num_verified_emitted
        counters["drafted"] += stats.num_drafted
        counters["accepted"] += stats.num_accepted
        counters["draft_session_ns"] += stats.draft_session_ns
        counters["verify_session_ns"] += stats.verify_session_ns
        counters["draft_wall_ns"] += stats.draft_wall_ns
        counters["verify_wall_ns"] += stats.verify_wall_ns
        counters["round_wall_ns"] += stats.wall_ns - stats.prefill_wall_ns

    async def report(self, snapshot: PipelineSnapshot) -> dict[str, object]:
        """Everything at this moment; engines that do not answer are left out of `engines`."""
        return {
            "mode": snapshot.mode,
            "policy": snapshot.policy,
            "precision": self._precision,
            "running": snapshot.num_running,
            "queue_len": snapshot.num_waiting,
            "finished": snapshot.num_finished,
            "failed": dict(snapshot.num_failed),
            "counters": {name: self._counters[name] for name in COUNTERS},
            "rounds_by_batch_size": {str(size): count for size, count in sorted(self._rounds_by_batch.items())},
            "engines": {name: await _slots(engine) for name, engine in self._engines.items()},
        }


COUNTERS = (
    "rounds",
    "verified_rows",
    "emitted_tokens",
    "drafted",
    "accepted",
    "draft_session_ns",
    "verify_session_ns",
    "draft_wall_ns",
    "verify_wall_ns",
    "round_wall_ns",
    "prefill_tokens",
    "prefill_emitted_tokens",
    "prefill_wall_ns",
    "prefill_session_ns",
)


async def _slots(engine: EngineClient) -> dict[str, object]:
    try:
        status = await engine.step(StepCall(()))
    except EngineError as error:
        return {"error": str(error)}
    return {"slots_free": status.slots_free, "slots_total": status.slots_total, "engine_epoch": status.engine_epoch}
