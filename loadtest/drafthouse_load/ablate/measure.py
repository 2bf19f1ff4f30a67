"""The measured half: every arm on one server, at every concurrency, block by block."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from drafthouse_client import Client, GenerateOptions
from drafthouse_load.ablate.arms import FIXED_K, Arm, ArmSwitch
from drafthouse_load.modes import ModelControl
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.records import RequestRecord
from drafthouse_load.requests import timed_request
from drafthouse_load.stats import Counters, read_when_idle

SWEEP_TOKENS = 32
_SWEEP_EXTRA = 4  # prompts beside one per client, in each of the sweep's two passes
WARMUP_EXTRA = 2  # warm-up requests beside one per client

Chosen = Mapping[tuple[str, int], int]  # (arm, concurrency) → fixed number of draft tokens


@dataclass(frozen=True, slots=True)
class AblateSettings:
    """What one run compares."""

    arms: tuple[Arm, ...]
    concurrency: tuple[int, ...] = (1, 4, 8)
    cycles: int = 1  # times A B C … C B A over the arms
    max_tokens: int = 48

    @property
    def fixed_arms(self) -> tuple[Arm, ...]:
        """Those that get a fixed number of draft tokens."""
        return tuple(arm for arm in self.arms if arm.has_fixed_k)

    def order(self) -> list[Arm]:
        """The blocks of one concurrency: whatever drifts steadily hits every arm alike."""
        return [*self.arms, *reversed(self.arms)] * self.cycles

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole run."""
        return len(self.concurrency) * 2 * self.cycles * len(self.arms)


@dataclass(frozen=True, slots=True)
class Block:
    """All prompts once, in one arm at one concurrency."""

    arm: str
    concurrency: int
    wall_s: float
    requests: tuple[RequestRecord, ...]
    counters: Counters

    @property
    def num_tokens(self) -> int:
        """Output tokens of all requests."""
        return sum(request.num_output_tokens for request in self.requests)


@dataclass(frozen=True, slots=True)
class Sweep:
    """How fast an arm was with each fixed number of draft tokens at one concurrency."""

    arm: str
    concurrency: int
    tokens_per_s: Mapping[int, float]

    @property
    def best(self) -> int:
        """The fastest; the smaller one of equals."""
        return max(self.tokens_per_s, key=lambda k: (self.tokens_per_s[k], -k))


class ServerBench:
    """Runs blocks on a running server."""

    def __init__(self, server: ModelControl, client: Client, prompts: Sequence[DomainPrompt], base: Mapping[str, str]) -> None:
        self._client = client
        self._prompts = list(enumerate(prompts))
        self._switch = ArmSwitch(server, client, base)

    def sweep(self, arm: Arm, concurrency: int) -> Sweep:
        """Every fixed k on a few prompts, upwards and then downwards with other prompts: requests ask for k, nothing is reloaded."""
        self._switch.to(arm, FIXED_K[-1])
        num_prompts = concurrency + _SWEEP_EXTRA
        self._play(self._some(0, concurrency), concurrency, SWEEP_TOKENS, FIXED_K[-1])
        tokens, walls = dict.fromkeys(FIXED_K, 0), dict.fromkeys(FIXED_K, 0.0)
        for start, order in ((0, FIXED_K), (num_prompts, FIXED_K[::-1])):
            for k in order:
                began_s = perf_counter()
                records = self._play(self._some(start, num_prompts), concurrency, SWEEP_TOKENS, k)
                walls[k] += perf_counter() - began_s
                tokens[k] += sum(record.num_output_tokens for record in records)
        return Sweep(arm.name, concurrency, {k: round(tokens[k] / walls[k], 2) for k in FIXED_K})

    def block(self, arm: Arm, concurrency: int, num_draft_tokens: int | None, max_tokens: int) -> Block:
        """All prompts once, after a warm-up that is discarded."""
        self._switch.to(arm, num_draft_tokens)
        self._play(self._some(0, concurrency + WARMUP_EXTRA), concurrency, max_tokens)
        before = read_when_idle(self._client).counters
        began_s = perf_counter()
        records = self._play(self._prompts, concurrency, max_tokens)
        wall_s = perf_counter() - began_s
        counters = read_when_idle(self._client).counters - before
        return Block(arm.name, concurrency, wall_s, records, counters)

    def _some(self, start: int, count: int) -> list[tuple[int, DomainPrompt]]:
        """``count`` prompts from number ``start`` on, from the beginning again after the last."""
        return [self._prompts[(start + offset) % len(self._prompts)] for offset in range(count)]

    def _play(
        self, prompts: Sequence[tuple[int, DomainPrompt]], concurrency: int, max_tokens: int, num_draft_tokens: int | None = None
    ) -> tuple[RequestRecord, ...]:
        """Closed loop: each of ``concurrency`` clients sends its next prompt when it has an answer. Greedy."""
        options = GenerateOptions(max_tokens=max_tokens, temperature=0.0, num_draft_tokens=num_draft_tokens, exclude_input_in_output=True)
        with ThreadPoolExecutor(concurrency) as pool:
            return tuple(pool.map(lambda item: timed_request(self._client, item[1], item[0], options), prompts))


class SweepingBench(Protocol):
    """A server, or a replay."""

    def sweep(self, arm: Arm, concurrency: int) -> Sweep:
        """One arm with every fixed number of draft tokens."""
        ...


def run_sweeps(bench: SweepingBench, settings: AblateSettings, advance: Callable[[str], None]) -> list[Sweep]:
    """The sweep of every arm without adaptation at every concurrency; ``advance`` hears of each one."""
    sweeps = []
    for arm in settings.fixed_arms:
        for concurrency in settings.concurrency:
            advance(f"best fixed k: {arm.name}, {concurrency} at once")
            sweeps.append(bench.sweep(arm, concurrency))
    return sweeps


def measure_blocks(bench: ServerBench, settings: AblateSettings, chosen: Chosen, advance: Callable[[str], None]) -> list[Block]:
    """All blocks, concurrency by concurrency; ``advance`` hears of each one."""
    blocks = []
    for concurrency in settings.concurrency:
        for arm in settings.order():
            advance(f"{arm.name}, {concurrency} at once")
            blocks.append(bench.block(arm, concurrency, chosen.get((arm.name, concurrency)), settings.max_tokens))
    return blocks


def choose(sweeps: Sequence[Sweep]) -> dict[tuple[str, int], int]:
    """Each arm's best fixed number of draft tokens, by concurrency."""
    return {(sweep.arm, sweep.concurrency): sweep.best for sweep in sweeps}
