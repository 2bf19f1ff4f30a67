"""What locust's command line gains, and what it asks for."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from drafthouse.core.errors import invalid
from drafthouse_client import GenerateOptions
from drafthouse_load.ablate.options import load_ablate_prompts
from drafthouse_load.arrivals import Arrival, from_trace, poisson
from drafthouse_load.locust_users.observed import Slo
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.simulate.trace import read_trace

DEFAULT_HOST = "http://127.0.0.1:8000"
_GRPC_PORT = 8001


@dataclass(frozen=True)
class LoadOptions:
    """One load test."""

    prompts: tuple[DomainPrompt, ...]
    slo: Slo
    generate: GenerateOptions  # of every request; its seed is drawn for each
    model: str
    grpc_url: str
    timeout_s: float
    seed: int  # of everything that is drawn: arrivals, domains, prompts, seeds of the requests
    arrivals: Iterator[Arrival] | None  # open loop; None = closed loop: each user sends its next request after an answer


def add_options(parser: argparse.ArgumentParser) -> None:
    """Beside locust's own options; any is also read from an environment variable, as locust does it (LOCUST_PROMPTS, …)."""
    group = parser.add_argument_group("Drafthouse")
    group.add_argument("--model", default="cosine", help="Triton model that speaks text (default: %(default)s)")
    group.add_argument("--grpc-url", default="", metavar="HOST:PORT", help="gRPC endpoint (default: --host's name, port 8001)")
    group.add_argument("--prompts", default="", metavar="FILE.jsonl", help="lines of {domain, prompt} (default: 60 of our own)")
    group.add_argument("--max-tokens", type=int, default=64, help="per request: a limit, texts may end earlier (default: %(default)s)")
    group.add_argument("--min-tokens", type=int, default=0, help="per request (default: %(default)s)")
    group.add_argument("--temperature", type=float, default=0.0, help="0 = greedy (default: %(default)s)")
    group.add_argument("--deadline-ms", type=int, default=0, help="kept by the server (default: the server's own)")
    group.add_argument("--timeout-s", type=float, default=120.0, help="of a request (SSE: of a silence in it) (default: %(default)s)")
    group.add_argument("--slo-ttft-ms", type=float, default=None, metavar="MS", help="goodput: latest first token")
    group.add_argument("--slo-tpot-ms", type=float, default=None, metavar="MS", help="goodput: longest time per output token")
    group.add_argument("--rate", type=float, default=None, metavar="PER_S", help="open loop: requests per second, Poisson")
    group.add_argument("--trace", default="", metavar="FILE.csv", help="open loop: columns TIMESTAMP,ContextTokens,GeneratedTokens")
    group.add_argument("--trace-speed", type=float, default=1.0, metavar="X", help="play the trace X times as fast (default: %(default)s)")
    group.add_argument("--arrival-seed", type=int, default=0, help="of Poisson arrivals, prompts, sampling (default: %(default)s)")


def read_options(args: argparse.Namespace, host: str) -> LoadOptions:
    """The load test that the options ask for. Raises ClientError naming a bad option or file."""
    for name in ("slo_ttft_ms", "slo_tpot_ms", "rate", "trace_speed", "timeout_s"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise invalid(f"--{name.replace('_', '-')}", value, "above 0")
    return LoadOptions(
        prompts=tuple(load_ablate_prompts(Path(args.prompts) if args.prompts else None)),
        slo=Slo(args.slo_ttft_ms, args.slo_tpot_ms),
        generate=GenerateOptions(
            max_tokens=args.max_tokens,
            min_tokens=args.min_tokens or None,
            temperature=args.temperature,
            deadline_ms=args.deadline_ms or None,
            exclude_input_in_output=True,
        ),
        model=args.model,
        grpc_url=args.grpc_url or f"{urlsplit(host).hostname or '127.0.0.1'}:{_GRPC_PORT}",
        timeout_s=args.timeout_s,
        seed=args.arrival_seed,
        arrivals=_arrivals(args),
    )


def _arrivals(args: argparse.Namespace) -> Iterator[Arrival] | None:
    if args.rate is not None and args.trace:
        raise invalid("--trace", args.trace, "no --rate beside it")
    if args.rate is not None:
        return poisson(args.rate, args.arrival_seed)
    if args.trace:
        return from_trace(read_trace(Path(args.trace)), args.trace_speed)
    return None
