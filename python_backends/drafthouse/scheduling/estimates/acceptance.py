"""How much of what is drafted for a request is accepted, and from when on that is known well enough.

LAPS-SD (arXiv 2505.17074) calls a request perceptible when its acceptance rate has become stable. Our reading: see `RequestAcceptance`.
Everything here is plain floats, O(1) a call. A rate is accepted per drafted token, in [0, 1].
"""

from collections import deque
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class AcceptanceOptions:
    """How acceptance is estimated, and what counts as stable."""

    prior_rate: float = 0.5  # before any request has ended, one request's worth of belief
    prior_round_variance: float = 0.1  # of one request's rate from round to round
    prior_request_variance: float = 0.05  # of the rate from request to request
    memory_requests: float = 500.0  # ended requests after which an old one counts 1/e
    domain_strength: float = 5.0  # requests' worth of belief that a domain is like all domains
    window: int = 64  # rounds of its own that a request's rate rests on
    recent: int = 8  # latest rounds, compared with the rest of the window to see whether the rate moved
    min_rounds: int = 2  # a request is not perceptible before
    stable_deviation: float = 0.1  # perceptible: standard deviation of the rate's estimate at most this
    hysteresis: float = 1.25  # no longer: above this times as much
    moved_deviations: float = 3.5  # no longer: recent rounds differ from the others by more than this many standard deviations

    def __post_init__(self) -> None:
        """ValueError where a value makes no sense."""
        positive = min(self.prior_round_variance, self.prior_request_variance, self.stable_deviation, self.moved_deviations) > 0
        windows = 1 < self.recent <= self.window // 2 and self.min_rounds > 0 and self.memory_requests > 1
        if not (positive and windows and 0 < self.prior_rate < 1 and self.hysteresis >= 1 and self.domain_strength >= 0):
            raise ValueError(f"acceptance options out of range: {self}")


_SPREAD_STRENGTH = 10.0  # requests' worth of belief in the variances one level up
_LEAST_VARIANCE = 1e-4
_POOLED_ROUNDS = 4.0  # rounds' worth of belief that a request varies from round to round like the others of its domain


class Prior(NamedTuple):
    """What is believed of a request before its first round.

    Attributes:
        rate: expected.
        round_variance: of one request's rate from round to round.
        pseudo_rounds: round_variance / variance of the rate from request to request: how many rounds of its own say as much about a request
            as this does. The pseudo-counts of a Beta prior, but in rounds: the tokens of one round are not independent.
    """

    rate: float
    round_variance: float
    pseudo_rounds: float


