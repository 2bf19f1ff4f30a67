"""`drafthouse build`: the command line of the build."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from drafthouse_build.errors import BuildError
from drafthouse_build.model_file import Progress
from drafthouse_build.repository import StepOutcome, StepReporter, build_repository
from drafthouse_build.templates import committed_drafters
from drafthouse_build.tensorrt_engine import PlanOptions

_CHECKOUT = Path(__file__).resolve().parents[2]
_DEFAULT_TEMPLATES = _CHECKOUT / "model_repository"
_DEFAULT_MODELS = _CHECKOUT / "build" / "demo_models"
_DEMO_TARGET_PARAMETERS = "90M"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
EXIT_BAD_INPUT = 2
_WORTH_A_LINE_S = 2.0
_LEAST_FILE_BYTES = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `drafthouse build` and returns its exit status: 0 when the repository is complete, 2 for bad input, named in one line."""
    arguments = build_parser().parse_args(argv)
    console = Console(stderr=True)
    try:
        outcomes = _build(arguments, console)
    except BuildError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return EXIT_BAD_INPUT
    _summarise(console, outcomes, arguments)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The options of `drafthouse build`."""
    parser = argparse.ArgumentParser(prog="drafthouse build", description="Turn Hugging Face checkpoints into a Triton model repository.")
    parser.add_argument("--target", metavar="DIR|ID", help="checkpoint of the model whose text the user gets: a folder or a hub id")
    parser.add_argument(
        "--drafter",
        action="append",
        default=[],
        metavar="NAME=DIR|ID",
        help="a drafter and its checkpoint, any that has the target's tokenizer; repeat for more",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="model repository to write")
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="onnx: fp32 (default) or int8 (8-bit weights); tensorrt: bf16 (default), fp16, fp32 or int4 (4-bit weights)",
    )
    parser.add_argument("--context-len", type=int, default=512, metavar="N", help="rows of a key/value cache (default 512)")
    parser.add_argument("--max-step-tokens", type=int, default=64, metavar="N", help="largest prefill chunk or draft tree (default 64)")
    parser.add_argument("--slots", type=int, metavar="N", help="requests whose caches fit at a time (default: the templates')")
    parser.add_argument("--expand-target", metavar="N", help="grow the target to about N parameters without changing its output, e.g. 90M")
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME,NAME",
        help="write only these drafters: the repository of a node that serves them to other servers",
    )
    _add_tensorrt_options(parser)
    parser.add_argument("--demo", action="store_true", help="build the demo models into the checkout's own model repository")
    parser.add_argument("--models", type=Path, default=_DEFAULT_MODELS, metavar="DIR", help="with --demo: folder of the demo checkpoints")
    parser.add_argument("--templates", type=Path, default=_DEFAULT_TEMPLATES, metavar="DIR", help="committed model repository to copy from")
    return parser


def _add_tensorrt_options(parser: argparse.ArgumentParser) -> None:
    """What only `--backend tensorrt` knows; see docs/engines.md."""
    parser.add_argument("--backend", choices=("onnx", "tensorrt"), default="onnx", help="runtime of the engines (default onnx)")
    group = parser.add_argument_group("with --backend tensorrt, on the GPU machine that is to run the engines")
    group.add_argument("--device", action="append", default=[], metavar="NAME=N", help="GPU of the target or of a drafter (default 0)")
    group.add_argument("--workspace-mib", type=int, metavar="N", help="GPU memory that kernels may use (default: all there is)")
    group.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings, read and written: later builds are faster")
    group.add_argument("--version-compatible", action="store_true", help="plans that later TensorRT versions of the same major number run")


def _plan_options(arguments: argparse.Namespace) -> PlanOptions | None:
    """How to compile, None for ONNX Runtime; an option that would not be obeyed is refused."""
    if arguments.backend == "tensorrt":
        workspace = None if arguments.workspace_mib is None else arguments.workspace_mib << 20
        return PlanOptions(
            precision=arguments.precision or "bf16",
            version_compatible=arguments.version_compatible,
            workspace_bytes=workspace,
            timing_cache=arguments.timing_cache,
        )
    for option in ("device", "workspace_mib", "timing_cache", "version_compatible"):
        if getattr(arguments, option):
            raise BuildError("INVALID_ARG", option, getattr(arguments, option), "--backend tensorrt")
    return None


def parse_devices(texts: Sequence[str]) -> dict[str, int]:
    """Reads `NAME=N` options; raises `BuildError` for another form or a repeated name."""
    devices: dict[str, int] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdecimal() or name in devices:
            raise BuildError("INVALID_ARG", "device", text, "NAME=N, every name once")
        devices[name] = int(number)
    return devices


def _build(arguments: argparse.Namespace, console: Console) -> list[StepOutcome]:
    if arguments.demo:
        _fill_in_demo(arguments)
    for option in ("target", "output"):
        if getattr(arguments, option) is None:
            raise BuildError("INVALID_ARG", option, "none", f"--{option} DIR, or --demo")
    plan = _plan_options(arguments)
    return build_repository(
        arguments.target,
        parse_drafters(arguments.drafter),
        arguments.output,
        templates=arguments.templates,
        precision="fp32" if plan is not None else arguments.precision or "fp32",
        context_len=arguments.context_len,
        max_step_tokens=arguments.max_step_tokens,
        expand_target_to=None if arguments.expand_target is None else parse_count(arguments.expand_target),
        slots=arguments.slots,
        only=[name for name in arguments.only.split(",") if name],
        plan=plan,
        devices=parse_devices(arguments.device),
        report=_reporter(console),
    )


def _fill_in_demo(arguments: argparse.Namespace) -> None:
    """`--demo` names checkpoints and repository itself; contradicting it would be ignored, so it is refused."""
    for option in ("target", "drafter"):
        if getattr(arguments, option):
            raise BuildError(
                "INVALID_ARG", option, getattr(arguments, option), "either --demo (with --models DIR) or --target and --drafter"
            )
    arguments.target = arguments.models / "target"
    arguments.drafter = [f"{name}={arguments.models / name}" for name in committed_drafters(arguments.templates)]
    arguments.output = arguments.output or arguments.templates
    arguments.expand_target = arguments.expand_target or _DEMO_TARGET_PARAMETERS


def parse_drafters(texts: Sequence[str]) -> dict[str, str]:
    """Reads `NAME=DIR` options, in their order; raises `BuildError` for another form or a repeated name."""
    drafters: dict[str, str] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not (name and separator and folder) or name in drafters:
            raise BuildError("INVALID_ARG", "drafter", text, "NAME=DIR, every name once")
        drafters[name] = folder
    return drafters


def parse_count(text: str) -> int:
    """Reads a number of parameters such as `90M` or `1.2B`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.upper())
    if found is None:
        raise BuildError("INVALID_ARG", "expand_target", text, "a number of parameters such as 90M")
    return round(float(found[1]) * _UNITS[found[2]])


def _reporter(console: Console) -> StepReporter:
    @contextmanager
    def step(title: str) -> Iterator[Progress]:
        started = time.monotonic()
        # Without a terminal there is no bar: a line before the work says what takes so long.
        if not console.is_terminal:
            console.print(f"{title} …", highlight=False)
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[written]}")
        with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(title, total=None, written="")

            def show(done: int, total: int) -> None:
                # Bytes of a file, or TensorRT's thousandths.
                written = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total > _LEAST_FILE_BYTES else f"{done / total:.0%}"
                bar.update(task, completed=done, total=total, written=written)

            yield show
        seconds = time.monotonic() - started
        if seconds > _WORTH_A_LINE_S:
            console.print(f"{title}: {seconds:.1f} s", highlight=False)

    return step


def _summarise(console: Console, outcomes: Sequence[StepOutcome], arguments: argparse.Namespace) -> None:
    built = [outcome.name for outcome in outcomes if outcome.built]
    if built:
        console.print(f"built {', '.join(built)} into {arguments.output}", highlight=False, soft_wrap=True)
    else:
        console.print(f"build is current: {arguments.output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
