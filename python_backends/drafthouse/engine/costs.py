"""What a network call costs by its shape, and the two decisions that rest on it: how far to pad, and which gaps to bridge.

Cost is not monotone in the number of tokens: measured on a 91 M model at 8 rows, 31.4 ms for 3 tokens and 26.3 ms for 4. Neither padding
nor idle rows change a result, so both are free to choose.
"""

import time
from collections.abc import Callable, Mapping, Sequence

Shape = tuple[int, int]  # rows, tokens

# The measurement is short: what is to be preferred has to be clearly cheaper.
_CLEARLY = 0.93
_GAP_SHARE = 0.8
_LONGEST_GAP = 4
_MIN_ROUNDS = 3
_MEASURED_LENGTHS = (2, 3, 4, 5, 6, 7, 8)  # a verification; few enough for three rounds of a large model in the budget
# One row against three tells what a further row costs, and so what a call costs by itself.
_ROW_TOKENS = 4
_MORE_ROWS = 3


class CallCosts:
    """Decisions about call shapes from measured times; without measurements calls are neither lengthened nor widened."""

    def __init__(self, min_tokens: int, max_tokens: int, cost_ms: Mapping[Shape, float] | None = None) -> None:
        self.cost_ms = dict(cost_ms or {})
        self._padded = [self._cheapest_length(max(tokens, min_tokens)) for tokens in range(max_tokens + 1)]
        self.max_gap = self._longest_gap()  # idle slots between two tasks that are cheaper to run along than a second call

    def padded(self, num_tokens: int) -> int:
        """The call length for ``num_tokens``, 1 up to the largest step: the cheapest at or above it."""
        return self._padded[num_tokens]

    def _cheapest_length(self, tokens: int) -> int:
        best = tokens
        for rows, longer in sorted(self.cost_ms):
            if rows == 1 and longer > tokens and (1, tokens) in self.cost_ms:
                best = longer if self.cost_ms[1, longer] < _CLEARLY * self.cost_ms[1, best] else best
        return best

    def _longest_gap(self) -> int:
        one, more = self.cost_ms.get((1, _ROW_TOKENS)), self.cost_ms.get((_MORE_ROWS, _ROW_TOKENS))
        if one is None or more is None:
            return 0
        row_ms = max((more - one) / (_MORE_ROWS - 1), 1e-6)
        return max(0, min(_LONGEST_GAP, int(_GAP_SHARE * (one - row_ms) / row_ms)))


def shapes_to_measure(min_tokens: int, max_tokens: int, slots: int) -> list[Shape]:
    """The shapes that ``CallCosts`` decides by, as far as this engine can run them."""
    lengths = [tokens for tokens in _MEASURED_LENGTHS if min_tokens <= tokens <= max_tokens]
    return [(1, tokens) for tokens in lengths] + [(_MORE_ROWS, _ROW_TOKENS)] * (slots >= _MORE_ROWS and max_tokens >= _ROW_TOKENS)


def measure_calls(run: Callable[[int, int], None], shapes: Sequence[Shape], budget_ms: int) -> dict[Shape, float]:
    """Least time in ms that ``run(rows, tokens)`` took, by shape, in rounds over all shapes until the budget is spent.

    Rounds spread a disturbance over all shapes; the least of several is what a shape costs undisturbed. Empty when the budget did not
    allow three rounds: a guess would be worse than no decision.
    """
    samples: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    deadline = time.perf_counter() + budget_ms / 1e3
    while time.perf_counter() < deadline and budget_ms:
        for shape in shapes:
            begin = time.perf_counter()
            run(*shape)
            samples[shape].append((time.perf_counter() - begin) * 1e3)
    # The first round pays for allocations.
    return {shape: min(times[1:]) for shape, times in samples.items() if len(times) >= _MIN_ROUNDS}
