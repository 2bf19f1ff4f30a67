"""Requests to be simulated: everything that happens to them by chance is drawn before, so every policy meets the same."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drafthouse_load.simulate.costs import RoundCosts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ACCEPTANCE_BETA = (2.0, 1.5)  # of the chance that the target agrees with a draft token, drawn once per request
_DRAWN_AT_ONCE = 1 << 22  # rounds
_DOMAIN = "trace"


@dataclass(frozen=True)
class Measured:
    """What a server did for these very requests, where they were measured; it replaces the costs by shape."""

    num_drafted: bytes  # in each round, as `Workload.accepted`
    prefill_ns: Ints  # [n], of the prompt
    round_ns: Ints | None  # of each round, as `Workload.accepted`: used when it is not shared. None: by shape


@dataclass(frozen=True)
class Workload:
    """n requests in order of arrival. Common random numbers: all of a request's chances are in here, none depends on a policy.

    Its first token comes with its prefill (as in the server), the others in rounds.
    """

    arrival_ns: Ints  # [n]
    prompt_len: Ints  # [n]
    output_len: Ints  # [n], >= 1
    length_noise: Floats  # [n], standard normal: the error of a prediction of its length, see `NoisyLengths`
    accepted: bytes  # draft tokens accepted in each round, request after request
    first_round: Ints  # [n + 1], where each request's rounds begin in ``accepted``
    num_draft_tokens: int
    domains: tuple[str, ...] = ()  # [n]; () = all of one
    measured: "Measured | None" = None

    def __len__(self) -> int:
        return len(self.output_len)

    @property
    def num_rounds(self) -> Ints:
        """Rounds that each request takes. [n]"""
        return np.diff(self.first_round)

    def num_drafted(self, round_index: int) -> int:
        """Draft tokens of a round, an index into ``accepted``."""
        return self.measured.num_drafted[round_index] if self.measured is not None else self.num_draft_tokens

    def domain(self, index: int) -> str:
        """The domain of a request."""
        return self.domains[index] if self.domains else _DOMAIN

    def service_ns(self, costs: RoundCosts, rows: int) -> Floats:
        """What each request takes of a server that always verifies ``rows`` at once: its share of its rounds, and its prefill. [n]"""
        prefill_ns = np.array([costs.prefill_ns(length) for length in np.unique(self.prompt_len).tolist()], np.float64)
        own_prefill = prefill_ns[np.unique(self.prompt_len, return_inverse=True)[1]]
        return own_prefill + self.num_rounds * (round_ns(costs, rows, self.num_draft_tokens) / rows)

    def at_load(self, load: float, costs: RoundCosts, rows: int) -> "Workload":
        """The same requests at the same pattern of arrivals, as fast as it takes to offer exactly ``load``.

        Offered load = all service of all requests (`service_ns` at full rounds) over the time of arrivals, from 0 to the last arrival.
        """
        span_ns = float(self.service_ns(costs, rows).sum()) / load
        return replace(self, arrival_ns=np.rint(self.arrival_ns * (span_ns / self.arrival_ns[-1])).astype(np.int64))


def round_ns(costs: RoundCosts, rows: int, num_draft_tokens: int) -> float:
    """A round of ``rows`` requests, each with as many draft tokens."""
    return costs.draft_ns(rows, num_draft_tokens) + costs.verify_ns(rows, rows * (1 + num_draft_tokens))


def build(arrival_s: Floats, prompt_len: Ints, output_len: Ints, num_draft_tokens: int, rng: np.random.Generator) -> Workload:
    """Draw what is random about requests beside arrivals and lengths. Arrivals ascend, the last after 0."""
    acceptance = rng.beta(*ACCEPTANCE_BETA, len(output_len))
    noise = rng.standard_normal(len(output_len))
    accepted, first_round = draw_rounds(output_len - 1, acceptance, num_draft_tokens, rng)
    arrival_ns = np.rint(arrival_s * 1e9).astype(np.int64)
    return Workload(arrival_ns, prompt_len, output_len, noise, accepted, first_round, num_draft_tokens)


def draw_rounds(num_tokens: Ints, acceptance: Floats, num_draft_tokens: int, rng: np.random.Generator) -> tuple[bytes, Ints]:
    """Rounds until ``num_tokens`` are there; in each the accepted ones are geometric, at most ``num_draft_tokens``. [n] each.

    Returns the accepted draft tokens of all rounds and where each request's begin [n + 1].
    """
    parts, counts = list[bytes](), list[Ints]()
    for chosen in np.array_split(np.arange(len(num_tokens)), 1 + int(num_tokens.sum()) // _DRAWN_AT_ONCE):
        most = num_tokens[chosen]  # rounds: each brings a token at least
        owner = np.repeat(np.arange(len(chosen)), most)
        accepted = _accepted(acceptance[chosen][owner], num_draft_tokens, rng)
        emitted = np.cumsum(accepted + 1)
        starts = np.cumsum(most) - most
        before = emitted - (accepted + 1) - np.concatenate([[0], emitted])[starts][owner]
        needed = before < most[owner]
        parts.append(accepted[needed].astype(np.uint8).tobytes())
        counts.append(np.bincount(owner[needed], minlength=len(chosen)))
    return b"".join(parts), np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def _accepted(chance: Floats, num_draft_tokens: int, rng: np.random.Generator) -> Ints:
    """How many draft tokens in a row agree, each with ``chance``. [n]"""
    exponent = np.log(rng.random(len(chance))) / np.log(chance)
    accepted: Ints = np.minimum(exponent, num_draft_tokens).astype(np.int64)
    return accepted
