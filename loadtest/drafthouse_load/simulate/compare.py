"""Runs policies on one experiment."""

import time
from collections.abc import Callable

from drafthouse.scheduling.estimates.lengths import LengthPredictor
from drafthouse.scheduling.estimates.registry import LENGTH_PREDICTORS
from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse.scheduling.policy import Policy
from drafthouse_load.simulate.engine import ServerShape, Simulation
from drafthouse_load.simulate.figures import PolicyFigures, figures
from drafthouse_load.simulate.noisy import NoisyLengths
from drafthouse_load.simulate.oracle import Oracle
from drafthouse_load.simulate.settings import NOISY, Experiment
from drafthouse_load.simulate.srpt_estimated import EstimatedSrpt

Advance = Callable[[int], None]  # so many requests more have finished
NO_PROGRESS: Advance = lambda count: None  # noqa: E731 - shown to nobody

POLICY_NAMES = (*POLICIES.names, EstimatedSrpt.name, Oracle.name)
PREDICTOR_NAMES = (NOISY, *LENGTH_PREDICTORS.names)


def run_policy(name: str, own: Experiment, advance: Advance) -> PolicyFigures:
    """Serve all requests under one policy, with a fresh estimator."""
    began_s = time.process_time()
    lengths = _lengths(own)
    estimator = Estimator(lengths)
    outcome = Simulation(own.workload, own.costs, _policy(name, own, estimator), estimator, shape(own)).run(advance)
    service_ns = own.workload.service_ns(own.costs, 1)
    unit = own.costs.unit, own.costs.unit_ns
    errors = estimator.error(), estimator.length_error().relative
    return figures(name, outcome, service_ns, unit, errors, time.process_time() - began_s)


def shape(own: Experiment) -> ServerShape:
    """What the server is."""
    settings = own.settings
    cap = settings.max_tokens or 1 << int(own.workload.output_len.max()).bit_length()
    return ServerShape(settings.batch, settings.slots or len(own.workload), own.starvation_limit_ns, cap, settings.max_verified_tokens)


def _policy(name: str, own: Experiment, estimator: Estimator) -> Policy:
    if name == Oracle.name:
        return Oracle(own.costs, own.settings.batch, own.settings.num_draft_tokens)
    if name == EstimatedSrpt.name:
        return EstimatedSrpt(estimator)
    return POLICIES.create(name, estimator)


def _lengths(own: Experiment) -> LengthPredictor:
    if own.settings.length_predictor == NOISY:
        return NoisyLengths(own.workload, own.settings.length_error)
    return LENGTH_PREDICTORS.create(own.settings.length_predictor)
