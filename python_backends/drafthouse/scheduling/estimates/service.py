"""How long a request is still going to take: what the semi-clairvoyant policies rank by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

from drafthouse.scheduling.estimates.acceptance import AcceptanceOptions, DomainAcceptance, Prior, RequestAcceptance
from drafthouse.scheduling.estimates.accuracy import ErrorFigures, ErrorMeter
from drafthouse.scheduling.estimates.lengths import LengthError, LengthPredictor
from drafthouse.scheduling.policy import Schedulable


@dataclass(frozen=True, slots=True)
class EstimatorOptions:
    """How `Estimator` learns. The priors hold until the first observation, and only set the scale."""

    prior_num_drafted: float = 4.0  # draft tokens per round
    prior_draft_token_ns: float = 1e6
    prior_verify_ns: float = 10e6
    prior_prefill_token_ns: float = 0.2e6
    memory_rounds: float = 500.0  # requests' rounds after which an old one counts 1/e
    memory_prefills: float = 100.0
    acceptance: AcceptanceOptions = field(default_factory=AcceptanceOptions)

    def __post_init__(self) -> None:
        """ValueError where a value makes no sense."""
        priors = (self.prior_num_drafted, self.prior_draft_token_ns, self.prior_prefill_token_ns)
        if min(priors) < 0 or self.prior_verify_ns <= 0 or min(self.memory_rounds, self.memory_prefills) <= 1:
            raise ValueError(f"estimator options out of range: {self}")


@dataclass(frozen=True, slots=True)
class EstimationError:
    """Estimated against attained service of requests that ended, in ns; cancelled ones, whose end nobody knows, are left out.

    Attributes:
        at_perceptible: attained + estimated remaining time at the moment a request became perceptible for the first time. The
            figure to hold against the paper's 6.84 % is its ``relative``.
        at_arrival: estimated time before its first round, from its domain's acceptance. Missing are requests nobody asked about then,
            and those that came before the first round of all was measured.
        num_never_perceptible: requests that ended before they became perceptible.
    """

    at_perceptible: ErrorFigures
    at_arrival: ErrorFigures
    num_never_perceptible: int

    def as_dict(self) -> Mapping[str, object]:
        """For JSON."""
        figures = {"at_perceptible": self.at_perceptible.as_dict(), "at_arrival": self.at_arrival.as_dict()}
        return {**figures, "num_never_perceptible": self.num_never_perceptible}


class _Open:
    """What is kept of a request until it ends."""

    __slots__ = ("at_arrival", "at_perceptible", "history")

    def __init__(self, at_arrival: float) -> None:
        self.at_arrival = at_arrival  # ns, NaN = not asked
        self.at_perceptible = nan  # ns, NaN = not yet
        self.history: RequestAcceptance | None = None


class Estimator:
    """Remaining time by LAPS-SD (arXiv 2505.17074): L · (n·T_SSM + T_LLM) / (n·A + 1), and the prefill of what is not cached.

    L from a length predictor; n, T_SSM and T_LLM smoothed over the rounds of all requests; A from the request's own rounds, shrunk to
    its domain's, that to all domains'. With batches a round is shared: its times are the round's wall times, so what is estimated is
    the time in rounds, as `Schedulable.attained_ns` counts it. One per server; not thread-safe; O(1) a call beside the length
    predictor's own cost. State of a request is held from the first call about it to `saw_end`.
    """

    def __init__(self, lengths: LengthPredictor, options: EstimatorOptions | None = None) -> None:
        options = EstimatorOptions() if options is None else options
        self._lengths = lengths
        self._options = options
        self._acceptance = options.acceptance
        self._open: dict[int, _Open] = {}
        self._all = DomainAcceptance(options.acceptance)
        self._above = self._all.prior, self._all.request_variance  # what holds before anything has ended
        self._domains: dict[str, DomainAcceptance] = {}
        self._fade, self._fade_prefill = 1.0 - 1.0 / options.memory_rounds, 1.0 - 1.0 / options.memory_prefills
        self._rounds = self._drafted = self._rows = self._draft_ns = self._verify_ns = 0.0  # faded sums
        self._prefill_tokens = self._prefill_ns = 0.0
        self.num_drafted = options.prior_num_drafted
        self.rows_per_round = 1.0  # that share a round, as a request meets it
        self.round_ns = options.prior_num_drafted * options.prior_draft_token_ns + options.prior_verify_ns
        self.prefill_token_ns = options.prior_prefill_token_ns
        self._at_perceptible, self._at_arrival = ErrorMeter(), ErrorMeter()
        self._num_never_perceptible = 0

    def __len__(self) -> int:
        """Requests about which something is kept."""
        return len(self._open)

    @property
    def draft_token_ns(self) -> float:
        """T_SSM: time of drafting per draft token."""
        return self._draft_ns / self._drafted if self._drafted else self._options.prior_draft_token_ns

    @property
    def verify_ns(self) -> float:
        """T_LLM: time of a verification."""
        return self._verify_ns / self._rounds if self._rounds else self._options.prior_verify_ns

    def remaining_tokens(self, request: Schedulable) -> float:
        """Expected further output tokens, >= 1."""
        return self._lengths.predict_remaining(request)

    def total_tokens(self, request: Schedulable) -> float:
        """Expected output tokens, those generated included."""
        return request.num_output_tokens + self._lengths.predict_remaining(request)

    def acceptance(self, request: Schedulable) -> float:
        """A: accepted per drafted token, in (0, 1)."""
        opened = self._open.get(request.request_uid)
        prior = self._prior(request.domain)
        return prior.rate if opened is None or opened.history is None else opened.history.rate(prior)

    def remaining_ns(self, request: Schedulable) -> float:
        """Expected further time in rounds, recomputing what is not cached included."""
        opened = self._open.get(request.request_uid)
        prior = (self._domains.get(request.domain) or self._all).prior
        rate = prior.rate if opened is None or opened.history is None else opened.history.rate(prior)
        num_rounds = self._lengths.predict_remaining(request) / (self.num_drafted * rate + 1.0)
        uncached = request.num_uncached - 1  # a round computes the last committed token anyway
        remaining = num_rounds * self.round_ns + (uncached * self.prefill_token_ns if uncached > 0 else 0.0)
        if opened is None:
            at_arrival = request.num_output_tokens == 0 and self._rounds > 0
            self._open[request.request_uid] = _Open(remaining if at_arrival else nan)
        return remaining

    def is_perceptible(self, request: Schedulable) -> bool:
        """Whether its acceptance rate is known well enough to rank it by `remaining_ns`; changes only in `saw_round`."""
        opened = self._open.get(request.request_uid)
        return opened is not None and opened.history is not None and opened.history.is_perceptible

    def saw_arrival(self, request: Schedulable) -> None:
        """Note what would be estimated now, for `error`. Needed only under policies that do not ask for `remaining_ns` at arrival."""
        if request.request_uid not in self._open:
            self.remaining_ns(request)

    def saw_round(
        self, request: Schedulable, num_drafted: int, num_accepted: int, draft_ns: float, verify_ns: float, num_rows: int = 1
    ) -> None:
        """Learn from a round in which the request was verified; call it when the request's own figures are up to date.

        Args:
            num_drafted, num_accepted: its draft tokens that were verified, and those of them that were accepted; 0 drafted is a round
                without speculation.
            draft_ns, verify_ns: wall time of the round's two stages: together what the round added to ``attained_ns``.
            num_rows: requests verified in it, this one included.

        Raises:
            ValueError: 0 <= num_accepted <= num_drafted does not hold, a time is negative or NaN, or there are no rows. Nothing is
                learned then.
        """
        if not (0 <= num_accepted <= num_drafted and draft_ns >= 0 and verify_ns >= 0 and num_rows >= 1):
            spent = f"{draft_ns} + {verify_ns} ns"
            raise ValueError(f"a round of {num_rows} rows, {num_drafted} drafted, {num_accepted} accepted tokens in {spent}")
        self._saw_times(num_drafted, draft_ns, verify_ns, num_rows)
        opened = self._open.get(request.request_uid)
        if opened is None:
            opened = self._open[request.request_uid] = _Open(nan)
        if not num_drafted:
            return
        if opened.history is None:
            opened.history = RequestAcceptance()
        opened.history.saw_round(num_drafted, num_accepted, self._prior(request.domain), self._acceptance)
        if opened.history.is_perceptible and opened.at_perceptible != opened.at_perceptible:
            opened.at_perceptible = request.attained_ns + self.remaining_ns(request)

    def saw_prefill(self, num_tokens: int, prefill_ns: float) -> None:
        """Learn what a prefill of ``num_tokens`` > 0 tokens took; ValueError for what cannot be."""
        if not (num_tokens > 0 and prefill_ns >= 0):
            raise ValueError(f"a prefill of {num_tokens} tokens in {prefill_ns} ns")
        fade = self._fade_prefill
        self._prefill_tokens = fade * self._prefill_tokens + num_tokens
        self._prefill_ns = fade * self._prefill_ns + prefill_ns
        self.prefill_token_ns = self._prefill_ns / self._prefill_tokens

    def saw_end(self, request: Schedulable, finished: bool) -> None:
        """Learn from a request that ended, and drop what was kept of it; once for each, whether it ever ran or not.

        Args:
            finished: True = a natural end; False = cut at ``max_tokens``, cancelled, expired or failed.
        """
        self._lengths.observe(request, finished)
        opened = self._open.pop(request.request_uid, None)
        if opened is None:
            return
        if opened.history is not None:
            self._learn_acceptance(request.domain, opened.history)
        attained = float(request.attained_ns)
        if attained <= 0 or not (finished or request.num_output_tokens >= request.max_tokens):
            return
        if opened.at_arrival == opened.at_arrival:
            self._at_arrival.add(opened.at_arrival, attained)
        if opened.at_perceptible == opened.at_perceptible:
            self._at_perceptible.add(opened.at_perceptible, attained)
        else:
            self._num_never_perceptible += 1

    def error(self) -> EstimationError:
        """Of execution times, over ended requests."""
        return EstimationError(self._at_perceptible.figures(), self._at_arrival.figures(), self._num_never_perceptible)

    def length_error(self) -> LengthError:
        """Of output lengths, see `LengthPredictor.error`."""
        return self._lengths.error()

    def _prior(self, domain: str) -> Prior:
        return (self._domains.get(domain) or self._all).prior

    def _saw_times(self, num_drafted: int, draft_ns: float, verify_ns: float, num_rows: int) -> None:
        fade = self._fade
        rounds = self._rounds = fade * self._rounds + 1.0
        drafted = self._drafted = fade * self._drafted + num_drafted
        sum_of_rows = self._rows = fade * self._rows + num_rows
        self._draft_ns = fade * self._draft_ns + draft_ns
        self._verify_ns = fade * self._verify_ns + verify_ns
        self.num_drafted = drafted / rounds
        self.rows_per_round = sum_of_rows / rounds
        self.round_ns = max((self._draft_ns + self._verify_ns) / rounds, 1.0)  # n·T_SSM + T_LLM; policies divide by it

    def _learn_acceptance(self, name: str, history: RequestAcceptance) -> None:
        overall = self._all
        overall.saw_end(history, *self._above)
        if name:
            domain = self._domains.get(name)
            if domain is None:
                domain = self._domains[name] = DomainAcceptance(self._acceptance, overall)
            domain.saw_end(history, overall.prior, overall.request_variance)
