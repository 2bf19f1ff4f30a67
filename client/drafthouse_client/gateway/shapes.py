"""Chunks as OpenAI's JSON objects: two dialects, completions and chat, each streamed and whole."""

import codecs
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from drafthouse_client.completion import Chunk
from drafthouse_client.gateway.translate import Plan
from drafthouse_client.gateway.vocabulary import Vocabulary

Json = dict[str, Any]


@dataclass(frozen=True)
class Envelope:
    """What all objects of one answer share."""

    request_id: str
    created_s: int
    model: str
    object: str

    def wrap(self, choices: list[Json], usage: Json | None = None, *, with_usage: bool = False) -> Json:
        """An object with these choices; `with_usage` writes a null where there is none, as streams with usage do."""
        whole: Json = {"id": self.request_id, "object": self.object, "created": self.created_s, "model": self.model, "choices": choices}
        return whole | {"usage": usage} if usage is not None or with_usage else whole


@dataclass
class TokenTexts:
    """Where each token of one choice begins in its text, in characters."""

    offset: int = 0
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"))

    def place(self, token: bytes) -> int:
        """The offset of the next token."""
        at = self.offset
        self.offset += len(self._decoder.decode(token))
        return at


class Dialect(Protocol):
    """One of the two APIs. Objects are made for one request, because offsets and first chunks are remembered."""

    def chunk(self, index: int, chunk: Chunk) -> Json | None:
        """The choice that a streamed chunk holds; None when it has nothing to tell."""
        ...

    def whole(self, index: int, chunks: Sequence[Chunk]) -> Json:
        """The choice that these chunks add up to."""
        ...

    @property
    def streamed(self) -> Envelope:
        """Of streamed objects."""
        ...

    @property
    def answer(self) -> Envelope:
        """Of the whole answer."""
        ...


class _Common:
    def __init__(self, plan: Plan, model: str, prefix: str, objects: tuple[str, str], words: "Words") -> None:
        self._plan = plan
        self._words = words
        request_id, created_s = prefix + uuid.uuid4().hex, int(time.time())
        self.streamed = Envelope(request_id, created_s, model, objects[0])
        self.answer = Envelope(request_id, created_s, model, objects[1])

    def _provenance(self, chunks: Sequence[Chunk]) -> Json:
        if not self._plan.provenance:
            return {}
        ids = [token for chunk in chunks for token in chunk.output_ids]
        sources = [self._words.drafter(source) for chunk in chunks for source in chunk.token_sources]
        return {"provenance": {"token_ids": ids, "tokens": self._words.texts(ids), "sources": sources}}

    def _is_silent(self, chunk: Chunk) -> bool:
        """A chunk whose text is still held back, of a request that wants nothing else."""
        return not (chunk.text or chunk.finish_reason or self._plan.log_probs or self._plan.provenance)


@dataclass(frozen=True)
class Words:
    """Names behind numbers: the tokens' texts, where the gateway has the tokenizer, and the drafters'."""

    vocabulary: Vocabulary | None
    drafters: tuple[str, ...] = ()

    def drafter(self, source: int) -> str | None:
        """The name of a drafter; None = the target's own token."""
        return self.drafters[source] if 0 <= source < len(self.drafters) else None

    def texts(self, ids: Sequence[int]) -> list[str] | None:
        """The tokens' texts."""
        return None if self.vocabulary is None else [self.vocabulary.token_text(token) for token in ids]

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the text."""
        return b"" if self.vocabulary is None else self.vocabulary.token_bytes(token)


class CompletionDialect(_Common):
    """`/v1/completions`."""

    def __init__(self, plan: Plan, model: str, words: Words) -> None:
        super().__init__(plan, model, "cmpl-", ("text_completion", "text_completion"), words)
        self._texts = {ask.index: TokenTexts() for ask in plan.asks}

    def chunk(self, index: int, chunk: Chunk) -> Json | None:
        """See `Dialect`."""
        return None if self._is_silent(chunk) else self.whole(index, [chunk])

    def whole(self, index: int, chunks: Sequence[Chunk]) -> Json:
        """See `Dialect`."""
        choice = {
            "index": index,
            "text": "".join(chunk.text for chunk in chunks),
            "logprobs": self._logprobs(index, chunks) if self._plan.log_probs else None,
            "finish_reason": chunks[-1].finish_reason if chunks else None,
        }
        return choice | self._provenance(chunks)

    def _logprobs(self, index: int, chunks: Sequence[Chunk]) -> Json:
        ids = [token for chunk in chunks for token in chunk.output_ids]
        return {
            "tokens": self._words.texts(ids),
            "token_logprobs": [value for chunk in chunks for value in chunk.log_probs],
            "top_logprobs": None,
            "text_offset": [self._texts[index].place(self._words.token_bytes(token)) for token in ids],
        }


class ChatDialect(_Common):
    """`/v1/chat/completions`."""

    def __init__(self, plan: Plan, model: str, words: Words) -> None:
        super().__init__(plan, model, "chatcmpl-", ("chat.completion.chunk", "chat.completion"), words)
        self._begun: set[int] = set()

    def chunk(self, index: int, chunk: Chunk) -> Json | None:
        """See `Dialect`. The first chunk of a choice says whose words they are."""
        if self._is_silent(chunk) and index in self._begun:
            return None
        delta: Json = {} if index in self._begun else {"role": "assistant", "content": ""}
        self._begun.add(index)
        if chunk.text:
            delta["content"] = chunk.text
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs([chunk]), "finish_reason": chunk.finish_reason}
        return choice | self._provenance([chunk])

    def whole(self, index: int, chunks: Sequence[Chunk]) -> Json:
        """See `Dialect`."""
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "refusal": None},
            "logprobs": self._logprobs(chunks),
            "finish_reason": chunks[-1].finish_reason if chunks else None,
        }
        return choice | self._provenance(chunks)

    def _logprobs(self, chunks: Sequence[Chunk]) -> Json | None:
        if not self._plan.log_probs:
            return None
        pairs = [pair for chunk in chunks for pair in zip(chunk.output_ids, chunk.log_probs, strict=True)]
        return {"content": [self._token(token, value) for token, value in pairs], "refusal": None}

    def _token(self, token: int, value: float) -> Json:
        raw = self._words.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": value, "bytes": list(raw), "top_logprobs": []}
