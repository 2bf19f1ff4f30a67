"""Which requests go into the next verification, with how many draft tokens each.

CoSine (arXiv 2503.10325, section "batch scheduler") minimises per-request latency plus weighted verification tokens, subject to limits of
latency, memory and verification size. The paper states no formula that we know of; this reading is ours. With x_i = 1 for a chosen request,
m_i of its draft tokens, u_i committed tokens that it carries anyway, B = Σ x_i rows of T >= u_i + m_i tokens, minimise

    cycle(B, T) + run_ns · (runs - 1)              the round, which every request in it waits for
    + token_ns · Σ x_i (u_i + m_i)                 weighted verification tokens
    + worth_ns · Σ w_i (E_i(d_i) - x_i E_i(m_i))   latency put off: tokens that could have been emitted now and are left for later

    subject to 1 <= B <= max_rows, T <= max_width, Σ x_i (u_i + m_i) <= max_tokens, cycle + runs <= max_latency_ns,
               at most num_free_slots requests that have no slot yet.

E_i(m) = 1 + the m best of its draft tokens' chances; d_i = all of them. w_i = 1 + ageing · rounds the request was left out: whoever waits
gains. The paper shortens the longest drafts first when they exceed the verification's limit; where chances fall with depth alone, that
is what dropping the least promising tokens does.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drafthouse.scheduling.slot_runs import best_subsets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NO_SLOT = -1
_MAX_PASSES = 4
_SETS_PER_PASS = 2
_PRUNED_TO = 3  # candidates per row that may go, in further passes
_NEAR_ENOUGH = 1.01  # times the lower bound
_LEAST_RAISE = 1.3
_URGENCY = 1e-6  # relative weight of one place in the policy's order: decides ties


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that could be verified next. Candidates come in the policy's order, most urgent first."""

    slot: int  # in the target, `NO_SLOT` = it would need a free one
    num_uncached: int  # committed tokens that its row carries anyway, >= 1
    chances: Floats  # [d], path probabilities of its draft tokens, in any order
    rounds_waited: int = 0  # see `WaitingRounds`


@dataclass(frozen=True, slots=True)
class Limits:
    """What a verification may take."""

    max_rows: int
    max_tokens: int  # over all rows, committed tokens included
    max_width: int  # tokens of one row
    max_latency_ns: float = float("inf")
    num_free_slots: int = 0


@dataclass(frozen=True, slots=True)
class Prices:
    """What the objective's terms weigh, in ns."""

    worth_ns: float  # of an emitted token: what a token takes at present (time of a round / tokens that it emits)
    token_ns: float = 0.0  # of verifying a token, beyond what `cycle_ns` says
    run_ns: float = 0.0  # of a further run of slots
    ageing: float = 0.25  # weight gained by a round of waiting, relative to a request that did not wait


@dataclass(frozen=True, slots=True)
class Assignment:
    """The next verification."""

    chosen: tuple[int, ...]  # indices of candidates, ascending
    num_draft_tokens: tuple[int, ...]  # of each chosen one: its most promising ones
    width: int  # T: the call may be padded to it
    num_runs: int
    latency_ns: float  # expected, with the cost of runs
    objective_ns: float


class WaitingRounds:
    """Counts for each open request how often it was left out in a row."""

    def __init__(self) -> None:
        self._rounds: dict[int, int] = {}

    def __getitem__(self, request_uid: int) -> int:
        return self._rounds.get(request_uid, 0)

    def note(self, candidates: Iterable[int], chosen: Iterable[int]) -> None:
        """A round was assigned. Requests that were no candidates are forgotten. All are uids."""
        served = set(chosen)
        self._rounds = {uid: 0 if uid in served else self[uid] + 1 for uid in candidates}


def cost_matrix(cost_ns: Callable[[int, int], float], max_rows: int, max_width: int) -> Floats:
    """Costs by rows and tokens per row, [max_rows + 1, max_width + 1]; infinite where either is 0."""
    costs = np.full((max_rows + 1, max_width + 1), np.inf)
    costs[1:, 1:] = [[cost_ns(rows, width) for width in range(1, max_width + 1)] for rows in range(1, max_rows + 1)]
    return costs


