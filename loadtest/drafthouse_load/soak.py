"""`drafthouse bench soak`: many short requests, some of them cancelled, then the books must balance."""

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drafthouse.core.errors import invalid
from drafthouse.launcher import TritonServer
from drafthouse.launcher.processes import group_members
from drafthouse_client import AsyncClient, Client, GenerateOptions, ServerSideError
from drafthouse_client.local_server import add_options, running
from drafthouse_load import machine
from drafthouse_load.memory import Growth, MemoryLog
from drafthouse_load.prompts import DomainPrompt, load_prompts
from drafthouse_load.report import write_json
from drafthouse_load.stats import ServerStats, read_when_idle

SCHEMA = "drafthouse-bench-soak/1"
_SAMPLES = 200  # memory readings over the run
_MIB = 1 << 20


@dataclass(frozen=True)
class SoakSettings:
    """How much load, and what counts as flat."""

    requests: int = 10_000
    concurrency: int = 8
    max_tokens: int = 8
    cancel_rate: float = 0.1
    seed: int = 0
    max_growth: float = 0.05  # of any process's resident memory after the first tenth


@dataclass
class SoakLog:
    """What the requests did; filled while the soak runs."""

    completed: int = 0
    cancelled: int = 0
    output_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)  # of completed requests

    @property
    def finished(self) -> int:
        """Requests that ended in any way."""
        return self.completed + self.cancelled + self.errors.total()


