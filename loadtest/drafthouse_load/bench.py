"""`drafthouse bench`: its sub-commands, and the one place where their errors become an exit status."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from drafthouse.core.errors import DrafthouseError
from drafthouse.launcher import LaunchError
from drafthouse_client import ServerSideError
from drafthouse_load.ablate.command import add_ablate_options, run_ablate
from drafthouse_load.decode import add_decode_options, run_decode
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
    ablate.set_defaults(run=run_ablate)
    soak = commands.add_parser("soak", help="many short requests with cancels: slots, memory, shared memory")
    add_soak_options(soak)
    soak.set_defaults(run=run_soak)
    return parser


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