def assign(candidates: Sequence[Candidate], cycle_ns: Floats, limits: Limits, prices: Prices) -> Assignment:
    """Minimise the objective above.

    Exact while the limits of tokens and latency do not bind; where they do, tokens and runs are priced until they fit. When nothing
    fits, the most urgent candidate that can run goes alone, without a draft: something always runs.

    Args:
        candidates: at least one.
        cycle_ns: `cost_matrix` of a round, at least [max_rows + 1, max_width + 1].
    """
    problem = _Problem(candidates, cycle_ns, limits, prices)
    token_price, time_price = _Price(), _Price()
    best: Assignment | None = None
    for _ in range(_MAX_PASSES):
        found = problem.solve(token_price.value, time_price.value)
        best = min((option for option in (best, *found.fitting) if option), key=lambda option: option.objective_ns, default=None)
        if best is not None and best.objective_ns <= found.bound_ns * _NEAR_ENOUGH:
            break
        moved = token_price.move(found.token_price > 0, found.token_price)
        if not time_price.move(found.too_slow, 1 + 2 * time_price.value) and not moved:
            break
    return best or problem.alone()


class _Price:
    """A price that is raised until a limit is kept, and then lowered again by halves while it might be too high."""

    def __init__(self) -> None:
        self.value = 0.0
        self._too_low: float | None = None
        self._enough: float | None = None

    def move(self, exceeded: bool, estimate: float) -> bool:
        """Note whether the limit was exceeded at this price; False when the price stays: the limit never was in the way."""
        if exceeded:
            self._too_low = self.value
        elif self._too_low is not None:
            self._enough = self.value
        else:
            return False
        if self._enough is None:
            self.value = max(estimate, _LEAST_RAISE * self.value)
        else:
            self.value = (self._enough + (self._too_low or 0.0)) / 2
        return True


@dataclass(slots=True)
class _Found:
    """What a pass brought."""

    bound_ns: float  # no assignment has a lower objective
    fitting: list[Assignment] = field(default_factory=list)
    token_price: float = 0.0  # at which the best set would have kept to the limit of tokens
    too_slow: bool = False  # the best set


