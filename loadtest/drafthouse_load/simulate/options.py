"""The options of `drafthouse simulate`, and what they ask for."""

import argparse
from pathlib import Path

from drafthouse.core.errors import invalid, unsupported
from drafthouse_load.replay.costs import check_covers, read_profile
from drafthouse_load.simulate.compare import POLICY_NAMES, PREDICTOR_NAMES
from drafthouse_load.simulate.costs import GivenCosts, ProfileCosts, RoundCosts
from drafthouse_load.simulate.lengths import DISTRIBUTIONS
from drafthouse_load.simulate.settings import FROM_TRACE, POISSON, TRACE_LENGTHS, SimulateSettings

MAX_BATCH = 64
SWEEP_LOADS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_DEFAULT = SimulateSettings(POLICY_NAMES)
_GIVEN = GivenCosts()


def parser() -> argparse.ArgumentParser:
    """The options of `drafthouse simulate`."""
    parser = argparse.ArgumentParser(
        prog="drafthouse simulate",
        description="Scheduling policies compared on the same requests in virtual time, with the server's own code.",
    )
    _add_requests(parser)
    _add_server(parser)
    _add_costs(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="where the report goes")
    output.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="latency distributions; needs matplotlib (default: beside the report)"
    )
    output.add_argument("--no-plot", action="store_true", help="no chart")
    output.add_argument("--sweep", action="store_true", help=f"also latency against load, {SWEEP_LOADS[0]} to {SWEEP_LOADS[-1]}")
    output.add_argument("--theory", action="store_true", help="instead: one server of known theory against its closed forms")
    return parser


def _add_requests(parser: argparse.ArgumentParser) -> None:
    requests = parser.add_argument_group("requests")
    requests.add_argument("--trace", type=Path, metavar="FILE.csv", help="lengths from TIMESTAMP,ContextTokens,GeneratedTokens")
    requests.add_argument(
        "--lengths", choices=sorted(DISTRIBUTIONS), default=_DEFAULT.lengths, help="without a trace (default: %(default)s)"
    )
    requests.add_argument(
        "--mean-length", type=float, default=_DEFAULT.mean_length, help="of made-up outputs, tokens (default: %(default)g)"
    )
    requests.add_argument("--prompt-length", type=int, default=_DEFAULT.prompt_length, help="without a trace (default: %(default)s)")
    requests.add_argument(
        "--length-scale", type=float, default=_DEFAULT.length_scale, help="factor on output lengths (default: %(default)g)"
    )
    requests.add_argument("--arrivals", choices=(POISSON, FROM_TRACE), default=POISSON, help="(default: %(default)s)")
    requests.add_argument("--load", type=float, default=_DEFAULT.load, help="offered service over capacity (default: %(default)s)")
    requests.add_argument(
        "--requests", dest="num_requests", type=int, default=_DEFAULT.num_requests, metavar="N", help="(default: %(default)s)"
    )
    requests.add_argument("--seed", type=int, default=_DEFAULT.seed, help="(default: %(default)s)")


