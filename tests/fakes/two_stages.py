"""A draft stage and a verify stage without models: times from tables, acceptance by chance, everything seeded."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.adaptive import RoundOutcome, SpeculationController

MS = 1e6
MAX_DEPTH = 8
OTHER_MS = 3.0

# Verification in ms by tokens per row 1 … 9: near the measured times of the 91 M target, the dents at 8 rows included.
VERIFY_MS = {
    1: (14.0, 15.0, 16.0, 17.0, 17.5, 18.0, 19.0, 20.0, 20.7),
    8: (18.0, 19.0, 31.0, 26.0, 34.0, 41.0, 42.0, 40.0, 43.0),
    16: (34.0, 36.0, 59.0, 49.0, 65.0, 78.0, 80.0, 76.0, 82.0),
}


def verify_ms(batch: int, depth: int) -> float:
    """Between the tabulated batch sizes, linear."""
    sizes = sorted(VERIFY_MS)
    return float(np.interp(batch, sizes, [VERIFY_MS[size][depth] for size in sizes]))


def draft_ms(batch: int, depth: int, hop_ms: float) -> float:
    return hop_ms + 0.4 * depth * (1 + 0.05 * batch) if depth else 0.0


@dataclass
class TwoStages:
    """Runs rounds under a controller, with noise of 5 % on every time and one time in fifty five times too long."""

    controller: SpeculationController
    hop_ms: float = 5.0
    overlap: bool = False
    seed: int = 0
    depths: list[int] = field(default_factory=list)  # of every round

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def rate(self, batch: int, depth: int, chance: float) -> float:
        """True tokens per ms with a fixed depth."""
        tokens = batch * float((chance ** np.arange(depth + 1)).sum())
        return tokens / self._cycle_ms(batch, depth)

    def best_rate(self, batch: int, chance: float) -> float:
        return max(self.rate(batch, depth, chance) for depth in range(MAX_DEPTH + 1))

    def run(self, batch: int, chance: float, num_rounds: int) -> float:
        """Expected tokens per ms of the chosen depths, trials included; free of the luck and noise that the controller sees."""
        tokens = time_ms = 0.0
        for _ in range(num_rounds):
            depth = self._round(batch, chance)
            tokens += batch * float((chance ** np.arange(depth + 1)).sum())
            time_ms += self._cycle_ms(batch, depth)
        return tokens / time_ms

    def _round(self, batch: int, chance: float) -> int:
        plan = self.controller.decide(batch)
        depth = plan.num_draft_tokens
        accepted: NDArray[np.int64] = np.minimum(self._rng.geometric(1 - chance, batch) - 1, depth)
        outcome = RoundOutcome(
            plan=plan,
            batch_size=batch,
            num_tokens=depth + 1,
            draft_ns=self._noisy(draft_ms(batch, depth, self.hop_ms)),
            verify_ns=self._noisy(verify_ms(batch, depth)),
            other_ns=self._noisy(OTHER_MS),
            asked=np.full(batch, depth),
            accepted=accepted,
        )
        self.controller.observe(outcome)
        self.depths.append(depth)
        return depth

    def _cycle_ms(self, batch: int, depth: int) -> float:
        draft, verify = draft_ms(batch, depth, self.hop_ms), verify_ms(batch, depth)
        return (max(draft, verify) if self.overlap else draft + verify) + OTHER_MS

    def _noisy(self, time_ms: float) -> float:
        outlier = 5.0 if self._rng.random() < 0.02 else 1.0
        return float(time_ms * MS * outlier * np.exp(self._rng.normal(0.0, 0.05)))
