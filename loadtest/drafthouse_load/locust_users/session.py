"""What all users of a locust process share: options, prompts by domain, and the arrivals of an open loop."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace

from drafthouse_client import GenerateOptions
from drafthouse_load.arrivals import Arrival
from drafthouse_load.locust_users.options import LoadOptions
from drafthouse_load.prompts import DomainPrompt


class LoadSession:
    """Hands out prompts and arrivals."""

    def __init__(self, options: LoadOptions, worker_index: int = 0) -> None:
        """``worker_index``: of this process; with several each draws other prompts and seeds."""
        self.options = options
        self.num_dispatching = 0  # users that may still send requests of the open loop
        self._rng = random.Random(f"{options.seed}/{worker_index}")
        self._began_s: float | None = None

    @property
    def domains(self) -> Sequence[tuple[str, int]]:
        """Domains in order of appearance, with their number of prompts."""
        names = [prompt.domain for prompt in self.options.prompts]
        return [(name, names.count(name)) for name in dict.fromkeys(names)]

    def seed_tasks(self) -> None:
        """Which domain is next is locust's to draw, by the standard library's own generator: have it start the same in every run."""
        random.seed(self._rng.getrandbits(64))

    def prompt(self, domain: str) -> DomainPrompt:
        """One of a domain's prompts, at random."""
        return self._rng.choice([prompt for prompt in self.options.prompts if prompt.domain == domain])

    def generate_options(self, arrival: Arrival | None) -> GenerateOptions:
        """The options of the next request, with a seed of its own; a trace's request gets exactly its number of tokens, up to the limit."""
        options = replace(self.options.generate, seed=self._rng.getrandbits(64))
        if arrival is None or arrival.num_output_tokens is None:
            return options
        count = min(arrival.num_output_tokens, options.max_tokens or arrival.num_output_tokens)
        return replace(options, max_tokens=count, min_tokens=count)

    def next_arrival(self) -> tuple[Arrival, float] | None:
        """The open loop's next request and when it is due (`time.perf_counter`); None after the last. The first call starts the clock."""
        if self._began_s is None:
            self._began_s = time.perf_counter()
        arrival = None if self.options.arrivals is None else next(self.options.arrivals, None)
        return None if arrival is None else (arrival, self._began_s + arrival.at_s)