def _add_server(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--policies", default=",".join(POLICY_NAMES), metavar="NAME,NAME", help="(default: %(default)s)")
    server.add_argument("--batch", type=int, default=_DEFAULT.batch, help=f"requests in a round, 1 to {MAX_BATCH} (default: %(default)s)")
    server.add_argument("--slots", type=int, default=_DEFAULT.slots, help="caches; 0: as many as it takes (default: %(default)s)")
    server.add_argument(
        "--draft-tokens", dest="num_draft_tokens", type=int, default=_DEFAULT.num_draft_tokens, help="(default: %(default)s)"
    )
    server.add_argument(
        "--max-verified-tokens",
        type=int,
        default=_DEFAULT.max_verified_tokens,
        metavar="N",
        help="of a verification; 0: no limit (default: %(default)s)",
    )
    server.add_argument(
        "--length-predictor",
        choices=PREDICTOR_NAMES,
        default=_DEFAULT.length_predictor,
        help="noisy: the truth, disturbed (default: %(default)s)",
    )
    server.add_argument(
        "--length-error", type=float, default=_DEFAULT.length_error, help="of `noisy`, σ of a log-normal factor (default: %(default)s)"
    )
    server.add_argument(
        "--starvation-services",
        type=float,
        default=_DEFAULT.starvation_services,
        help="starvation limit in mean services (default: %(default)g)",
    )


def _add_costs(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("what rounds take")
    costs = server.add_mutually_exclusive_group()
    costs.add_argument("--costs", type=Path, metavar="PROFILE.json", help="recorded stage costs, as in a report of `bench ablate`")
    costs.add_argument(
        "--prefill-tokens",
        type=int,
        default=_GIVEN.prefill_tokens,
        help="prompt tokens that cost a verification; 0: free (default: %(default)s)",
    )
    server.add_argument(
        "--draft-cost", type=float, default=_GIVEN.draft_token, help="of a draft token, in verifications (default: %(default)s)"
    )
    server.add_argument(
        "--row-cost", type=float, default=_GIVEN.row_growth, help="of each further row of a round, relative (default: %(default)s)"
    )
    server.add_argument("--drafter", default="general", help="with --costs: whose drafts (default: %(default)s)")


def read_settings(args: argparse.Namespace) -> SimulateSettings:
    """The experiment that the options ask for. Raises ClientError naming a bad option."""
    _check_ranges(args)
    if args.trace is None and args.arrivals == FROM_TRACE:
        raise invalid("--arrivals", FROM_TRACE, "with --trace FILE.csv only")
    if args.slots and args.slots < args.batch:
        raise invalid("--slots", args.slots, f"0, or at least --batch {args.batch}")
    names = tuple(dict.fromkeys(name.strip() for name in args.policies.split(",") if name.strip()))
    for name in names:
        if name not in POLICY_NAMES:
            raise unsupported("--policies", name, f"some of {', '.join(POLICY_NAMES)}")
    shared = {name: getattr(args, name) for name in _SHARED}
    return SimulateSettings(names or POLICY_NAMES, lengths=args.lengths if args.trace is None else TRACE_LENGTHS, **shared)


_SHARED = (
    "num_requests", "seed", "load", "batch", "slots", "num_draft_tokens", "max_verified_tokens", "arrivals", "mean_length", "prompt_length",
    "length_scale", "length_predictor", "length_error", "starvation_services",
)  # fmt: skip
# Option: least, most.
_RANGES = {
    "num_requests": (100, 10_000_000),
    "seed": (0, 2**63),
    "load": (0.01, 2.0),
    "batch": (1, MAX_BATCH),
    "slots": (0, 10_000_000),
    "num_draft_tokens": (0, 32),
    "max_verified_tokens": (0, 1 << 20),
    "mean_length": (1.0, 1e5),
    "prompt_length": (1, 1 << 20),
    "length_scale": (1e-3, 1e3),
    "length_error": (0.0, 3.0),
    "starvation_services": (1e-3, 1e12),
    "prefill_tokens": (0, 1 << 20),
    "draft_cost": (0.0, 100.0),
    "row_cost": (0.0, 100.0),
}
_OPTIONS = {"num_requests": "--requests", "num_draft_tokens": "--draft-tokens"}


def _check_ranges(args: argparse.Namespace) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(args, name)
        if not least <= value <= most:
            raise invalid(_OPTIONS.get(name, f"--{name.replace('_', '-')}"), value, f"from {least:g} to {most:g}")


def read_costs(args: argparse.Namespace) -> RoundCosts:
    """Recorded costs, or the given model. Raises ClientError."""
    if args.costs is None:
        return GivenCosts(args.draft_cost, args.row_cost, args.prefill_tokens)
    profile = read_profile(args.costs)
    check_covers(profile, [args.drafter])
    return ProfileCosts(profile, args.drafter)
