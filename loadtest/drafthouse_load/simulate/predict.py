"""What the simulator says of requests that a server has served: measured rounds in, latencies out, to be held against the measured ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drafthouse_load.simulate.compare import NO_PROGRESS, run_policy
from drafthouse_load.simulate.costs import MeasuredCosts
from drafthouse_load.simulate.figures import PolicyFigures
from drafthouse_load.simulate.settings import Experiment, SimulateSettings
from drafthouse_load.simulate.workload import Measured, Workload


@dataclass(frozen=True)
class MeasuredRequest:
    """One request as a server served it. The first of its output tokens came with its prefill."""

    arrival_ns: int  # any clock
    prompt_len: int
    domain: str
    tokens_per_round: Sequence[int]  # emitted by each round after the prefill, >= 1 each
    drafted_per_round: Sequence[int]  # draft tokens verified in it
    prefill_ns: int
    round_ns: Sequence[int] | None = None  # what each round took; where a round was shared by several requests, leave it to the costs


def predict_latency(
    requests: Sequence[MeasuredRequest],
    costs: MeasuredCosts,
    *,
    policy: str,
    batch: int,
    slots: int,
    starvation_limit_ns: int,
    length_predictor: str,
    max_tokens: int,
) -> PolicyFigures:
    """Serve the same requests, arriving at the same times and taking the same rounds, in virtual time.

    Args:
        requests: at least two, in any order.
        costs: what is charged for shared rounds and for prefills after an eviction, in ms.
        policy: one of the server's, `srpt-estimated` or `oracle`.
        slots: 0 = as many as it takes.
        length_predictor: one of the server's, or `noisy`, which here knows the true lengths.

    Raises:
        ValueError: rounds that cannot be: none emitted, or not as many numbers as rounds.
        ClientError: an unknown policy or predictor.
    """
    workload = measured_workload(sorted(requests, key=lambda request: request.arrival_ns))
    settings = SimulateSettings(
        (policy,),
        len(workload),
        batch=batch,
        slots=slots,
        length_predictor=length_predictor,
        length_error=0.0,
        starvation_limit_ns=starvation_limit_ns,
        max_tokens=max_tokens,
    )
    return run_policy(policy, Experiment(settings, workload, costs), NO_PROGRESS)


def measured_workload(requests: Sequence[MeasuredRequest]) -> Workload:
    """Requests in order of arrival as a workload that starts with the first one. ValueError as in `predict_latency`."""
    for request in requests:
        counts = {len(own) for own in (request.tokens_per_round, request.drafted_per_round, request.round_ns) if own is not None}
        if len(counts) != 1 or min(request.tokens_per_round, default=1) < 1:
            raise ValueError(f"rounds of a measured request: {request}")
    arrival_ns = np.array([request.arrival_ns for request in requests], np.int64)
    emitted = [[count - 1 for count in request.tokens_per_round] for request in requests]
    # A tree or a stop word may have it otherwise: more is never accepted than was drafted.
    drafted = [
        [max(pair) for pair in zip(own, request.drafted_per_round, strict=True)] for own, request in zip(emitted, requests, strict=True)
    ]
    own_rounds = [request.round_ns for request in requests if request.round_ns is not None]
    round_ns = np.concatenate([np.array(own, np.int64) for own in own_rounds]) if len(own_rounds) == len(requests) else None
    return Workload(
        arrival_ns=arrival_ns - arrival_ns[0],
        prompt_len=np.array([request.prompt_len for request in requests], np.int64),
        output_len=np.array([1 + sum(request.tokens_per_round) for request in requests], np.int64),
        length_noise=np.zeros(len(requests)),
        accepted=b"".join(bytes(own) for own in emitted),
        first_round=np.concatenate([[0], np.cumsum([len(own) for own in emitted])]).astype(np.int64),
        num_draft_tokens=max((count for own in drafted for count in own), default=0),
        domains=tuple(request.domain for request in requests),
        measured=Measured(
            b"".join(bytes(own) for own in drafted), np.array([request.prefill_ns for request in requests], np.int64), round_ns
        ),
    )
