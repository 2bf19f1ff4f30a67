"""Colours: which words came from which drafter."""

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.text import Text

from drafthouse.core.errors import ClientError, ErrorCode
from drafthouse.sampling.vocabulary import read_token_bytes
from drafthouse_client.completion import TARGET_SOURCE, Chunk, Completion

_COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "bright_red", "bright_green", "bright_cyan")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text that came from one source."""

    text: str
    source: int  # index of a drafter, or TARGET_SOURCE


def colour_of(source: int) -> str:
    """The rich style of a source; the target's own tokens are plain."""
    return "" if source == TARGET_SOURCE else _COLOURS[source % len(_COLOURS)]


def token_byte_lengths(tokenizer_file: Path) -> dict[int, int]:
    """Bytes of text behind each token id of a ``tokenizer.json``; special tokens have none.

    Returns {} for a tokenizer whose tokens do not stand for bytes of their own (see `read_token_bytes`).
    """
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    vocab = content["model"].get("vocab")
    if not isinstance(vocab, dict):
        return {}
    token_ids = {*vocab.values(), *(token["id"] for token in content.get("added_tokens", []))}
    try:
        token_bytes = read_token_bytes(tokenizer_file, max(token_ids, default=-1) + 1)
    except ClientError as error:
        if error.code is not ErrorCode.UNSUPPORTED:
            raise
        return {}
    return {token_id: len(token_bytes[token_id]) for token_id in token_ids}


class Painter:
    """Splits the text of a stream among the sources of its tokens.

    Text lags behind token ids (an incomplete character or a possible stop word is held back), so tokens wait in a
    queue until their bytes arrive. Without ``byte_lengths`` a chunk's text is given to its most frequent source.
    """

    def __init__(self, byte_lengths: Mapping[int, int] | None = None) -> None:
        self._byte_lengths = byte_lengths or {}
        self._pending: deque[tuple[int, int]] = deque()  # (bytes still to come, source), oldest first

    def spans(self, chunk: Chunk) -> list[Span]:
        """The chunk's text, in order, as the longest possible stretches of one source."""
        if not self._byte_lengths:
            return [Span(chunk.text, _most_frequent(chunk.token_sources))] if chunk.text else []
        for token, source in zip(chunk.output_ids, chunk.token_sources, strict=False):
            self._pending.append((self._byte_lengths.get(token, 0), source))
        pairs = [(self._take(len(char.encode())), char) for char in chunk.text]
        return [Span("".join(char for _, char in run), source) for source, run in groupby(pairs, key=lambda pair: pair[0])]

    def _take(self, num_bytes: int) -> int:
        """Consume this many bytes of the queue; returns the source that the first of them belongs to."""
        first: int | None = None
        while num_bytes and self._pending:
            length, source = self._pending.popleft()
            if length and first is None:
                first = source
            used = min(length, num_bytes)
            num_bytes -= used
            if used < length:
                self._pending.appendleft((length - used, source))
        return TARGET_SOURCE if first is None else first


def _most_frequent(sources: Sequence[int]) -> int:
    return Counter(sources).most_common(1)[0][0] if sources else TARGET_SOURCE


def painted(spans: Iterable[Span]) -> Text:
    """The spans as rich text."""
    text = Text()
    for span in spans:
        text.append(span.text, style=colour_of(span.source))
    return text


def _name(source: int, drafters: Sequence[str]) -> str:
    return drafters[source] if 0 <= source < len(drafters) else f"drafter {source}"


def legend(sources: Sequence[int], drafters: Sequence[str]) -> Text:
    """One entry per source that occurs, with its share of the tokens."""
    counts = Counter(sources)
    text = Text("tokens from: ", style="dim")
    for at, source in enumerate(sorted(counts)):
        name = "target" if source == TARGET_SOURCE else _name(source, drafters)
        text.append(" · " if at else "", style="dim")
        text.append(f"{name} {counts[source]}", style=colour_of(source))
    return text


def stats_line(completion: Completion, ttft_s: float | None) -> str:
    """One line of figures; parts the server did not report are left out."""
    return " · ".join(_stats_parts(completion, ttft_s))


def _stats_parts(completion: Completion, ttft_s: float | None) -> Iterator[str]:
    yield f"{completion.num_output_tokens} tokens in {completion.duration_s:.2f} s"
    yield f"{completion.tokens_per_s:.1f} tokens/s"
    if ttft_s is not None:
        yield f"first after {1e3 * ttft_s:.0f} ms"
    if completion.num_verifications:
        yield f"{completion.tokens_per_verification:.2f} tokens per round"
    if completion.perf is not None and completion.perf.total_draft_tokens:
        perf = completion.perf
        yield f"{perf.total_accepted_draft_tokens} of {perf.total_draft_tokens} draft tokens accepted"
    if completion.finish_reason:
        yield f"finished by {completion.finish_reason}"
