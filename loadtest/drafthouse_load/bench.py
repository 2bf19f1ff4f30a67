"""`drafthouse bench`: its sub-commands, and the one place where their errors become an exit status."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from drafthouse.core.errors import DrafthouseError
from drafthouse.launcher import LaunchError
from drafthouse_client import ServerSideError
from drafthouse_load.ablate.options import add_ablate_options
from drafthouse_load.decide.command import add_decide_options, run_decide
from drafthouse_load.decode import add_decode_options, run_decode
from drafthouse_load.gateway.command import add_gateway_options, run_gateway
from drafthouse_load.metrics_cost import add_metrics_options, run_metrics
from drafthouse_load.schedule.options import add_schedule_options
from drafthouse_load.soak import add_soak_options, run_soak


def parser() -> argparse.ArgumentParser:
    """The options of `drafthouse bench`."""
    parser = argparse.ArgumentParser(prog="drafthouse bench", description="Measure a freshly started server.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    decode = commands.add_parser("decode", help="tokens/s of the target alone, with one drafter and with all, in one run")
    add_decode_options(decode)
    decode.set_defaults(run=run_decode)
    ablate = commands.add_parser("ablate", help="what each part of CoSine is worth: every mode on the same prompts, measured and replayed")
    add_ablate_options(ablate)
    ablate.set_defaults(run=_run_ablate)
    schedule = commands.add_parser("schedule", help="every scheduling policy on the same arrivals, measured and simulated")
    add_schedule_options(schedule)
    schedule.set_defaults(run=_run_schedule)
    decide = commands.add_parser("decide", help="what a scheduling decision costs, by policy and requests in the queue; no server")
    add_decide_options(decide)
    decide.set_defaults(run=run_decide)
    gateway = commands.add_parser("gateway", help="latency that the OpenAI gateway adds to gRPC, and many streams through it at once")
    add_gateway_options(gateway)
    gateway.set_defaults(run=run_gateway)
    metrics = commands.add_parser("metrics", help="what the metrics cost: mean rounds with and without them")
    add_metrics_options(metrics)
    metrics.set_defaults(run=run_metrics)
    soak = commands.add_parser("soak", help="many short requests with cancels: slots, memory, shared memory")
    add_soak_options(soak)
    soak.set_defaults(run=run_soak)
    return parser


def _run_ablate(args: argparse.Namespace, console: Console) -> int:
    # It runs engines in this process, which the other sub-commands do without: they work where no engine is installed.
    command = import_module("drafthouse_load.ablate.command")
    status: int = command.run_ablate(args, console)
    return status


def _run_schedule(args: argparse.Namespace, console: Console) -> int:
    command = import_module("drafthouse_load.schedule.command")
    status: int = command.run_schedule(args, console)
    return status


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 refused, failed or (soak) a violation, 130 after Ctrl-C; the server is stopped in any case."""
    args = parser().parse_args(argv)
    try:
        status: int = args.run(args, Console(highlight=False))
    except (DrafthouseError, LaunchError, ServerSideError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return status
