"""The options of `drafthouse bench ablate`, and what they ask for."""

import argparse
from importlib.resources import files
from pathlib import Path

from drafthouse.core.errors import invalid
from drafthouse_client.local_server import add_options
from drafthouse_load.ablate.arms import ARMS, arms_named
from drafthouse_load.ablate.measure import AblateSettings
from drafthouse_load.prompts import DomainPrompt, load_prompts, parse_prompts

MAX_CONCURRENCY = 64
_SHIPPED = "mixed_prompts.jsonl"


def add_ablate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse bench ablate`."""
    default = AblateSettings(ARMS)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    parser.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="lines of {domain, prompt} (default: 60, a third mix fields)")
    parser.add_argument("--concurrency", default="1,4,8", metavar="N,N", help="requests at once (default: %(default)s)")
    parser.add_argument("--modes", default="", metavar="NAME,NAME", help=f"of {', '.join(arm.name for arm in ARMS)} (default: all)")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="per request (default: %(default)s)")
    parser.add_argument("--cycles", type=int, default=default.cycles, help="times A B … B A over the modes (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="chart; needs matplotlib (default: beside the report)")
    parser.add_argument("--no-plot", action="store_true", help="no chart")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="replay with the stage costs of this report")
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--replay-only", action="store_true", help="measure stage costs only, then replay")
    half.add_argument("--no-replay", action="store_true", help="measure on the server only")
    add_options(parser)
    parser.add_argument("--repository", dest="model_repository", type=Path, metavar="DIR", help="short for --model-repository")


def read_settings(args: argparse.Namespace) -> AblateSettings:
    """The settings that the options ask for. Raises ClientError naming a bad option."""
    for name in ("max_tokens", "cycles"):
        if getattr(args, name) < 1:
            raise invalid(f"--{name.replace('_', '-')}", getattr(args, name), ">= 1")
    if args.profile is not None and args.no_replay:
        raise invalid("--profile", str(args.profile), "no --no-replay beside it")
    names = [name.strip() for name in args.modes.split(",") if name.strip()] or [arm.name for arm in ARMS]
    return AblateSettings(arms_named(names), _levels(args.concurrency), args.cycles, args.max_tokens)


def _levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        levels = ()
    if not levels or not all(1 <= level <= MAX_CONCURRENCY for level in levels):
        raise invalid("--concurrency", text, f"numbers from 1 to {MAX_CONCURRENCY}, separated by commas")
    return levels


def load_ablate_prompts(file: Path | None) -> list[DomainPrompt]:
    """The prompts of ``file``, else the shipped set. Raises ClientError."""
    if file is not None:
        return load_prompts(file)
    return parse_prompts(files("drafthouse_load").joinpath(_SHIPPED).read_text(encoding="utf-8"), _SHIPPED)
