"""A completion as a sequence of typed events that say which drafter is behind each token."""

import time
from dataclasses import dataclass

from drafthouse_client.completion import Chunk, Completion, join_chunks


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer.

    Attributes:
        drafter: who proposed it; None for the target's own.
        log_prob: natural logarithm of its probability, where `return_log_probs` was asked for.
    """

    id: int
    drafter: str | None
    log_prob: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one verification added. `text` may lag behind the tokens while a character or a possible stop word is incomplete."""

    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event, with everything that came before."""

    completion: Completion


Event = Tokens | Finished


class EventMaker:
    """Makes the events of one request, which is sent now, from its chunks.

    Attributes:
        drafters: their names, in the order that `Chunk.token_sources` counts them; to be set before the first chunk.
    """

    def __init__(self) -> None:
        self.drafters: tuple[str, ...] | None = None
        self._chunks: list[Chunk] = []
        self._started_s = time.perf_counter()

    def tokens(self, chunk: Chunk) -> Tokens:
        """The event of a chunk."""
        self._chunks.append(chunk)
        log_probs = chunk.log_probs or (None,) * len(chunk.output_ids)
        rows = zip(chunk.output_ids, chunk.token_sources, log_probs, strict=True)
        return Tokens(chunk.text, tuple(Token(token, self._name(source), log_prob) for token, source, log_prob in rows))

    def finished(self) -> Finished:
        """The event after the last chunk."""
        return Finished(join_chunks(self._chunks, time.perf_counter() - self._started_s))

    def _name(self, source: int) -> str | None:
        return self.drafters[source] if self.drafters is not None and source >= 0 else None
