"""A length predictor of stated quality: the true length times a log-normal factor."""

import math

import numpy as np

from drafthouse.scheduling.estimates.lengths import ArrivalPredictions, LengthError
from drafthouse.scheduling.estimates.posterior import PointPosterior
from drafthouse.scheduling.policy import Schedulable
from drafthouse_load.simulate.workload import Workload

LEAST_READ_SIGMA = 0.05  # below, a prediction is taken as it is


class NoisyLengths:
    """Knows of each request P = L · exp(σ z), z standard normal and fixed per request; σ = 0 is perfect knowledge of lengths.

    What is expected given P, and given what has been generated, is the server's own `PointPosterior`: whoever has outlived its prediction
    is expected to go on, where P less what is there would say for ever that the end is near. All policies get the same expectation.
    """

    name = "noisy"

    def __init__(self, workload: Workload, sigma: float) -> None:
        """``sigma``: σ >= 0."""
        log_predicted = np.log(workload.output_len) + sigma * workload.length_noise
        self._log_predicted: list[float] = log_predicted.tolist()
        self._posterior = PointPosterior(sigma) if sigma >= LEAST_READ_SIGMA else None
        self._arrivals = ArrivalPredictions()

    def predict_remaining(self, request: Schedulable) -> float:
        """See `LengthPredictor`."""
        num_tokens, log_predicted = request.num_output_tokens, self._log_predicted[request.request_uid]
        if self._posterior is None:
            expected = min(math.exp(log_predicted), request.max_tokens) - num_tokens
        else:
            expected = self._posterior.curve(request.request_uid, log_predicted).remaining(num_tokens, request.max_tokens)
        expected = max(1.0, expected)
        if not num_tokens:
            self._arrivals.remember(request.request_uid, expected)
        return expected

    def observe(self, request: Schedulable, finished: bool) -> None:
        """See `LengthPredictor`."""
        self._arrivals.settle(request, finished)
        if self._posterior is not None:
            self._posterior.observe(request, finished)

    def error(self) -> LengthError:
        """See `LengthPredictor`."""
        return self._arrivals.figures()
