"""The server under test: switched between policies by load calls, its counters read when it is idle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drafthouse.core.errors import ErrorCode, ServerError, invalid
from drafthouse.pipeline.config import PipelineConfig
from drafthouse_client import Client
from drafthouse_load.modes import ModelControl
from drafthouse_load.schedule.options import BASELINE
from drafthouse_load.stats import Counters, parse_stats, read_when_idle


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server counted, or the difference of two such readings."""

    counters: Counters
    prefill_wall_ns: int
    recomputed_tokens: int
    preemptions: int
    evictions: int

    def __sub__(self, before: "Reading") -> "Reading":
        return Reading(
            self.counters - before.counters,
            self.prefill_wall_ns - before.prefill_wall_ns,
            self.recomputed_tokens - before.recomputed_tokens,
            self.preemptions - before.preemptions,
            self.evictions - before.evictions,
        )


@dataclass(frozen=True, slots=True)
class Errors:
    """What the server predicted, against what came; since the policy was loaded, warm-up included."""

    length: Mapping[str, object]
    estimation: Mapping[str, Any]


class ScheduleServer:
    """One running server; every method leaves it idle or raises."""

    def __init__(self, control: ModelControl, client: Client, url: str, max_queue_size: int, mode: str = "", slots: int = 0) -> None:
        """``max_queue_size``: as many requests as ever wait at once. ``mode``, ``slots``: of `cosine`, "" and 0 = as configured."""
        self.url = url
        self._control = control
        self._client = client
        self._slots = slots
        self._always = {"max_queue_size": str(max_queue_size)} | ({"mode": mode} if mode else {}) | ({"slots": str(slots)} if slots else {})

    def load(self, policy: str, max_batch: int) -> None:
        """A front door that has learned nothing yet, under this policy; everything else stays as it is.

        Raises:
            ServerError: INTERNAL when the server is busy, or reports another policy or another limit.
            LaunchError: the load call failed.
        """
        if not read_when_idle(self._client).idle:
            raise ServerError(ErrorCode.INTERNAL, "policy", "requests running", "an idle server")
        # Overrides add up from one load call to the next: every parameter that ever changes is named in each.
        self._control.load_model("cosine", {"parameters": {**self._always, "policy": policy, "max_batch": str(max_batch)}})
        read_when_idle(self._client)
        stats = self._client.stats()
        found = (stats["policy"], stats["scheduling"]["max_batch"])
        if found != (policy, max_batch):
            raise ServerError(ErrorCode.INTERNAL, "policy, max_batch", found, f"{policy}, {max_batch}; a target with as many slots")

    def read(self) -> Reading:
        """The counters now. Raises ServerError when the server is not idle."""
        if not read_when_idle(self._client).idle:
            raise ServerError(ErrorCode.INTERNAL, "stats", "requests running", "an idle server")
        raw = self._client.stats()
        own, scheduling = raw["counters"], raw["scheduling"]
        return Reading(
            parse_stats(raw).counters, own["prefill_wall_ns"], own["recomputed_tokens"], scheduling["preemptions"], scheduling["evictions"]
        )

    def errors(self) -> Errors:
        """How far its predictions were off."""
        scheduling = self._client.stats()["scheduling"]
        return Errors(scheduling["length_error"], scheduling["estimation_error"])

    def num_slots(self) -> int:
        """Requests that keep their caches at a time, under every policy. Raises ClientError when the target has fewer than asked for."""
        if self._slots:
            self.load(BASELINE, 1)
        found = int(self._client.stats()["scheduling"]["slots"])
        if self._slots not in (0, found):
            raise invalid("--slots", self._slots, f"at most the target's {found}")
        return found


def scheduling_parameters(configured: Mapping[str, str]) -> tuple[int, str]:
    """`starvation_limit_ms` and `length_predictor` of a repository, from the parameters in its config.pbtxt."""
    default = PipelineConfig()
    limit_ms = int(configured.get("starvation_limit_ms", default.starvation_limit_ms))
    return limit_ms, configured.get("length_predictor", default.length_predictor)
