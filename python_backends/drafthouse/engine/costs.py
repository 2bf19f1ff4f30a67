"""What a network call costs by its shape, and what rests on it: how many tokens to pad to, which rows share a call, which gaps to bridge.

The linear layers run on packed tokens, attention on a rectangle, so a call's time is that of its packed tokens plus something per row
and per empty place of the rectangle. Neither padding tokens nor idle rows change a result, so all of these are free to choose.
"""

import time
from collections.abc import Callable, Mapping, Sequence

Shape = tuple[int, int, int]  # rows, places per row, packed tokens

# The measurement is short: what is to be preferred has to be clearly cheaper.
_CLEARLY = 0.93
_MIN_ROUNDS = 3
_MOST_ROUNDS = 20
_MEASURED_LENGTHS = (2, 3, 4, 5, 6, 7, 8)  # a verification; few enough for three rounds of a large model in the budget
_LONG = 16  # far enough behind the last of them to tell what a token costs when there are many
_MORE_ROWS = 3


class CallCosts:
    """Decisions about call shapes from measured times; without measurements calls are not lengthened, split or widened."""

    def __init__(self, min_tokens: int, max_tokens: int, cost_ms: Mapping[Shape, float] | None = None) -> None:
        self.min_tokens = min_tokens  # of a call, packed or in a row
        self.cost_ms = dict(cost_ms or {})
        self._by_tokens = {packed: ms for (rows, places, packed), ms in sorted(self.cost_ms.items()) if rows == 1 and places == packed}
        self._padded = [self._cheapest(max(tokens, min_tokens)) for tokens in range(max(max_tokens, _MEASURED_LENGTHS[-1]) + 1)]
        self._place_ms = self._further(1, _LONG, _LONG - min_tokens)
        self._row_ms = self._further(_MORE_ROWS, min_tokens, _MORE_ROWS - 1)
        self.is_measured = len(self._by_tokens) > 1 and self._row_ms > 0

    def padded(self, num_tokens: int) -> int:
        """The number of packed tokens to run ``num_tokens`` with: the cheapest at or above it."""
        return self._padded[num_tokens] if num_tokens < len(self._padded) else num_tokens

    def call_ms(self, rows: int, places: int, packed: int) -> float:
        """Estimate of a network call; 0 without measurements."""
        if not self.is_measured:
            return 0.0
        empty = max(0, rows * places - packed - (rows - 1) * self.min_tokens)  # a further row's time has the first places in it
        return self._tokens_ms(self.padded(packed)) + (rows - 1) * self._row_ms + empty * self._place_ms

    def _tokens_ms(self, packed: int) -> float:
        """Time of one row of that length: measured, or on the line through the two longest that were."""
        if packed in self._by_tokens:
            return self._by_tokens[packed]
        low, high = sorted(self._by_tokens)[-2:]
        per_token = (self._by_tokens[high] - self._by_tokens[low]) / (high - low)
        return self._by_tokens[high] + max(per_token, 0.0) * (packed - high)

    def _cheapest(self, tokens: int) -> int:
        best = tokens
        for longer, ms in self._by_tokens.items():
            if longer > tokens and tokens in self._by_tokens:
                best = longer if ms < _CLEARLY * self._by_tokens[best] else best
        return best

    def _further(self, rows: int, places: int, count: int) -> float:
        """What each of ``count`` further rows, or places, costs beside the smallest call; 0 when not measured."""
        smallest = self._by_tokens.get(self.min_tokens)
        larger = self.cost_ms.get((rows, places, self.min_tokens))
        return 0.0 if smallest is None or larger is None else max((larger - smallest) / count, 1e-6)


def shapes_to_measure(min_tokens: int, max_tokens: int, slots: int) -> list[Shape]:
    """The shapes that ``CallCosts`` decides by, as far as this engine can run them."""
    lengths = [tokens for tokens in (min_tokens, *_MEASURED_LENGTHS, _LONG) if min_tokens <= tokens <= max_tokens]
    shapes = [(1, tokens, tokens) for tokens in dict.fromkeys(lengths)]
    if max_tokens >= _LONG:
        shapes.append((1, _LONG, min_tokens))
    if slots >= _MORE_ROWS:
        shapes.append((_MORE_ROWS, min_tokens, min_tokens))
    return shapes


def measure_calls(run: Callable[[int, int, int], None], shapes: Sequence[Shape], budget_ms: int) -> dict[Shape, float]:
    """Least time in ms that ``run(rows, places, packed)`` took, by shape, in up to 20 rounds over all shapes within the budget.

    Rounds spread a disturbance over all shapes; the least of several is what a shape costs undisturbed. Empty when the budget did not
    allow three rounds: a guess would be worse than no decision.
    """
    samples: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    deadline = time.perf_counter() + budget_ms / 1e3
    for _ in range(_MOST_ROUNDS):
        if time.perf_counter() >= deadline:
            break
        for shape in shapes:
            begin = time.perf_counter()
            run(*shape)
            samples[shape].append((time.perf_counter() - begin) * 1e3)
    # The first round pays for allocations.
    return {shape: min(times[1:]) for shape, times in samples.items() if len(times) >= _MIN_ROUNDS}
