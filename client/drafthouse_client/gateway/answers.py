"""The shapes of answers, for the OpenAPI description; the answers themselves are plain dictionaries, made in `shapes`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Tally = Annotated[int, Field(ge=0)]
FinishReason = Literal["stop", "length"]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TokensDetails(_Answer):
    """How many of the drafters' proposals the target took; rejected ones are not part of `completion_tokens`."""

    accepted_prediction_tokens: Tally
    rejected_prediction_tokens: Tally


class Usage(_Answer):
    """Tokens of all choices; a prompt counts once however many choices it has."""

    prompt_tokens: Tally
    completion_tokens: Tally
    total_tokens: Tally
    completion_tokens_details: TokensDetails


class Provenance(_Answer):
    """Per token: its id, its text, and the drafter that proposed it; null is the target's own."""

    token_ids: list[int]
    tokens: list[str] | None
    sources: list[str | None]


class CompletionLogprobs(_Answer):
    """Of the chosen tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None
    text_offset: list[int]


class CompletionChoice(_Answer):
    """One text."""

    index: Tally
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    provenance: Provenance | None = None


class CompletionAnswer(_Answer):
    """Of `/v1/completions`; streamed chunks have the same shape."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TokenLogprob(_Answer):
    """Of one chosen token; `bytes` where a token is only a part of a character."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any]


class ChatLogprobs(_Answer):
    """Of the chosen tokens."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(_Answer):
    """The assistant's."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    """One text."""

    index: Tally
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    provenance: Provenance | None = None


class ChatAnswer(_Answer):
    """Of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(_Answer):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Answer):
    """One increment of one text."""

    index: Tally
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    provenance: Provenance | None = None


class ChatChunk(_Answer):
    """A streamed chunk."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Model(_Answer):
    """The one model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Answer):
    """Of `/v1/models`."""

    object: Literal["list"]
    data: list[Model]


class Health(_Answer):
    """Of `/health` and `/ready`."""

    status: Literal["ok", "unavailable"]


class ErrorDetails(_Answer):
    """`message` reads `CODE field=… value=… allowed=…`; `param` is the parameter it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    """OpenAI's shape of every error."""

    error: ErrorDetails
