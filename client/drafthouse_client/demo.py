"""`drafthouse demo`: stream one completion per domain, then measure speculation off and on."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.rule import Rule
from rich.table import Table

from drafthouse.launcher import LaunchError
from drafthouse_client.built import engine_manifest, tokenizer_file
from drafthouse_client.client import Client
from drafthouse_client.completion import Completion, GenerateOptions
from drafthouse_client.errors import ServerSideError
from drafthouse_client.generate import show
from drafthouse_client.local_server import add_options, running
from drafthouse_client.paint import legend, stats_line, token_byte_lengths

# The first prompt of each domain is the one that is streamed to the terminal; all of them are measured.
PROMPTS: Mapping[str, tuple[str, ...]] = {
    "code": ("def read_config(path):\n    with open(path", "def find_all(self, name, default=None):\n    if"),
    "math": (
        "Question: Mia has 24 apples. She gives 9 to her friend and buys 6 more. How many apples does she have now?\nAnswer:",
        "Question: A train travels 60 miles an hour for 3 hours. How far does it travel?\nAnswer:",
    ),
    "drama": ("JULIET:\nO gentle night,", "KING RICHARD:\nWhat says"),
    "docs": ('"""Return a new list that contains', '"""Raised when the file'),
}
_ORDER = (0, None, None, 0)  # num_draft_tokens: off, on, on, off, so that drift hits both alike
_MILLION = 1e6


@dataclass
class DomainResult:
    """All measured runs of one domain."""

    off: list[Completion] = field(default_factory=list)
    on: list[Completion] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Did every run of a prompt, off and on, give the same text and tokens?"""
        runs_per_prompt = len(_ORDER) // 2
        starts = range(0, len(self.off), runs_per_prompt)
        answers = [
            {(run.text, run.output_ids) for run in (*self.off[at : at + runs_per_prompt], *self.on[at : at + runs_per_prompt])}
            for at in starts
        ]
        return all(len(texts) == 1 for texts in answers)


def tokens_per_s(runs: Sequence[Completion]) -> float:
    """Output tokens per second over these runs, prefill included."""
    seconds = sum(run.duration_s for run in runs)
    return sum(run.num_output_tokens for run in runs) / seconds if seconds > 0 else 0.0


def tokens_per_round(runs: Sequence[Completion]) -> float:
    """Tokens emitted per verification, bonus token included."""
    verifications = sum(run.num_verifications for run in runs)
    return sum(len(run.token_sources) - 1 for run in runs) / verifications if verifications else 0.0


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 when every text was the same with and without speculation, else 1; the server is stopped either way."""
    parser = argparse.ArgumentParser(prog="drafthouse demo", description="Serve the demo models and compare speculation on and off.")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of each completion (default: %(default)s)")
    add_options(parser)
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        with running(args, console) as server, Client(server.grpc_address) as client:
            return _demonstrate(client, args, console)
    except (LaunchError, ServerSideError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _demonstrate(client: Client, args: argparse.Namespace, console: Console) -> int:
    tokenizer = tokenizer_file(args.model_repository)
    lengths = token_byte_lengths(tokenizer) if tokenizer else {}
    drafters = client.drafters()
    for domain, prompts in PROMPTS.items():
        console.print(Rule(f"{domain}, streamed"))
        completion, ttft_s = show(client, prompts[0], _options(args.max_tokens, None), console, lengths)
        console.print(legend(completion.token_sources, drafters))
        console.print(stats_line(completion, ttft_s), style="dim")
    results = measure(client, PROMPTS, args.max_tokens, console)
    console.print(Rule("speculation off and on"))
    console.print(result_table(results))
    console.print(about_the_models(args.model_repository, drafters), markup=False)
    return 0 if all(result.identical for result in results.values()) else 1


def _options(max_tokens: int, num_draft_tokens: int | None) -> GenerateOptions:
    return GenerateOptions(max_tokens=max_tokens, temperature=0.0, exclude_input_in_output=True, num_draft_tokens=num_draft_tokens)


def measure(client: Client, prompts: Mapping[str, Sequence[str]], max_tokens: int, console: Console) -> dict[str, DomainResult]:
    """Every prompt with speculation off, on, on, off, one request at a time."""
    results = {domain: DomainResult() for domain in prompts}
    work = [(domain, prompt) for domain, own in prompts.items() for prompt in own]
    with Progress(console=console, transient=True) as progress:
        for domain, prompt in progress.track(work, description="measuring"):
            for num_draft_tokens in _ORDER:
                completion = client.generate(prompt, _options(max_tokens, num_draft_tokens))
                (results[domain].on if num_draft_tokens is None else results[domain].off).append(completion)
    return results


def result_table(results: Mapping[str, DomainResult]) -> Table:
    """One row per domain and one for all of them."""
    caption = "one request at a time, greedy; tokens/s include the prompt's prefill"
    table = Table(caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)  # fits 80 columns
    for at, column in enumerate(("domain", "tokens/s off", "tokens/s on", "tokens per round", "speed-up", "identical text")):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    for domain, result in results.items():
        table.add_row(domain, *_cells([result]))
    table.add_section()
    table.add_row("all", *_cells(list(results.values())), style="bold")
    return table


def _cells(results: Sequence[DomainResult]) -> list[str]:
    off = [run for result in results for run in result.off]
    on = [run for result in results for run in result.on]
    slow, fast = tokens_per_s(off), tokens_per_s(on)
    identical = all(result.identical for result in results)
    return [
        f"{slow:.1f}",
        f"{fast:.1f}",
        f"{tokens_per_round(on):.2f}",
        f"{fast / slow:.2f}×" if slow > 0 else "–",
        "yes" if identical else "[red]NO[/red]",
    ]


def about_the_models(repository: Path, drafters: Sequence[str]) -> str:
    """What these figures were measured on, said plainly."""
    target = engine_manifest(repository, "target")
    sizes = [engine_manifest(repository, f"drafter_{name}").get("num_params", 0) / _MILLION for name in drafters]
    if not target or not sizes or not all(sizes):
        return "Engine sizes are unknown: the repository was not written by `drafthouse build`."
    drafts = ", ".join(f"{name} {size:.1f} M" for name, size in zip(drafters, sizes, strict=True))
    return (
        f"Target: {target['num_params'] / _MILLION:.0f} M parameters, {target['precision']}; drafters: {drafts}. "
        "The demo's target was trained small (about 11 M) and grown by function-preserving expansion: added blocks and "
        "neurons change no output. So the text is that of the small model, while a verification costs as much, next to "
        "its drafters, as it does in practice. The speed-up is real for these shapes; it says nothing about the quality "
        "of the text."
    )