class _Problem:
    """One call of `assign`. Candidates are kept in the order of their slots, those without one last. n candidates, W widths."""

    def __init__(self, candidates: Sequence[Candidate], cycle_ns: Floats, limits: Limits, prices: Prices) -> None:
        self._limits, self._prices = limits, prices
        rows, self._max_width = min(limits.max_rows, len(candidates)), limits.max_width
        self._cycle = np.where(cycle_ns <= limits.max_latency_ns, cycle_ns, np.inf)[: rows + 1, : limits.max_width + 1]
        self._cycle[0] = np.inf
        self._full_cycle = cycle_ns
        slots = np.array([candidate.slot for candidate in candidates])
        self._order = np.argsort(np.where(slots == NO_SLOT, np.iinfo(np.int64).max, slots), kind="stable")
        self._slots = slots[self._order]
        self._num_uncached = np.array([candidates[index].num_uncached for index in self._order])
        waited = np.array([candidates[index].rounds_waited for index in self._order])
        urgency = 1 + _URGENCY * (len(candidates) - self._order)
        self._worth = prices.worth_ns * (1 + prices.ageing * waited) * urgency  # [n], ns per token
        self._chances = _best_first([candidates[index].chances for index in self._order])
        self._cumulative = np.concatenate([np.ones((len(slots), 1)), 1 + np.cumsum(np.maximum(self._chances, 0), axis=1)], axis=1)
        self._potential = float((self._worth * self._cumulative[:, -1]).sum())
        self._without_slot = self._slots == NO_SLOT

    def solve(self, token_price: float, time_price: float) -> _Found:
        """The best sets of candidates if a token costs this more, and the round's time this many times more, made to fit the limits.

        The least total at these prices, less what the limits allow to be spent on them, bounds the objective (Lagrange).
        """
        values = self._values(token_price)
        best_value = values.max(axis=1)
        kept = np.nonzero(best_value > -np.inf)[0]
        if (token_price or time_price) and len(kept) > _PRUNED_TO * (len(self._cycle) - 1):
            kept = np.sort(np.argsort(-best_value, kind="stable")[: _PRUNED_TO * (len(self._cycle) - 1)])
        slots = self._slots[kept]
        neighbours = (slots == np.append(NO_SLOT - 1, slots[:-1]) + 1) & (slots != NO_SLOT)
        subsets = best_subsets(values[kept], neighbours, (1 + time_price) * self._prices.run_ns, len(self._cycle) - 1)
        priced = (1 + time_price) * self._cycle.T - subsets.totals  # [W, rows + 1]
        spent = token_price * self._limits.max_tokens + (time_price * self._limits.max_latency_ns if time_price else 0.0)
        found = _Found(float(priced.min()) + self._potential - spent)
        # The second choice does without the price of the time that is not lost to gaps: it need not be the best at any price.
        for totals in (priced, self._cycle.T - subsets.totals):
            best_counts = totals.argmin(axis=1)
            least = totals[np.arange(len(totals)), best_counts]
            for width in np.argsort(least, kind="stable")[:_SETS_PER_PASS].tolist():
                if np.isfinite(least[width]):
                    self._fit(kept[subsets.members(width, int(best_counts[width]))], width, found)
                if found.fitting and not (token_price or time_price or found.token_price or found.too_slow):
                    return found  # no limit is in the way
            if not time_price:
                break
        return found

    def alone(self) -> Assignment:
        """The most urgent candidate that may run, by itself, without a draft."""
        runnable = ~self._without_slot if self._limits.num_free_slots == 0 and not self._without_slot.all() else self._order >= 0
        index = int(np.argmin(np.where(runnable, self._order, len(self._order))))
        width = int(self._num_uncached[index])
        tokens = np.zeros(1, np.int64)
        return self._assignment(np.array([index]), tokens, width, float(self._full_cycle[1, min(width, self._full_cycle.shape[1] - 1)]))

    def _values(self, token_price: float) -> Floats:
        """What choosing each candidate saves at each width 0 … max_width, with the draft tokens that are worth it. [n, W]"""
        price = self._prices.token_ns + token_price
        wanted = (self._worth[:, None] * self._chances > price).sum(axis=1)  # tokens that are worth their price
        room = np.arange(self._max_width + 1) - self._num_uncached[:, None]
        tokens = np.clip(room, 0, wanted[:, None])
        saved = self._worth[:, None] * np.take_along_axis(self._cumulative, tokens, axis=1)
        values = np.where(room >= 0, saved - price * (self._num_uncached[:, None] + tokens), -np.inf)
        if self._without_slot.sum() > self._limits.num_free_slots:
            ranked = np.nonzero(self._without_slot)[0]
            ranked = ranked[np.argsort(-values[ranked].max(axis=1), kind="stable")]
            values[ranked[self._limits.num_free_slots :]] = -np.inf
        return values

    def _fit(self, members: Ints, width: int, found: _Found) -> None:
        """Give ``members`` the draft tokens that are worth most within the limits; note which limit is in the way."""
        latency_ns = float(self._cycle[len(members), width]) + self._prices.run_ns * (self._num_runs(members) - 1)
        budget = self._limits.max_tokens - int(self._num_uncached[members].sum())
        found.too_slow |= latency_ns > self._limits.max_latency_ns
        worth = self._worth[members, None] * self._chances[members]
        room = width - self._num_uncached[members]
        worth_it = (worth > self._prices.token_ns) & (np.arange(worth.shape[1]) < room[:, None])
        tokens = worth_it.sum(axis=1)
        if tokens.sum() > budget:
            ranked = np.sort(worth[worth_it])[::-1]
            found.token_price = max(found.token_price, float(ranked[max(budget, 0)]) - self._prices.token_ns)
            kept = np.argsort(np.where(worth_it, -worth, np.inf), axis=None, kind="stable")[: max(budget, 0)]
            tokens = np.bincount(kept // worth.shape[1], minlength=len(members))
        if budget < 0:
            found.token_price = max(found.token_price, float(self._worth[members].min()))
        elif latency_ns <= self._limits.max_latency_ns:
            found.fitting.append(self._assignment(members, tokens, width, latency_ns))

    def _num_runs(self, members: Ints) -> int:
        slots = self._slots[members]
        return int((self._without_slot[members] | np.append(True, slots[1:] != slots[:-1] + 1)).sum())

    def _assignment(self, members: Ints, tokens: Ints, width: int, latency_ns: float) -> Assignment:
        saved = float((self._worth[members] * self._cumulative[members, tokens]).sum())
        verified = int((self._num_uncached[members] + tokens).sum())
        objective_ns = latency_ns + self._prices.token_ns * verified + self._potential - saved
        by_index = np.argsort(self._order[members])
        chosen = tuple(self._order[members][by_index].tolist())
        return Assignment(chosen, tuple(tokens[by_index].tolist()), width, self._num_runs(members), latency_ns, objective_ns)


def _best_first(chances: Sequence[Floats]) -> Floats:
    """One row per candidate, best chance first, padded with -1 to the longest. [n, D]"""
    lengths = np.array([len(row) for row in chances])
    padded = np.full((len(chances), int(lengths.max())), -1.0)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(chances)
    ordered: Floats = -np.sort(-padded, axis=1)
    return ordered
