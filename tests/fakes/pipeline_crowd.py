"""Many unlike requests, and a policy that lets none of them run for long."""

import random

from drafthouse.pipeline.contract import GenerationRequest
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse.scheduling.policy import Rank, Schedulable
from fakes.pipeline_harness import make_request


class Impatient:
    """Preempts after every round, and would rather begin something new than go on."""

    name = "test-impatient"

    def rank(self, request: Schedulable) -> Rank:
        return request.prompt_len + request.num_output_tokens - request.num_uncached, -request.sequence_no

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        return True

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        return True

    def queue_of(self, request: Schedulable) -> int:
        return int(request.num_output_tokens > 0)


def register_impatient() -> None:
    """For configurations that name it."""
    if Impatient.name not in POLICIES.names:
        POLICIES.register(Impatient.name, lambda estimator: Impatient())


def a_crowd(count: int) -> list[GenerationRequest]:
    rng = random.Random(count)
    return [
        make_request(
            [rng.randrange(1, 18) for _ in range(rng.choice([1, 5, 33, 80]))],
            rng.choice([1, 7, 40]),
            stream=rng.random() < 0.5,
            temperature=rng.choice([0.0, 0.8]),
            seed=rng.randrange(5),
            priority=rng.choice([0, 0, 0, 3]),
        )
        for _ in range(count)
    ]
