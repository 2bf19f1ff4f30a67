"""What rounds take: by a stated model, by a recorded stage profile, or by rounds that were measured on a server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from drafthouse_load.replay.costs import EngineCosts, StageProfile


class RoundCosts(Protocol):
    """Times of a round's parts in ns. All are asked for few distinct arguments again and again."""

    @property
    def unit_ns(self) -> float:
        """What times are reported in."""
        ...

    @property
    def unit(self) -> str:
        """That unit's name."""
        ...

    def prefill_ns(self, num_tokens: int) -> int:
        """The target takes in ``num_tokens`` of one request: its prompt, or all it has when its cache was given up."""
        ...

    def draft_ns(self, rows: int, num_draft_tokens: int) -> int:
        """Drafting as many tokens for each of ``rows`` requests."""
        ...

    def verify_ns(self, rows: int, num_tokens: int) -> int:
        """Verifying ``rows`` requests with ``num_tokens`` tokens together, committed ones included."""
        ...

    def to_json(self) -> dict[str, object]:
        """For a report."""
        ...


@dataclass(frozen=True)
class GivenCosts:
    """In units of one verification of one request with a full draft, as the papers count.

    Decoding is bound by memory: further rows of a verification cost little (``row_growth`` each). Prefill is bound by computing: a
    call of up to ``prefill_tokens`` tokens takes as long as a verification, more take proportionally longer. That is where arithmetic
    catches up with reading the weights: 156 tokens for an A100 at 16 bits (312 TFLOP/s over 2.0 TB/s), 295 for an H100 (989 over 3.35).
    """

    draft_token: float = 0.05  # T_SSM, of one draft token of all rows
    row_growth: float = 0.05
    prefill_tokens: int = 256  # 0: prefill takes no time
    verification_ms: float = 20.0  # T_LLM; only a scale, for what learns in ns

    @property
    def unit_ns(self) -> float:
        """One verification."""
        return self.verification_ms * 1e6

    @property
    def unit(self) -> str:
        """The unit's name."""
        return "verifications"

    def prefill_ns(self, num_tokens: int) -> int:
        """Bound by memory up to `prefill_tokens`, by computing beyond."""
        return round(self.unit_ns * max(num_tokens / self.prefill_tokens, 1.0)) if self.prefill_tokens else 0

    def draft_ns(self, rows: int, num_draft_tokens: int) -> int:
        """One token of all rows after the other."""
        return round(self.unit_ns * num_draft_tokens * self.draft_token * self._growth(rows))

    def verify_ns(self, rows: int, num_tokens: int) -> int:
        """The same whatever the number of tokens."""
        return round(self.unit_ns * self._growth(rows))

    def _growth(self, rows: int) -> float:
        return 1 + self.row_growth * (rows - 1)

    def to_json(self) -> dict[str, object]:
        """For a report."""
        return {
            "model": "given",
            "draft_token": self.draft_token,
            "row_growth": self.row_growth,
            "prefill_tokens": self.prefill_tokens,
        }


@dataclass(frozen=True)
class ProfileCosts:
    """From what the server's engines and messages were measured to take (`drafthouse bench ablate`): one drafter, rounds in turn."""

    profile: StageProfile
    drafter: str
    chunk_tokens: int = 64  # tokens of a prompt in one call to the target, as configured in the repository
    _known: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def unit_ns(self) -> float:
        """A millisecond."""
        return 1e6

    @property
    def unit(self) -> str:
        """The unit's name."""
        return "ms"

    def prefill_ns(self, num_tokens: int) -> int:
        """In chunks."""
        if num_tokens not in self._known:
            chunks, rest = divmod(num_tokens, self.chunk_tokens)
            full_ms = chunks * self._target_ms(1, self.chunk_tokens) if chunks else 0.0
            self._known[num_tokens] = round(1e6 * (full_ms + (self._target_ms(1, rest) if rest else 0.0)))
        return self._known[num_tokens]

    def draft_ns(self, rows: int, num_draft_tokens: int) -> int:
        """One call that extends all rows, through `fusion`."""
        if not num_draft_tokens:
            return 0
        engine, hops = self.profile.engines[self.drafter], self.profile.hops
        inside_ms = num_draft_tokens * engine.session(rows, 1, rows) + engine.around(num_draft_tokens, rows * num_draft_tokens)
        return round(1e6 * (inside_ms + hops.fusion.ms(rows) + hops.drafter.ms(rows) + hops.fanout.ms(rows)))

    def verify_ns(self, rows: int, num_tokens: int) -> int:
        """One call to the target, rows of equal length."""
        return round(1e6 * self._target_ms(rows, num_tokens / rows))

    def _target_ms(self, rows: int, tokens_per_row: float) -> float:
        engine: EngineCosts = self.profile.engines["target"]
        packed = round(rows * tokens_per_row)
        inside_ms = engine.session(rows, max(round(tokens_per_row), 1), packed) + engine.around(1, packed)
        return inside_ms + self.profile.hops.target.ms(rows) + self.profile.hops.pipeline.ms(rows)

    def to_json(self) -> dict[str, object]:
        """For a report."""
        return {"model": "profile", "drafter": self.drafter, "origin": self.profile.origin}


@dataclass(frozen=True)
class MeasuredCosts:
    """Rounds measured on a server: mean times by the number of rows, linear between them, and flat beyond."""

    draft_ns_by_rows: Mapping[int, float]
    verify_ns_by_rows: Mapping[int, float]
    prefill_token_ns: float
    prefill_call_ns: float = 0.0
    between_ns: float = 0.0  # of a round beside both

    @property
    def unit_ns(self) -> float:
        """A millisecond."""
        return 1e6

    @property
    def unit(self) -> str:
        """The unit's name."""
        return "ms"

    def prefill_ns(self, num_tokens: int) -> int:
        """A line."""
        return round(self.prefill_call_ns + self.prefill_token_ns * num_tokens)

    def draft_ns(self, rows: int, num_draft_tokens: int) -> int:
        """By rows alone: whatever was drafted when it was measured."""
        return round(_at(self.draft_ns_by_rows, rows))

    def verify_ns(self, rows: int, num_tokens: int) -> int:
        """By rows alone, with what lies between two rounds."""
        return round(_at(self.verify_ns_by_rows, rows) + self.between_ns)

    def to_json(self) -> dict[str, object]:
        """For a report."""
        rows = {"draft_ms": self.draft_ns_by_rows, "verify_ms": self.verify_ns_by_rows}
        by_rows = {name: {str(at): ns / 1e6 for at, ns in own.items()} for name, own in rows.items()}
        return {"model": "measured", "prefill_token_ms": self.prefill_token_ns / 1e6, **by_rows}


def _at(by_rows: Mapping[int, float], rows: int) -> float:
    known = sorted(by_rows)
    return float(np.interp(rows, known, [by_rows[count] for count in known]))
