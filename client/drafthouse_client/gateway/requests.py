"""The bodies of requests as OpenAI's API has them, with this server's own fields; the OpenAPI description is made from them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from drafthouse_client.gateway.unsupported import describe, without_neutral

INT32_MAX = 2**31 - 1
_MAX_MESSAGES = 1024

Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]

# In the description only: the refusal of another number says more than a validator would.
_NO_ALTERNATIVES = Field(json_schema_extra={"enum": [0]}, description="0 is the chosen tokens' own; alternatives are not supported")

# What is written as another type is a mistake of the client's; NaN and the infinities are no JSON.
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole_numbers(value: object, depth: int = 2) -> object:
    """JSON knows one kind of number: 5.0 is an integer, also in the lists of lists that prompts are."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_whole_numbers(item, depth - 1) for item in value] if isinstance(value, list) and depth else value


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk without choices carries the usage of the whole request."""

    model_config = _STRICT
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationBody(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(**_STRICT, json_schema_extra=describe)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Text | Annotated[list[Text], Field(max_length=32)] | None = None
    seed: Annotated[int, Field(ge=-(10**20), le=10**20, description="Taken modulo 2^64")] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy; OpenAI's default of 1 where it is not given")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    user: Annotated[str, Field(description="Accepted, without effect")] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    ignore_eos: Annotated[bool, Field(description="The text does not end at the model's end token")] | None = None
    num_draft_tokens: Annotated[int, Field(ge=0, le=INT32_MAX, description="Upper bound per round; 0 is no speculation")] | None = None
    drafters: Annotated[list[Text], Field(max_length=64, description="Only these drafters")] | None = None
    priority: Annotated[int, Field(ge=0, le=1_000_000, description="Higher goes first")] | None = None
    deadline_ms: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    provenance: Annotated[bool, Field(description="Each choice says which drafter proposed each of its tokens")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, body: Any) -> Any:  # noqa: ANN401 - any JSON value
        if not isinstance(body, dict):
            return body
        return {name: _whole_numbers(value) for name, value in without_neutral(body).items()}


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), _NO_ALTERNATIVES] | None = None
    echo: bool | None = None


class TextPart(BaseModel):
    """A part of a message; no other kind is supported."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    max_tokens: Count | None = None  # OpenAI's older name
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), _NO_ALTERNATIVES] | None = None
