"""Length predictors by name. Adding one is a file and a line here."""

from collections.abc import Callable

from drafthouse.core.errors import unsupported
from drafthouse.scheduling.estimates.histogram import HistogramPredictor
from drafthouse.scheduling.estimates.lengths import LengthPredictor
from drafthouse.scheduling.estimates.ridge import RidgePredictor


class LengthPredictorRegistry:
    """Maps names to factories."""

    def __init__(self) -> None:
        self._factories: dict[str, Callable[[], LengthPredictor]] = {}

    def register(self, name: str, factory: Callable[[], LengthPredictor]) -> None:
        """Add a predictor; ValueError when the name is taken."""
        if name in self._factories:
            raise ValueError(f"length predictor {name!r} is registered twice")
        self._factories[name] = factory

    def create(self, name: str) -> LengthPredictor:
        """A fresh predictor; UNSUPPORTED naming the registered ones when there is none of this name."""
        factory = self._factories.get(name)
        if factory is None:
            raise unsupported("length_predictor", name, f"one of {', '.join(self.names)}")
        return factory()

    @property
    def names(self) -> tuple[str, ...]:
        """Registered names, sorted."""
        return tuple(sorted(self._factories))


LENGTH_PREDICTORS = LengthPredictorRegistry()
LENGTH_PREDICTORS.register(HistogramPredictor.name, HistogramPredictor)
LENGTH_PREDICTORS.register(RidgePredictor.name, RidgePredictor)
