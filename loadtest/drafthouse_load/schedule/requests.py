"""Requests to be served, and what serving them left behind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drafthouse_client import Completion
from drafthouse_client.completion import TARGET_SOURCE
from drafthouse_load.prompts import DomainPrompt


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request; the same text whenever it is sent, because its seed goes with it."""

    number: int
    domain: str
    prompt: str

    @property
    def seed(self) -> int:
        """Of its sampling."""
        return self.number


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One answer, on the client's clock: seconds from the start of its block."""

    planned: PlannedRequest
    due_s: float  # when it should arrive; latencies count from here
    sent_s: float  # when it did
    event_s: tuple[float, ...]  # of increments with tokens, >= 1
    tokens_per_event: tuple[int, ...]
    completion: Completion

    @property
    def ended_s(self) -> float:
        """When its last token was there."""
        return self.event_s[-1]

    @property
    def latency_s(self) -> float:
        """From arrival to the last token."""
        return self.ended_s - self.due_s

    @property
    def ttft_s(self) -> float:
        """From arrival to the first token."""
        return self.event_s[0] - self.due_s

    @property
    def tokens_per_round(self) -> tuple[int, ...]:
        """What each verification emitted; the first token came with the prefill. See `rounds_of`."""
        return rounds_of(self.completion.token_sources)

    @property
    def drafted_per_round(self) -> tuple[int, ...]:
        """Draft tokens verified in each round: the request's sum, spread evenly (the server reports no more)."""
        num_rounds = len(self.tokens_per_round)
        total = 0 if self.completion.perf is None else self.completion.perf.total_draft_tokens
        return tuple(total * (at + 1) // num_rounds - total * at // num_rounds for at in range(num_rounds))


def rounds_of(sources: Sequence[int]) -> tuple[int, ...]:
    """Tokens per verification, read off the tokens' sources.

    The first token is the prefill's. After it every verification ends in a token of the target's own, unless the text ended among
    the accepted draft tokens.
    """
    rounds, count = list[int](), 0
    for source in sources[1:]:
        count += 1
        if source == TARGET_SOURCE:
            rounds.append(count)
            count = 0
    return (*rounds, count) if count else tuple(rounds)


def plan_requests(prompts: Sequence[DomainPrompt], count: int, first_number: int, rng: np.random.Generator) -> list[PlannedRequest]:
    """``count`` requests: all prompts in random order, again and again, so that domains have the same share everywhere."""
    order = list[int]()
    while len(order) < count:
        order += rng.permutation(len(prompts)).tolist()
    chosen = [prompts[index] for index in order[:count]]
    return [PlannedRequest(number, prompt.domain, prompt.prompt) for number, prompt in enumerate(chosen, first_number)]
