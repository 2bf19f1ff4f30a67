"""The `drafthouse` command: a table of sub-commands, each imported only when it is the one that runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class SubCommand:
    """One sub-command: `module.function(argv) -> exit status` owns its options and its `--help`."""

    name: str
    help: str
    module: str
    function: str = "main"

    def load(self) -> Callable[[Sequence[str]], int]:
        """Imports the sub-command. Errors: ModuleNotFoundError when an extra it needs is not installed."""
        function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(self.module), self.function)
        return function


COMMANDS = (
    SubCommand("serve", "start Triton with a model repository and keep it up", "drafthouse.launcher.serve"),
    SubCommand("build", "turn Hugging Face checkpoints into engines and a model repository", "drafthouse_build.cli"),
    SubCommand("size", "compute the GPU memory that engines and their caches take", "drafthouse_build.tensorrt_size"),
    SubCommand("train-demo", "train the demo's target and drafters from corpora in a folder", "drafthouse_build.demo.train"),
    SubCommand("gateway", "serve OpenAI's API in front of a running server", "drafthouse_client.gateway.command"),
    SubCommand("generate", "complete a prompt on a running server", "drafthouse_client.generate"),
    SubCommand("demo", "serve the demo models and compare speculation on and off", "drafthouse_client.demo"),
    SubCommand("bench", "measure a running or freshly started server", "drafthouse_load.bench"),
    SubCommand("simulate", "compare scheduling policies in virtual time", "drafthouse_load.simulate.command"),
)

# Packages of an extra, so that a missing one is answered with the command that installs it.
EXTRAS = {
    **dict.fromkeys(("torch", "transformers"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime"), "cpu-server"),
    **dict.fromkeys(("fastapi", "jinja2", "prometheus_client", "pydantic", "starlette", "uvicorn"), "gateway"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drafthouse",
        description="Collaborative speculative decoding on NVIDIA Triton.",
        epilog="`drafthouse COMMAND --help` lists the options of one command.",
    )
    parser.add_argument("--version", action="version", version=f"drafthouse {version('drafthouse')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        # The sub-command parses its own options: building all parsers here would import everything.
        commands.add_parser(command.name, help=command.help, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns its exit status. Wrong usage exits with status 2, as argparse does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = _parser().parse_known_args(arguments[:1])[0].command
    command = next(command for command in COMMANDS if command.name == name)
    try:
        run = command.load()
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        sys.stderr.write(f"UNAVAILABLE field=drafthouse {name} value=without {error.name} allowed=pip install 'drafthouse[{extra}]'\n")
        return 1
    return run(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
