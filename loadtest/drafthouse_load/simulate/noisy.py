"""A length predictor of stated quality: the true length times a log-normal factor."""

import math

from drafthouse.scheduling.estimates.lengths import ArrivalPredictions, LengthError
from drafthouse.scheduling.policy import Schedulable
from drafthouse_load.simulate.workload import Workload

_SQRT_HALF = math.sqrt(0.5)


class NoisyLengths:
    """Predicts P = L · exp(σ z), z standard normal and fixed per request; σ = 0 is perfect knowledge of lengths.

    What remains after g tokens follows from P as from any prediction whose error is known: ln L is normal around ln P with deviation σ, cut
    below by what is there already, so the mean is P · exp(σ²/2) · Φ(σ - d) / Φ(-d) - g with d = (ln g - ln P) / σ. For g = 0 that is a
    constant factor above P; once a request has outlived its prediction it grows, where P - g would say that the end is near for ever.
    """

    name = "noisy"

    def __init__(self, workload: Workload, sigma: float) -> None:
        """``sigma``: σ >= 0."""
        self._sigma = sigma
        self._log_predicted = [math.log(length) + sigma * z for length, z in zip(workload.output_len, workload.length_noise, strict=True)]
        self._arrivals = ArrivalPredictions()

    def predict_remaining(self, request: Schedulable) -> float:
        """See `LengthPredictor`."""
        num_tokens = request.num_output_tokens
        expected = self._expected_length(request.request_uid, num_tokens) - num_tokens
        if not num_tokens:
            self._arrivals.remember(request.request_uid, expected)
        return min(max(expected, 1.0), max(1.0, request.max_tokens - num_tokens))

    def observe(self, request: Schedulable, finished: bool) -> None:
        """See `LengthPredictor`. It learns nothing: it knows."""
        self._arrivals.settle(request, finished)

    def error(self) -> LengthError:
        """See `LengthPredictor`."""
        return self._arrivals.figures()

    def _expected_length(self, request_uid: int, num_tokens: int) -> float:
        sigma, log_predicted = self._sigma, self._log_predicted[request_uid]
        if not sigma:
            return math.exp(log_predicted)
        mean = math.exp(log_predicted + sigma * sigma / 2)
        if not num_tokens:
            return mean
        # Φ(x) = erfc(-x / √2) / 2. d is at most |z|, because no request generates more than its true length: nothing underflows.
        deviations = (math.log(num_tokens) - log_predicted) / sigma
        return mean * math.erfc((deviations - sigma) * _SQRT_HALF) / math.erfc(deviations * _SQRT_HALF)
