"""`drafthouse generate`: complete a prompt on a running server, showing who proposed which words."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from drafthouse_client.built import DEFAULT_REPOSITORY, tokenizer_file
from drafthouse_client.client import DEFAULT_URL, Client
from drafthouse_client.completion import Chunk, Completion, GenerateOptions, join_chunks
from drafthouse_client.errors import ServerSideError
from drafthouse_client.paint import Painter, legend, painted, stats_line, token_byte_lengths


def parser() -> argparse.ArgumentParser:
    """The options of `drafthouse generate`."""
    parser = argparse.ArgumentParser(prog="drafthouse generate", description="Complete a prompt on a running server.")
    parser.add_argument("prompt", nargs="?", help="the prompt; `-`, or none when input is piped, reads standard input")
    parser.add_argument("--url", default=DEFAULT_URL, help="gRPC endpoint of the server (%(default)s)")
    parser.add_argument("--stream", action="store_true", help="show tokens as they are verified")
    parser.add_argument("--stats", action="store_true", help="end with a legend and a line of figures")
    parser.add_argument("--max-tokens", type=int, default=64, help="upper limit of the completion (%(default)s)")
    parser.add_argument("--min-tokens", type=int, help="keep on until at least this many")
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int, help="one seed gives one text")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; may be repeated")
    parser.add_argument("--num-draft-tokens", type=int, help="draft tokens per round; 0 switches speculation off")
    parser.add_argument("--drafters", default="", metavar="NAME,…", help="use only these drafters")
    parser.add_argument("--deadline-ms", type=int, help="give up after this long")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="tokenizer.json of the target, for colours by token; found in ./model_repository for a server on the default --url",
    )
    return parser


def options_from(args: argparse.Namespace) -> GenerateOptions:
    """The request's options; what was not given is not sent."""
    return GenerateOptions(
        max_tokens=args.max_tokens,
        min_tokens=args.min_tokens,
        stop_words=tuple(args.stop),
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        exclude_input_in_output=True,
        num_draft_tokens=args.num_draft_tokens,
        drafters=tuple(name for name in args.drafters.split(",") if name),
        deadline_ms=args.deadline_ms,
    )


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 after an error on standard error; Ctrl-C cancels the request and returns 130."""
    args = parser().parse_args(argv)
    if args.prompt in (None, "-"):
        if args.prompt is None and sys.stdin.isatty():
            parser().error("a prompt is needed, as an argument or on standard input")
        args.prompt = sys.stdin.read()
    try:
        with Client(args.url) as client:
            _run(client, args, Console(highlight=False))
    except ServerSideError as error:
        sys.stderr.write(f"\n{error.message}\n" if sys.stdout.isatty() else f"{error.message}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(client: Client, args: argparse.Namespace, console: Console) -> None:
    if not console.is_terminal:
        completion, ttft_s = _plain(client, args)
        if args.stats:
            sys.stderr.write(stats_line(completion, ttft_s) + "\n")
        return
    tokenizer = args.tokenizer or (tokenizer_file(DEFAULT_REPOSITORY) if args.url == DEFAULT_URL else None)
    lengths = token_byte_lengths(tokenizer) if tokenizer else {}
    completion, ttft_s = show(client, args.prompt, options_from(args), console, lengths, stream=args.stream)
    if args.stats:
        console.print(legend(completion.token_sources, client.drafters()))
        console.print(stats_line(completion, ttft_s), style="dim")


def _plain(client: Client, args: argparse.Namespace) -> tuple[Completion, float | None]:
    """Exactly the completion on standard output, for pipes."""
    chunks: list[Chunk] = []
    started = time.perf_counter()
    ttft_s: float | None = None
    with closing(client.stream(args.prompt, options_from(args))) as stream:
        for chunk in stream:
            ttft_s = time.perf_counter() - started if ttft_s is None else ttft_s
            chunks.append(chunk)
            if args.stream:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    completion = join_chunks(chunks, time.perf_counter() - started)
    sys.stdout.write("\n" if args.stream else completion.text + "\n")
    return completion, ttft_s


def show(
    client: Client,
    prompt: str,
    options: GenerateOptions,
    console: Console,
    byte_lengths: Mapping[int, int],
    *,
    stream: bool = True,
) -> tuple[Completion, float | None]:
    """Print a completion in the colours of its drafters; returns it with the client's time to first token (seconds)."""
    console.print(prompt, style="dim", end="", markup=False, soft_wrap=True)
    painter, chunks, started = Painter(byte_lengths), [], time.perf_counter()
    ttft_s: float | None = None
    with closing(client.stream(prompt, options)) as increments:
        for chunk in increments:
            ttft_s = time.perf_counter() - started if ttft_s is None else ttft_s
            chunks.append(chunk)
            if stream:
                console.print(painted(painter.spans(chunk)), end="", soft_wrap=True)
    completion = join_chunks(chunks, time.perf_counter() - started)
    if not stream:
        console.print(painted(span for chunk in chunks for span in painter.spans(chunk)), end="", soft_wrap=True)
    console.print()
    return completion, ttft_s
