"""The server's counters: read as JSON, compared before and after a block."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from drafthouse_client import Client

_IDLE_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Counters:
    """What grows with every round; differences of two readings describe what lies between them.

    ``verified_rows`` counts one per request and round: at concurrency 1 it equals ``rounds``.
    """

    rounds: int = 0
    verified_rows: int = 0
    emitted_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_session_ns: int = 0  # inside the drafters' sessions, on the critical path of the round
    ahead_session_ns: int = 0  # the same while the target verified
    draft_wall_ns: int = 0  # from asking for drafts to having them
    verify_session_ns: int = 0  # inside the target's session
    verify_wall_ns: int = 0
    round_wall_ns: int = 0  # without prefill
    prefill_session_ns: int = 0  # inside the target's session

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(**{field.name: getattr(self, field.name) - getattr(other, field.name) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class ServerStats:
    """One reading of the server's statistics."""

    mode: str
    precision: str
    counters: Counters
    running: int
    queue_len: int
    rehearsing: bool  # the server tries out what its stages take
    slots_free: Mapping[str, int]  # by engine, of those that answered
    slots_total: Mapping[str, int]
    silent_engines: tuple[str, ...]  # did not answer

    @property
    def idle(self) -> bool:
        """No request runs or waits, and no rehearsal holds slots."""
        return self.running == 0 and self.queue_len == 0 and not self.rehearsing

    @property
    def leaked_slots(self) -> dict[str, int]:
        """Slots held per engine; on an idle server every entry is a leak. Engines with none held are left out."""
        held = {name: total - self.slots_free[name] for name, total in self.slots_total.items()}
        return {name: count for name, count in held.items() if count}


def parse_stats(raw: Mapping[str, Any]) -> ServerStats:
    """A reading from the JSON of a ``stats_request``. Raises KeyError naming what the server left out."""
    engines: Mapping[str, Mapping[str, Any]] = raw["engines"]
    answered = {name: engine for name, engine in engines.items() if "error" not in engine}
    return ServerStats(
        mode=raw["mode"],
        precision=raw["precision"],
        counters=Counters(**{field.name: int(raw["counters"][field.name]) for field in fields(Counters)}),
        running=raw["running"],
        queue_len=raw["queue_len"],
        rehearsing=raw["rehearsing"],
        slots_free={name: engine["slots_free"] for name, engine in answered.items()},
        slots_total={name: engine["slots_total"] for name, engine in answered.items()},
        silent_engines=tuple(name for name in engines if name not in answered),
    )


def read_when_idle(client: Client, timeout_s: float = 30.0) -> ServerStats:
    """The statistics once no request runs or waits: a client sees its last token before the round is booked.

    After ``timeout_s`` the reading is returned as it is; the caller checks `ServerStats.idle`.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        stats = parse_stats(client.stats())
        if stats.idle or time.monotonic() > deadline_s:
            return stats
        time.sleep(_IDLE_POLL_S)