class RequestAcceptance:
    """The acceptance of one request over its last rounds.

    **Stable** is said of the estimate, not of single rounds. We read the paper as: the standard deviation over a sliding window of
    rounds is below a threshold. Said of single rounds that measures how random acceptance is, not how well it is known: a round of a
    request with rate 0.5 scatters by 0.3 for ever. What has to settle is the rate that the remaining time is computed from, so its
    deviation over the window is taken, the standard deviation of the posterior mean:

        deviation = s / sqrt(m + pseudo_rounds),

    m = rounds in the window, s = their standard deviation, pooled with the domain's while m is small.

    **Moved**: the mean of the latest rounds differs from that of the rest of the window by more than chance explains (a two-sample
    test); all but the last half of the latest rounds is then forgotten.

    Measured on 1200 simulated requests (chains of 5, chance per token from Beta(2, 1.5), 80 rounds, then another chance): the deviation
    of 8 single rounds <= 0.1 left 37-55 % of the requests with a chance above 0.3 never perceptible and fell back by mistake in 10 of 100
    rounds; that of 8 values of the running mean <= 0.05 was reached after 10 rounds (median), tokens per round then known to 14 %, but
    no later move was ever noticed (78 % off 16 rounds after one); this one, <= 0.08: 10 rounds, 14 %, 0.1 mistakes in 100 rounds, a move
    noticed after 5 rounds (median; 11 % off 16 rounds after). The default, <= 0.1: 6 rounds, 16 %; <= 0.15: 2 rounds, 25 %. The mean
    latency under laps-sd hardly depends on it (Azure code lengths, load 0.9, length error 0.5: the same within 0.2 % from 0.08 to 0.2).
    """

    __slots__ = ("_accepted", "_drafted", "_latest", "_older", "_squares", "_sum_latest", "_sum_older", "is_perceptible")

    def __init__(self) -> None:
        self._latest: deque[tuple[int, int, float]] = deque()  # drafted, accepted, rate
        self._older: deque[tuple[int, int, float]] = deque()
        self._drafted = self._accepted = 0
        self._sum_latest = self._sum_older = self._squares = 0.0
        self.is_perceptible = False

    @property
    def num_rounds(self) -> int:
        """Rounds in the window."""
        return len(self._latest) + len(self._older)

    def rate(self, prior: Prior) -> float:
        """Accepted per drafted token, shrunk to what is usual."""
        drafted = self._drafted
        if not drafted:
            return prior.rate
        num_rounds = len(self._latest) + len(self._older)
        return (num_rounds * self._accepted / drafted + prior.pseudo_rounds * prior.rate) / (num_rounds + prior.pseudo_rounds)

    def deviation(self, prior: Prior) -> float:
        """Standard deviation of `rate`."""
        return sqrt(self._variance(prior) / (len(self._latest) + len(self._older) + prior.pseudo_rounds))

    def saw_round(self, num_drafted: int, num_accepted: int, prior: Prior, options: AcceptanceOptions) -> None:
        """Add a round with at least one draft token, and decide anew whether the rate is known."""
        rate = num_accepted / num_drafted
        latest, older = self._latest, self._older
        latest.append((num_drafted, num_accepted, rate))
        self._drafted += num_drafted
        self._accepted += num_accepted
        self._sum_latest += rate
        self._squares += rate * rate
        if len(latest) > options.recent:
            aged = latest.popleft()
            self._sum_latest -= aged[2]
            self._sum_older += aged[2]
            older.append(aged)
            if len(older) > options.window - options.recent:
                self._forget_oldest()
        if self._has_moved(prior, options):
            self._forget_before_move(options.recent // 2)
            self.is_perceptible = False
        elif self.is_perceptible:
            self.is_perceptible = self.deviation(prior) <= options.stable_deviation * options.hysteresis
        else:
            self.is_perceptible = self.num_rounds >= options.min_rounds and self.deviation(prior) <= options.stable_deviation

    def _scatter(self) -> float:
        """Σ(per-round rate − mean)² over the window."""
        total = self._sum_latest + self._sum_older
        return max(0.0, self._squares - total * total / (len(self._latest) + len(self._older)))

    def _variance(self, prior: Prior) -> float:
        num_rounds = len(self._latest) + len(self._older)
        if num_rounds < 2:
            return prior.round_variance
        return (self._scatter() + _POOLED_ROUNDS * prior.round_variance) / (num_rounds - 1 + _POOLED_ROUNDS)

    def _has_moved(self, prior: Prior, options: AcceptanceOptions) -> bool:
        num_older, num_latest = len(self._older), options.recent
        if num_older < num_latest:
            return False
        off = self._sum_latest / num_latest - self._sum_older / num_older
        shared = num_older * num_latest / (num_older + num_latest)
        inside = max(0.0, self._scatter() - off * off * shared)  # within the two parts: what a move adds must not hide it
        variance = (inside + _POOLED_ROUNDS * prior.round_variance) / (num_older + num_latest - 2 + _POOLED_ROUNDS)
        return off * off * shared > options.moved_deviations**2 * variance

    def _forget_oldest(self) -> None:
        drafted, accepted, rate = self._older.popleft()
        self._drafted -= drafted
        self._accepted -= accepted
        self._sum_older -= rate
        self._squares -= rate * rate

    def _forget_before_move(self, num_kept: int) -> None:
        """Keep only the last rounds: of the latest, the first ones may still be from before the move."""
        kept = deque(list(self._latest)[-num_kept:])
        self._latest = kept
        self._older.clear()
        self._drafted = sum(drafted for drafted, _, _ in kept)
        self._accepted = sum(accepted for _, accepted, _ in kept)
        self._sum_latest, self._sum_older = sum(rate for _, _, rate in kept), 0.0
        self._squares = sum(rate * rate for _, _, rate in kept)

    def summary(self) -> tuple[int, float, float]:
        """(rounds, their rate, Σ(per-round rate − mean)²): what a domain learns from a request that ended."""
        return (self.num_rounds, self._accepted / self._drafted, self._scatter()) if self._drafted else (0, 0.0, 0.0)


class DomainAcceptance:
    """What the requests of a domain have in common, learned as they end: empirical Bayes by moments, shrunk to one level up."""

    __slots__ = ("_between", "_degrees", "_fade", "_num", "_rates", "_squares", "_strength", "_weights", "prior", "request_variance")

    def __init__(self, options: AcceptanceOptions, parent: "DomainAcceptance | None" = None) -> None:
        """Args: parent: over all domains; None for the one that is."""
        self._strength = 1.0 if parent is None else options.domain_strength
        self._fade = 1.0 - 1.0 / options.memory_requests
        self._weights = self._rates = self._squares = self._degrees = self._between = self._num = 0.0
        self.request_variance: float = options.prior_request_variance if parent is None else parent.request_variance
        variance = options.prior_round_variance
        self.prior: Prior = Prior(options.prior_rate, variance, variance / self.request_variance) if parent is None else parent.prior

    def saw_end(self, history: RequestAcceptance, above: Prior, variance_above: float) -> None:
        """Learn from a request that ended.

        Args:
            above, variance_above: of one level up: its prior and the variance between requests there. Requests count by how well their
                own rate is known, not by their rounds: those with bad drafts have more.
        """
        num_rounds, rate, squares = history.summary()
        if not num_rounds:
            return
        fade, prior, spread = self._fade, self.prior, _SPREAD_STRENGTH
        weight = num_rounds / (num_rounds + prior.pseudo_rounds)
        off = rate - prior.rate
        self._weights = fade * self._weights + weight
        self._rates = fade * self._rates + weight * rate
        self._squares = fade * self._squares + squares
        self._degrees = fade * self._degrees + num_rounds - 1
        self._between = fade * self._between + off * off - prior.round_variance / num_rounds
        self._num = fade * self._num + 1.0
        mean = (self._rates + self._strength * above.rate) / (self._weights + self._strength)
        variance = max(_LEAST_VARIANCE, (self._squares + spread * above.round_variance) / (self._degrees + spread))
        self.request_variance = max(_LEAST_VARIANCE, (self._between + spread * variance_above) / (self._num + spread))
        self.prior = Prior(mean, variance, variance / self.request_variance)
