"""What a whole round takes: drafting, verification and the rest, put together from their cost tables."""

from typing import Any

from drafthouse.scheduling.stage_costs import StageCosts, StagePrior, bucket

_DRAFT_PRIOR = StagePrior(call_ns=4e6, row_ns=0.1e6, token_ns=0.4e6, row_token_ns=0.02e6)
_OTHER_PRIOR = StagePrior(call_ns=3e6, row_ns=0.3e6, token_ns=0.2e6, row_token_ns=0.1e6)
_WIDTH_MEMORY = 0.9


class CycleCosts:
    """Times of rounds by batch size, draft depth and number of drafters, learned online. Not thread-safe.

    The width of a verification is not always depth + 1: trees are cut to what pays, and rows may have to catch up. So the widths that a
    depth led to are remembered, and its verification takes the mean over them.
    """

    def __init__(self, max_drafters: int, overlap: bool, verify_costs: StageCosts) -> None:
        """Args: overlap = the two stages run at the same time, on different batches: the longer one counts."""
        self._overlap = overlap
        self._verify = verify_costs
        self._other = StageCosts(_OTHER_PRIOR)
        self._draft = {drafters: StageCosts(_DRAFT_PRIOR) for drafters in range(1, max_drafters + 1)}
        self._widths: dict[tuple[int, int], dict[int, float]] = {}  # by batch bucket and depth: weight of each width

    def observe_verify(self, batch_size: int, depth: int, num_tokens: int, verify_ns: float, other_ns: float) -> None:
        """A round with drafts of ``depth`` asked for led to a verification of ``num_tokens`` per row."""
        self._verify.observe(batch_size, num_tokens, verify_ns)
        self._other.observe(batch_size, min(depth, 1), other_ns)
        widths = self._widths.setdefault((bucket(batch_size), depth), {})
        for width in widths:
            widths[width] *= _WIDTH_MEMORY
        widths[num_tokens] = widths.get(num_tokens, 0.0) + 1.0

    def observe_draft(self, batch_size: int, depth: int, num_drafters: int, draft_ns: float, catching_up: bool) -> None:
        """Drafting took this long. Catching up with tokens first takes longer than usual: that counts only while nothing else is known."""
        costs = self._draft[num_drafters]
        if not catching_up or not costs.num_seen(batch_size, depth):
            costs.observe(batch_size, depth, draft_ns)

    def cycle_ns(self, batch_size: int, depth: int, num_drafters: int) -> float:
        """Expected time of a round."""
        other_ns = self._other.predict_ns(batch_size, min(depth, 1))
        draft_ns, verify_ns = self._draft_ns(batch_size, depth, num_drafters), self._verify_ns(batch_size, depth)
        return other_ns + (max(draft_ns, verify_ns) if self._overlap else draft_ns + verify_ns)

    def overhead_ns(self, batch_size: int, depth: int, num_drafters: int) -> float:
        """What a round takes beside its verification when nothing overlaps."""
        return self._other.predict_ns(batch_size, min(depth, 1)) + self._draft_ns(batch_size, depth, num_drafters)

    def tables(self) -> dict[str, Any]:
        """The cost tables of the stages; can be written as JSON."""
        drafting = {str(drafters): costs.table() for drafters, costs in self._draft.items()}
        return {"draft_ns": drafting, "verify_ns": self._verify.table(), "other_ns": self._other.table()}

    def _verify_ns(self, batch_size: int, depth: int) -> float:
        widths = self._widths.get((bucket(batch_size), depth))
        if not widths:
            return self._verify.predict_ns(batch_size, depth + 1)
        total = sum(weight * self._verify.predict_ns(batch_size, width) for width, weight in widths.items())
        return total / sum(widths.values())

    def _draft_ns(self, batch_size: int, depth: int, num_drafters: int) -> float:
        if depth == 0:
            return 0.0
        costs = self._draft[num_drafters]
        if not costs.num_observations:
            # Drafters work side by side: another number of them is the best guess.
            seen = [other for other, known in self._draft.items() if known.num_observations]
            costs = self._draft[min(seen, key=lambda other: abs(other - num_drafters))] if seen else costs
        return costs.predict_ns(batch_size, depth)
