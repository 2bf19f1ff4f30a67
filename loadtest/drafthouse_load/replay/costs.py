"""What the stages cost: recorded times by shape, read from a report or from `drafthouse_load.replay.record`."""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drafthouse.core.errors import invalid
from drafthouse.engine.costs import CallCosts, shapes_to_measure

MIN_STEP_TOKENS = 2  # of a row's places: what the repository's engines run with, see `EngineOptions`


@dataclass(frozen=True)
class EngineCosts:
    """One engine by itself, in milliseconds.

    A step call spends, in each of its network calls, what rows of equal length with as many tokens take (``session_ms[rows, tokens per
    row]``), and ``place_ms`` per place of the attention's rectangle that is empty because the rows are not of equal length; around the
    network calls ``call_ms + run_ms · network calls + output_ms · output nodes``.
    """

    num_threads: int
    session_ms: Mapping[tuple[int, int], float]
    place_ms: float
    call_ms: float
    run_ms: float
    output_ms: float
    _known: dict[tuple[int, float], float] = field(default_factory=dict, repr=False, compare=False)

    def session(self, rows: int, places: int, packed: int) -> float:
        """Milliseconds of one network call: measured, or between measured neighbours (first in rows, then in tokens per row)."""
        key = (rows, packed / rows)
        full = self._known.get(key)
        if full is None:
            columns = {length: self._at_length(rows, length) for length in {length for _, length in self.session_ms}}
            full = self._known[key] = _between(columns, key[1])
        return full + self.place_ms * rows * max(places - max(key[1], MIN_STEP_TOKENS), 0.0)

    def around(self, num_runs: int, num_outputs: int) -> float:
        """Milliseconds that a step call spends outside its network calls."""
        return self.call_ms + self.run_ms * num_runs + self.output_ms * num_outputs

    def call_costs(self, min_step_tokens: int, max_step_tokens: int, slots: int) -> CallCosts:
        """What an engine decides the shape of its network calls by, from these times where a real one measures at load."""
        shapes = shapes_to_measure(min_step_tokens, max_step_tokens, slots)
        return CallCosts(min_step_tokens, max_step_tokens, {shape: self.session(*shape) for shape in shapes})

    def _at_length(self, rows: int, length: int) -> float:
        return _between({measured: ms for (measured, tokens), ms in self.session_ms.items() if tokens == length}, rows)

    def to_json(self) -> dict[str, object]:
        """Session times nested as rows → tokens per row → ms."""
        nested: dict[str, dict[str, float]] = {}
        for (rows, tokens), ms in sorted(self.session_ms.items()):
            nested.setdefault(str(rows), {})[str(tokens)] = ms
        scalars = {name: getattr(self, name) for name in _SCALARS}
        return {"num_threads": self.num_threads, **scalars, "session_ms": nested}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "EngineCosts":
        """The reverse of `to_json`. Raises KeyError or ValueError for anything else."""
        session = {(int(rows), int(tokens)): float(ms) for rows, own in raw["session_ms"].items() for tokens, ms in own.items()}
        place_ms, call_ms, run_ms, output_ms = (float(raw[name]) for name in _SCALARS)
        return cls(int(raw["num_threads"]), session, place_ms, call_ms, run_ms, output_ms)


_SCALARS = ("place_ms", "call_ms", "run_ms", "output_ms")


def _between(known: Mapping[int, float], wanted: float) -> float:
    """Linear between the neighbours of ``wanted``; beyond the ends the outermost two are continued, but not below the least."""
    points = sorted(known)
    if len(points) == 1:
        return known[points[0]]
    at = min(max(bisect_left(points, wanted), 1), len(points) - 1)
    low, high = points[at - 1], points[at]
    value = known[low] + (known[high] - known[low]) * (wanted - low) / (high - low)
    return max(value, min(known.values()))


@dataclass(frozen=True, slots=True)
class HopCost:
    """What a message between two models costs beside the work it asks for, in milliseconds: there and back, packing included."""

    call_ms: float
    row_ms: float = 0.0  # per request in the message

    def ms(self, rows: float) -> float:
        """Milliseconds for a message with so many rows."""
        return max(self.call_ms + self.row_ms * rows, 0.0)


@dataclass(frozen=True, slots=True)
class HopCosts:
    """The messages of a round. How each is found: `drafthouse_load.replay.record.hops_from`."""

    target: HopCost
    fusion: HopCost
    drafter: HopCost
    router: HopCost
    pipeline: HopCost  # not a message: `cosine`'s own work per call to the target
    fanout: HopCost  # not a message: `fusion`'s own work per call to a drafter

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "HopCosts":
        """From `dataclasses.asdict`. Raises KeyError or TypeError for anything else."""
        return cls(**{name: HopCost(**raw[name]) for name in cls.__slots__})


@dataclass(frozen=True)
class StageProfile:
    """Everything the replay charges time by."""

    engines: Mapping[str, EngineCosts]  # by model: "target" and each drafter's name
    hops: HopCosts
    origin: str  # in words: where the figures come from

    def to_json(self) -> dict[str, object]:
        """For a report."""
        return {"origin": self.origin, "hops": asdict(self.hops), "engines": {name: own.to_json() for name, own in self.engines.items()}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "StageProfile":
        """The reverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        engines = {name: EngineCosts.from_json(own) for name, own in raw["engines"].items()}
        return cls(engines, HopCosts.from_json(raw["hops"]), str(raw["origin"]))


def read_profile(file: Path) -> StageProfile:
    """A profile from a file of its own or from the report of `drafthouse bench ablate`. Raises ClientError naming the file."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return StageProfile.from_json(raw["replay"]["profile"] if "replay" in raw else raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise invalid("--profile", str(file), "a stage profile, or a report of `drafthouse bench ablate` with a replay") from error


def check_covers(profile: StageProfile, drafters: Sequence[str]) -> None:
    """Raises ClientError naming the first model that the profile has no costs of."""
    for name in ("target", *drafters):
        if name not in profile.engines:
            raise invalid("--profile", name, f"a profile with {name}; this one has {', '.join(profile.engines)}")
