"""What a length predictor is, and what the ones here share."""

from typing import Protocol

from drafthouse.scheduling.estimates.accuracy import ErrorFigures, ErrorMeter
from drafthouse.scheduling.policy import Schedulable

PRIOR_MEAN_TOKENS = 128.0  # a request's expected output before any has ended; one request's worth of belief
LengthError = ErrorFigures  # in tokens


class LengthPredictor(Protocol):
    """How many tokens a request is still going to generate. Not thread-safe.

    ``max_tokens`` is a cap, never a prediction: what is expected is min(length, max_tokens), and a request that was cut there
    tells only that its length is more than that.
    """

    @property
    def name(self) -> str:
        """The name under which it is configured."""
        ...

    def predict_remaining(self, request: Schedulable) -> float:
        """Expected further output tokens, in [1, max(1, max_tokens − num_output_tokens)].

        The first answer given for a request without output is what `error` counts.
        """
        ...

    def observe(self, request: Schedulable, finished: bool) -> None:
        """Learn from a request that ended; once for each.

        Args:
            request: at its end: ``num_output_tokens`` is all it has generated.
            finished: True = a natural end (end of sequence, a stop string). False = it would have gone on: cut at ``max_tokens``,
                cancelled, expired or failed. Its length is censored.
        """
        ...

    def error(self) -> LengthError:
        """Predicted at arrival against generated in the end; tokens. Cancelled requests, whose end nobody knows, are left out;
        those cut at ``max_tokens`` are not: their number of tokens is known, and it is what was predicted."""
        ...


class ArrivalPredictions:
    """What was predicted for requests when they arrived, kept until they end."""

    __slots__ = ("_meter", "_predicted")

    def __init__(self) -> None:
        self._predicted: dict[int, float] = {}
        self._meter = ErrorMeter()

    def __len__(self) -> int:
        return len(self._predicted)

    def remember(self, request_uid: int, num_tokens: float) -> None:
        """Only the first prediction of a request counts."""
        self._predicted.setdefault(request_uid, num_tokens)

    def settle(self, request: Schedulable, finished: bool) -> None:
        """Count the prediction for a request that ended, and forget it."""
        predicted = self._predicted.pop(request.request_uid, None)
        num_tokens = request.num_output_tokens
        if predicted is not None and num_tokens > 0 and (finished or num_tokens >= request.max_tokens):
            self._meter.add(predicted, float(num_tokens))

    def figures(self) -> LengthError:
        """Over requests that have ended."""
        return self._meter.figures()
