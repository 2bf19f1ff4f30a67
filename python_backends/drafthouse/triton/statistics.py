"""Counters since the model was loaded, as the JSON that `stats_request` answers. docs/metrics.md defines each."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from drafthouse.core.errors import ErrorCode, ServerError, invalid
from drafthouse.engine.contract import EngineClient, EngineError, StepCall
from drafthouse.pipeline.stats import PipelineSnapshot, RoundStats
from drafthouse.triton.codec.envelope import Array
from drafthouse.triton.responder import TritonSink

STATS_INPUT = "stats_request"


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
        counters["recomputed_tokens"] += stats.num_recomputed_tokens
        counters["lost_caches"] += stats.num_lost_caches
        if not stats.num_verified_rows:
            return
        self._rounds_by_batch[stats.num_verified_rows] += 1
        counters["rounds"] += 1
        counters["verified_rows"] += stats.num_verified_rows
        counters["emitted_tokens"] += stats.num_verified_emitted
        counters["drafts"] += stats.num_drafts
        counters["drafted"] += stats.num_drafted
        counters["accepted"] += stats.num_accepted
        counters["draft_session_ns"] += stats.draft_session_ns
        counters["ahead_session_ns"] += stats.ahead_session_ns
        counters["drafted_ahead"] += stats.num_drafted_ahead
        counters["ready_ahead"] += stats.num_ready_ahead
        counters["verify_session_ns"] += stats.verify_session_ns
        counters["draft_wall_ns"] += stats.draft_wall_ns
        counters["verify_wall_ns"] += stats.verify_wall_ns
        counters["round_wall_ns"] += stats.wall_ns - stats.prefill_wall_ns

    def counters(self) -> dict[str, int]:
        """The sums since the start; on any thread."""
        return {name: self._counters[name] for name in COUNTERS}

    async def report(self, snapshot: PipelineSnapshot) -> dict[str, object]:
        """Everything at this moment; an engine that does not answer says why under its name."""
        return {
            "mode": snapshot.mode,
            "policy": snapshot.policy,
            "precision": self._precision,
            "running": snapshot.num_running,
            "queue_len": snapshot.num_waiting + snapshot.scheduling.num_preempted,
            "scheduling": _scheduling(snapshot),
            "rehearsing": snapshot.is_rehearsing,
            "finished": snapshot.num_finished,
            "failed": dict(snapshot.num_failed),
            "counters": self.counters(),
            "speculation": dict(snapshot.speculation),
            "rounds_by_batch_size": {str(size): count for size, count in sorted(self._rounds_by_batch.items())},
            "engines": dict(zip(self._engines, await asyncio.gather(*map(_slots, self._engines.values())), strict=True)),
        }


COUNTERS = (
    "rounds",
    "verified_rows",
    "emitted_tokens",
    "drafts",
    "drafted",
    "accepted",
    "draft_session_ns",
    "ahead_session_ns",
    "drafted_ahead",
    "ready_ahead",
    "verify_session_ns",
    "draft_wall_ns",
    "verify_wall_ns",
    "round_wall_ns",
    "prefill_tokens",
    "prefill_emitted_tokens",
    "prefill_wall_ns",
    "prefill_session_ns",
    "recomputed_tokens",
    "lost_caches",
)


class StatisticsDesk:
    """Answers `stats_request`. Reports that are asked for at the same time are one report, and an engine that hangs delays it by no
    more than its client's timeout."""

    def __init__(self, statistics: Statistics, snapshot: Callable[[], PipelineSnapshot]) -> None:
        self._statistics = statistics
        self._snapshot = snapshot
        self._under_way: asyncio.Task[dict[str, object]] | None = None

    async def answer(self, sink: TritonSink) -> None:
        """Send one report to this client, or an error; on the pipeline's loop. Never raises."""
        try:
            if self._under_way is None or self._under_way.done():
                self._under_way = asyncio.ensure_future(self._statistics.report(self._snapshot()))
            report = json.dumps(await asyncio.shield(self._under_way)).encode()
            sink.finish_tensors({"stats": np.array([report], np.object_)})
        except Exception:
            logging.getLogger(__name__).exception("statistics could not be reported")
            sink.fail(ServerError(ErrorCode.INTERNAL, STATS_INPUT, "no report", "try again; the server log tells why"))


def _scheduling(snapshot: PipelineSnapshot) -> dict[str, object]:
    figures = snapshot.scheduling
    return {
        "slots": snapshot.max_active,
        "max_batch": snapshot.max_batch,
        "waiting": snapshot.num_waiting,
        "preempted": figures.num_preempted,
        "preemptions": figures.num_preemptions,
        "evictions": figures.num_evictions,
        "queue_lengths": {str(queue): length for queue, length in sorted(figures.queue_lengths.items())},
        "length_error": dict(figures.length_error),
        "estimation_error": dict(figures.estimation_error),
    }


def check_stats_request(tensors: Mapping[str, Array]) -> None:
    """Raise ClientError unless the request asks for statistics and nothing else."""
    others = ", ".join(sorted(set(tensors) - {STATS_INPUT}))
    if others:
        raise invalid(STATS_INPUT, f"beside {others}", "no other input beside it")
    if tensors[STATS_INPUT].reshape(-1).tolist() != [True]:
        raise invalid(STATS_INPUT, tensors[STATS_INPUT].tolist(), "true")


async def _slots(engine: EngineClient) -> dict[str, object]:
    try:
        status = await engine.step(StepCall(()))
    except EngineError as error:
        return {"error": str(error)}
    return {"slots_free": status.slots_free, "slots_total": status.slots_total, "engine_epoch": status.engine_epoch}
