"""The options of `drafthouse bench schedule`, and what they ask for."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from drafthouse.core.errors import invalid
from drafthouse.pipeline.modes import MODES
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse_client.local_server import add_options

BASELINE = "fcfs"  # sets the capacity, and is what the others are compared with
OURS = "laps-sd"


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """What one run compares."""

    policies: tuple[str, ...]
    max_batch: tuple[int, ...] = (1, 4, 0)  # 0 = as many as slots, as shipped
    slots: int = 0  # parameter of `cosine`: requests that keep their caches at a time; 0 = as configured
    load: float = 0.9  # of the capacity
    replay_load: float | None = 0.65  # measured and predicted for `replay_policies`; None = not at all
    requests: int = 200  # per policy and max_batch, over all blocks
    blocks: int = 2
    warmup: int = 30  # requests per block, discarded
    max_tokens: int = 320  # a limit, not a length
    temperature: float = 0.8  # greedy texts of small models repeat themselves instead of ending
    seed: int = 0
    mode: str = ""  # of `cosine`; "" = as the repository has it

    def on(self, slots: int) -> "ScheduleSettings":
        """The same on a server with so many slots. Raises ClientError for a round of more requests than that."""
        if max(self.max_batch) > slots:
            raise invalid("--max-batch", max(self.max_batch), f"at most the {slots} slots")
        return replace(self, max_batch=tuple(dict.fromkeys(rows or slots for rows in self.max_batch)))

    @property
    def replay_policies(self) -> tuple[str, ...]:
        """The baseline and ours, as far as they are compared."""
        return tuple(name for name in self.policies if name in (BASELINE, OURS))

    def order(self, block: int) -> tuple[str, ...]:
        """The policies of one block: forwards, then backwards, so that a steady drift hits all alike."""
        return self.policies if block % 2 == 0 else self.policies[::-1]


def add_schedule_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse bench schedule`."""
    default = ScheduleSettings(())
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    parser.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="lines of {domain, prompt} (default: 60, a third mix fields)")
    parser.add_argument(
        "--policies", default="", metavar="NAME,NAME", help=f"beside {BASELINE}: of {', '.join(POLICIES.names)} (default: all)"
    )
    parser.add_argument(
        "--max-batch", default="1,4,0", metavar="N,N", help="requests in one round, 0 = as many as slots (default: %(default)s)"
    )
    parser.add_argument("--slots", type=int, default=default.slots, metavar="N", help="requests with caches (default: as configured)")
    parser.add_argument("--load", type=float, default=default.load, help="offered, of the measured capacity (default: %(default)s)")
    parser.add_argument("--replay-load", type=float, default=default.replay_load, help="for the simulator's test (default: %(default)s)")
    parser.add_argument("--no-replay", action="store_true", help="leave that test out")
    parser.add_argument("--requests", type=int, default=default.requests, help="per policy and max_batch (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=default.blocks, help="that they are split into (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=default.warmup, help="requests before each block, discarded (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="limit of a text (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=default.temperature, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of arrivals, order and texts (default: %(default)s)")
    parser.add_argument("--mode", choices=tuple(MODES), default=default.mode, help="of cosine (default: the repository's)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="chart; needs matplotlib (default: beside the report)")
    parser.add_argument("--no-plot", action="store_true", help="no chart")
    add_options(parser)
    parser.add_argument("--repository", dest="model_repository", type=Path, metavar="DIR", help="short for --model-repository")


def read_settings(args: argparse.Namespace) -> ScheduleSettings:
    """The settings that the options ask for. Raises ClientError naming a bad option."""
    for name, least in (("requests", 2), ("blocks", 1), ("warmup", 0), ("slots", 0), ("max_tokens", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise invalid(f"--{name.replace('_', '-')}", getattr(args, name), f">= {least}")
    if args.requests % args.blocks or args.requests < 2 * args.blocks:
        raise invalid("--blocks", args.blocks, f"a divisor of --requests {args.requests} that leaves at least 2 in each")
    for name in ("load", "replay_load"):
        if not 0 < getattr(args, name) < 2:
            raise invalid(f"--{name.replace('_', '-')}", getattr(args, name), "above 0, below 2")
    return ScheduleSettings(
        policies=_policies(args.policies),
        max_batch=_batches(args.max_batch),
        slots=args.slots,
        load=args.load,
        replay_load=None if args.no_replay else args.replay_load,
        requests=args.requests,
        blocks=args.blocks,
        warmup=args.warmup,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        mode=args.mode,
    )


def _policies(text: str) -> tuple[str, ...]:
    """The baseline first, then the others as they were named."""
    names = [name.strip() for name in text.split(",") if name.strip()] or list(POLICIES.names)
    for name in names:
        if name not in POLICIES.names:
            raise invalid("--policies", name, f"of {', '.join(POLICIES.names)}")
    return tuple(dict.fromkeys((BASELINE, *names)))


def _batches(text: str) -> tuple[int, ...]:
    try:
        batches = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        batches = ()
    if not batches or min(batches) < 0:
        raise invalid("--max-batch", text, "numbers from 0 on, separated by commas")
    return batches