def add_soak_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse bench soak`."""
    default = SoakSettings()
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    parser.add_argument("--requests", type=int, default=default.requests, help="(default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=default.concurrency, help="requests at once (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="per request (default: %(default)s)")
    parser.add_argument("--cancel-rate", type=float, default=default.cancel_rate, help="share cancelled midway (default: %(default)s)")
    parser.add_argument("--max-growth", type=float, default=default.max_growth, help="of resident memory (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of prompts, options and cancels (default: %(default)s)")
    parser.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="lines of {domain, prompt} (default: a small set of our own)")
    add_options(parser)
    parser.add_argument("--repository", dest="model_repository", type=Path, metavar="DIR", help="short for --model-repository")


def run_soak(args: argparse.Namespace, console: Console) -> int:
    """Soak a server of our own, stop it, write the report. Returns 1 when anything leaked, grew or failed."""
    settings = SoakSettings(args.requests, args.concurrency, args.max_tokens, args.cancel_rate, args.seed, args.max_growth)
    if settings.requests < 1 or settings.concurrency < 1 or not 0 <= settings.cancel_rate <= 1:
        raise invalid("--requests, --concurrency, --cancel-rate", args.cancel_rate, ">= 1, >= 1, 0 to 1")
    prompts = load_prompts(args.prompts)
    with running(args, console) as server:
        with Client(server.grpc_address) as client:
            head = machine.describe(client.server_version())
        report, violations = soak(server, prompts, settings, console)
        process_group = server.pid
    violations += left_behind(process_group, server.shared_memory_regions())
    write_json({"schema": SCHEMA} | head | report | {"violations": violations}, args.json)
    for violation in violations:
        console.print(f"violation: {violation}", style="red", markup=False)
    return 1 if violations else 0


def left_behind(process_group: int, regions: Sequence[Path]) -> list[str]:
    """What a stopped server must not leave: processes and shared-memory regions."""
    processes = [f"process {pid} still runs after the stop" for pid in group_members(process_group)]
    return processes + [f"shared-memory region {region} is left after the stop" for region in regions]


def soak(
    server: TritonServer, prompts: Sequence[DomainPrompt], settings: SoakSettings, console: Console
) -> tuple[dict[str, object], list[str]]:
    """Load a running server; returns the report's figures and the violations seen while it runs."""
    log, memory = SoakLog(), MemoryLog(server.pid)
    began_s = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("soak", total=settings.requests)
        every = max(1, settings.requests // _SAMPLES)

        def finished() -> None:
            progress.update(task, completed=log.finished)
            if log.finished % every == 0:
                memory.sample(log.finished)

        asyncio.run(_load(server.grpc_address, prompts, settings, log, finished))
    duration_s = time.monotonic() - began_s
    with Client(server.grpc_address) as client:
        stats = read_when_idle(client)
    growths = memory.growths(settings.requests)
    console.print(memory_table(growths))
    figures: dict[str, object] = {
        "settings": asdict(settings),
        "duration_s": round(duration_s, 2),
        "requests_per_s": round(log.finished / duration_s, 2),
        "completed": log.completed,
        "cancelled": log.cancelled,
        "errors": dict(log.errors),
        "output_tokens": log.output_tokens,
        "latency_ms": _percentiles(log.latencies_s),
        "memory": {name: asdict(value) | {"growth": round(value.fraction, 4)} for name, value in growths.items()},
        "slots_held_when_idle": stats.leaked_slots,
    }
    return figures, violations(log, stats, growths, settings)


def violations(log: SoakLog, stats: ServerStats, growths: Mapping[str, Growth], settings: SoakSettings) -> list[str]:
    """Everything that must not be, in words."""
    found = [f"{count} requests failed: {message}" for message, count in log.errors.items()]
    if not stats.idle:
        found.append(f"{stats.running} requests still run and {stats.queue_len} wait after the last answer")
    found += [f"{name} does not answer" for name in stats.silent_engines]
    found += [f"{name} still holds {count} slots" for name, count in stats.leaked_slots.items()]
    found += [
        f"{name} grew by {growth.fraction:.1%} after the first tenth (allowed {settings.max_growth:.0%})"
        for name, growth in growths.items()
        if growth.fraction > settings.max_growth
    ]
    if not growths:
        found.append("no process was measured in two tenths of the run: too few requests")
    return found


def memory_table(growths: Mapping[str, Growth]) -> Table:
    """Resident memory per process."""
    table = Table(title="resident memory, MiB", box=box.SIMPLE_HEAD)
    table.add_column("process", no_wrap=True)
    for column in ("2nd tenth", "largest later", "last", "growth"):
        table.add_column(column, justify="right")
    for name, growth in growths.items():
        sizes = (growth.tenths_bytes[0], max(growth.tenths_bytes[1:]), growth.tenths_bytes[-1])
        table.add_row(name, *(f"{size / _MIB:.1f}" for size in sizes), f"{growth.fraction:+.1%}")
    return table


async def _load(url: str, prompts: Sequence[DomainPrompt], settings: SoakSettings, log: SoakLog, finished: Callable[[], None]) -> None:
    numbers = iter(range(settings.requests))

    async def worker(client: AsyncClient) -> None:
        for number in numbers:
            await _one_request(client, random.Random(settings.seed * settings.requests + number), prompts, settings, log)
            finished()

    async with AsyncClient(url) as client, asyncio.TaskGroup() as group:
        for _ in range(settings.concurrency):
            group.create_task(worker(client))


async def _one_request(
    client: AsyncClient, rng: random.Random, prompts: Sequence[DomainPrompt], settings: SoakSettings, log: SoakLog
) -> None:
    options = GenerateOptions(
        max_tokens=rng.randint(1, settings.max_tokens),
        temperature=rng.choice((0.0, 0.8)),
        seed=rng.getrandbits(64),
        num_draft_tokens=rng.choice((None, None, None, 0)),
    )
    request = asyncio.create_task(_consume(client, rng.choice(prompts).prompt, options))
    began_s = time.monotonic()
    # A cancel may fall before the first token, between two, or come too late: the answer then counts as completed.
    patience_s = rng.uniform(0, _typical_s(log)) if rng.random() < settings.cancel_rate else None
    await asyncio.wait((request,), timeout=patience_s)
    if request.cancel():
        await asyncio.gather(request, return_exceptions=True)
        log.cancelled += 1
        return
    error = request.exception()
    if isinstance(error, ServerSideError):
        log.errors[error.message] += 1
        return
    log.output_tokens += request.result()
    log.completed += 1
    log.latencies_s.append(time.monotonic() - began_s)


async def _consume(client: AsyncClient, prompt: str, options: GenerateOptions) -> int:
    return sum([chunk.num_output_tokens async for chunk in client.stream(prompt, options)])


def _typical_s(log: SoakLog) -> float:
    recent = log.latencies_s[-32:]
    return sum(recent) / len(recent) if recent else 0.02


def _percentiles(latencies_s: Sequence[float]) -> dict[str, float]:
    if not latencies_s:
        return {}
    return {f"p{q}": round(1e3 * float(np.percentile(latencies_s, q)), 2) for q in (50, 90, 99)}
