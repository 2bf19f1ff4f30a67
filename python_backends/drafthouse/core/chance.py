"""From a drafter's own probability to the chance that the target agrees: one formula, used where drafts grow and where it is learned."""

import math

LEAST_PROB = 1e-4  # probabilities are read inside [this, 1 - this]
LEAST_SCORE = 1e-2  # routing scores likewise
NEUTRAL_SCORE = 0.5  # what a routing score that is not known yet (NaN) counts as


def logit(value: float, least: float) -> float:
    """log(value / (1 - value)) of a value read inside [least, 1 - least]."""
    clipped = min(max(value, least), 1.0 - least)
    return math.log(clipped / (1.0 - clipped))


def score_logit(score: float) -> float:
    """The logit of a routing score; 0 where it is not known."""
    return 0.0 if math.isnan(score) else logit(score, LEAST_SCORE)


def chance(intercept: float, slope: float, prob: float) -> float:
    """sigmoid(intercept + slope · logit(prob)); a probability that is not a number has no chance."""
    if math.isnan(prob):
        return 0.0
    return 1.0 / (1.0 + math.exp(-(intercept + slope * logit(prob, LEAST_PROB))))
