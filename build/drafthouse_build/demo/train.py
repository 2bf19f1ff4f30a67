"""Command line of the demo training: ``python -m drafthouse_build.demo.train --data DIR --out DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from drafthouse_build.demo.config import DRAFTERS, FULL, SMOKE
from drafthouse_build.demo.report import write_report
from drafthouse_build.demo.stages import run_acceptance, run_base, run_drafter, run_sets, run_target
from drafthouse_build.demo.workspace import Workspace

STAGES = ("target", "sets", "base", "drafters", "acceptance", "report")


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(prog="drafthouse train-demo", description="Train the demo models from a folder of corpora.")
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k_train.jsonl and tinyshakespeare.txt")
    parser.add_argument("--stdlib", type=Path, help="Python sources for the code and docs corpora (default: the running Python's library)")
    parser.add_argument("--out", type=Path, required=True, help="folder for models and checkpoints; a stopped run continues there")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this stage; repeatable (default: all)")
    parser.add_argument("--drafter", choices=DRAFTERS, action="append", help="train only this drafter; repeatable (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--no-compile", action="store_true", help="do not compile with Inductor")
    parser.add_argument("--smoke", action="store_true", help="tiny models and budgets, to see every stage run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the wanted stages; what is already in the output folder is not done again. Returns the exit status."""
    options = build_parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    work = Workspace(options.out, SMOKE if options.smoke else FULL, options.data, options.stdlib, Console())
    stages = options.stage or STAGES
    compiled = not options.no_compile
    if "target" in stages:
        run_target(work, compiled)
    if "sets" in stages:
        run_sets(work, compiled)
    if "base" in stages:
        run_base(work, compiled)
    if "drafters" in stages:
        for name in options.drafter or DRAFTERS:
            run_drafter(work, name, compiled)
    if "acceptance" in stages:
        run_acceptance(work)
    if "report" in stages:
        write_report(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
