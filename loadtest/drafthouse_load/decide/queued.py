"""Requests that only queue: they have figures and an end, but no text."""

import random
from dataclasses import dataclass

from drafthouse.scheduling.estimates.service import Estimator

NUM_DRAFTED = 5
DRAFT_NS, VERIFY_NS = 5_000_000, 20_000_000
ROUND_NS = DRAFT_NS + VERIFY_NS
_MEAN_ROUNDS = 12.0
_DOMAINS = ("code", "math", "drama", "news")


@dataclass(slots=True)
class QueuedRequest:
    """Implements `drafthouse.scheduling.policy.Schedulable`."""

    request_uid: int
    sequence_no: int
    arrival_ns: int
    domain: str
    prompt_len: int
    num_uncached: int
    chance: float  # that a draft token is accepted
    rounds_left: int
    max_tokens: int = 4096
    priority: int = 0
    num_output_tokens: int = 0
    num_verifications: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    attained_ns: int = 0
    is_running: bool = False
    holds_slot: bool = False
    has_earned_slot: bool = False

    def run_round(self, estimator: Estimator, rng: random.Random, num_rows: int) -> None:
        """One verification more, of ``num_rows`` requests together."""
        num_accepted = sum(rng.random() < self.chance for _ in range(NUM_DRAFTED))
        self.num_uncached = 1
        self.num_output_tokens += num_accepted + 1
        self.num_verifications += 1
        self.num_drafted += NUM_DRAFTED
        self.num_accepted += num_accepted
        self.attained_ns += ROUND_NS
        self.rounds_left -= 1
        estimator.saw_round(self, NUM_DRAFTED, num_accepted, DRAFT_NS, VERIFY_NS, num_rows)


def a_request(number: int, now_ns: int, rng: random.Random) -> QueuedRequest:
    """Request ``number``, as it arrives."""
    prompt_len = rng.randrange(20, 500)
    rounds = 1 + int(rng.expovariate(1 / _MEAN_ROUNDS))
    return QueuedRequest(number, number, now_ns, rng.choice(_DOMAINS), prompt_len, prompt_len, rng.betavariate(2.0, 1.5), rounds)
