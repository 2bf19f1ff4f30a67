"""Length by conditional mean residual: of the outputs that got this long in this domain, how many more tokens did they get?

E[L − t | L > t] from an online life table per routed domain. Like TRAIL (arXiv 2410.01035) it is refined with every token generated,
but it needs no model: what has been generated is the feature.
"""

from dataclasses import dataclass

from drafthouse.scheduling.estimates.lengths import PRIOR_MEAN_TOKENS, ArrivalPredictions, LengthError
from drafthouse.scheduling.estimates.survival import LifeTable, SurvivalCurve, prior_hazards
from drafthouse.scheduling.policy import Schedulable


@dataclass(frozen=True, slots=True)
class HistogramOptions:
    """How `HistogramPredictor` learns."""

    prior_mean: float = PRIOR_MEAN_TOKENS  # tokens, before any data; the prior is heavy-tailed, see `survival.prior_hazards`
    prior_strength: float = 1.0  # requests' worth of belief in the prior, in every bin of the table over all domains
    domain_strength: float = 10.0  # requests' worth of belief in the table over all domains, in every bin of one domain's
    memory: float = 4000.0  # requests (of a table) after which an old one counts 1/e
    freshness: float = 64.0  # a curve is rebuilt when 1 in this many of what it rests on is new

    def __post_init__(self) -> None:
        """ValueError where a value makes no sense."""
        if min(self.prior_mean, self.prior_strength, self.domain_strength, self.freshness) <= 0 or self.memory <= 1:
            raise ValueError(f"histogram options out of range: {self}")


class _Domain:
    """A life table and the curve last drawn from it."""

    __slots__ = ("curve", "hazards", "num_new", "table", "version")

    def __init__(self, memory: float) -> None:
        self.table = LifeTable(memory)
        self.hazards: list[float] = []
        self.curve: SurvivalCurve | None = None
        self.num_new = 0
        self.version = -1  # of the curve over all domains that it was shrunk to


class HistogramPredictor:
    """See the module. Before the router's first answer (domain "") and for a domain without data the curve is that over all domains.

    O(log bins) a prediction; a curve is rebuilt (some hundred operations) only when enough has changed.
    """

    name = "histogram"

    def __init__(self, options: HistogramOptions | None = None) -> None:
        self._options = options = HistogramOptions() if options is None else options
        self._all = _Domain(options.memory)
        self._domains: dict[str, _Domain] = {}
        self._arrivals = ArrivalPredictions()
        self._refresh_all()

    def predict_remaining(self, request: Schedulable) -> float:
        """See `LengthPredictor`."""
        num_tokens, cap = request.num_output_tokens, request.max_tokens
        expected = max(1.0, self._curve(request.domain).remaining(num_tokens, cap))
        if not num_tokens:
            self._arrivals.remember(request.request_uid, expected)
        return expected

    def observe(self, request: Schedulable, finished: bool) -> None:
        """See `LengthPredictor`. An empty output counts as one token; one that was cut before its first token teaches nothing."""
        self._arrivals.settle(request, finished)
        length = request.num_output_tokens
        if length < 1 and not finished:
            return
        length = max(length, 1)
        overall = self._all
        overall.table.add(length, finished)
        overall.num_new += 1
        if overall.num_new * self._options.freshness > overall.table.num_requests:
            self._refresh_all()
        if request.domain:
            domain = self._domains.get(request.domain)
            if domain is None:
                domain = self._domains[request.domain] = _Domain(self._options.memory)
            domain.table.add(length, finished)
            domain.num_new += 1

    def error(self) -> LengthError:
        """See `LengthPredictor`."""
        return self._arrivals.figures()

    def _curve(self, name: str) -> SurvivalCurve:
        overall = self._all
        domain = self._domains.get(name)
        if domain is None:
            domain = overall
        elif domain.version != overall.version or domain.num_new * self._options.freshness > domain.table.num_requests:
            domain.curve = SurvivalCurve.from_hazards(domain.table.hazards(overall.hazards, self._options.domain_strength))
            domain.version, domain.num_new = overall.version, 0
        assert domain.curve is not None
        return domain.curve

    def _refresh_all(self) -> None:
        overall, options = self._all, self._options
        prior = prior_hazards(overall.table.mean_tokens(options.prior_mean, options.prior_strength))
        overall.hazards = overall.table.hazards(prior, options.prior_strength)
        overall.curve = SurvivalCurve.from_hazards(overall.hazards)
        overall.num_new = 0
        overall.version += 1
