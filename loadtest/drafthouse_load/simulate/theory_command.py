"""`drafthouse simulate --theory`: simulated disciplines against their closed forms.

Six checks of 95 % each would fail by chance in one run of nine or so. The intervals are therefore wider (Bonferroni): all six cover their
closed forms in at least 95 % of runs, whatever the seed.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from drafthouse_load import machine
from drafthouse_load.report import write_json
from drafthouse_load.simulate.figures import T_95_OF_6, mean_interval
from drafthouse_load.simulate.single_server import SIMULATED
from drafthouse_load.simulate.theory import DISCIPLINES, SIZES, Discipline

THEORY_LOAD = 0.7
THEORY_REQUESTS = 1_000_000
_TOLERANCE = 0.03


@dataclass(frozen=True)
class Check:
    """One discipline with one distribution of sizes; times in mean sizes."""

    policy: str
    sizes: str
    closed_form: float
    simulated: float
    interval: tuple[float, float]  # by batch means; 95 % for all six checks together

    @property
    def deviation(self) -> float:
        """Relative."""
        return self.simulated / self.closed_form - 1

    @property
    def agrees(self) -> bool:
        """The closed form lies in the interval, and within 3 %."""
        return self.interval[0] <= self.closed_form <= self.interval[1] and abs(self.deviation) <= _TOLERANCE

    def row(self) -> dict[str, object]:
        """For a report."""
        return {
            "name": self.policy,
            "sizes": self.sizes,
            "closed_form": round(self.closed_form, 5),
            "latency_mean": round(self.simulated, 5),
            "interval": [round(bound, 5) for bound in self.interval],
            "deviation": round(self.deviation, 5),
            "agrees": self.agrees,
        }


def check(discipline: Discipline, sizes: str, load: float, num_requests: int, seed: int) -> Check:
    """Simulate Poisson arrivals at ``load``; every discipline gets the same jobs."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / load, num_requests))
    times = SIMULATED[discipline.name](arrivals, SIZES[sizes].sample(num_requests, rng))
    return Check(discipline.name, sizes, discipline.mean(SIZES[sizes], load), float(times.mean()), mean_interval(times, T_95_OF_6))


def run_theory(args: argparse.Namespace, console: Console) -> int:
    """Every discipline with every distribution; 1 where one disagrees."""
    pairs = [(discipline, sizes) for sizes in SIZES for discipline in DISCIPLINES]
    steps = track(pairs, "theory", console=console, transient=True)
    checks = [check(discipline, sizes, THEORY_LOAD, THEORY_REQUESTS, args.seed) for discipline, sizes in steps]
    console.print(_table(checks, args.seed))
    if args.json is not None:
        rows = [own.row() for own in checks]
        about = {"load": THEORY_LOAD, "requests": THEORY_REQUESTS, "seed": args.seed}
        write_json(machine.describe("") | about | {"theory": rows}, args.json)
    return 0 if all(own.agrees for own in checks) else 1


def _table(checks: list[Check], seed: int) -> Table:
    title = f"M/G/1, load {THEORY_LOAD:g}, {THEORY_REQUESTS:,} jobs, seed {seed}"
    table = Table(
        title=title,
        caption="mean time in system, in mean sizes; 95 %: of all intervals together",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("sizes", "policy", "theory", "simulated", "95 % interval", "off", "agrees"):
        table.add_column(heading, no_wrap=True)
    for own in checks:
        interval = f"{own.interval[0]:.4f} – {own.interval[1]:.4f}"
        verdict = "yes" if own.agrees else "no"
        table.add_row(own.sizes, own.policy, f"{own.closed_form:.4f}", f"{own.simulated:.4f}", interval, f"{own.deviation:+.2%}", verdict)
    return table
