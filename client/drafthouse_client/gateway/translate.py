"""From the body of a request to what Triton is asked: one `Ask` per choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from drafthouse.core.errors import invalid, unsupported
from drafthouse_client.completion import GenerateOptions, Prompt
from drafthouse_client.gateway.chat_template import ChatTemplate
from drafthouse_client.gateway.requests import ChatBody, CompletionBody, GenerationBody, Message
from drafthouse_client.gateway.settings import GatewaySettings
from drafthouse_client.gateway.vocabulary import Vocabulary

DEFAULT_MAX_TOKENS = 16  # of /v1/completions, as OpenAI documents it
DEFAULT_TEMPERATURE = 1.0
_NO_END_ID = -1
_UINT64 = 2**64

_SERVER_NAMES = {"stop_words": "stop", "request_priority": "priority", "return_log_probs": "logprobs", "end_id": "ignore_eos"}


@dataclass(frozen=True, slots=True)
class Ask:
    """One stream: what choice `index` of the answer is made of."""

    index: int
    prompt: Prompt
    options: GenerateOptions


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole request.

    Attributes:
        server_names: the server's input names → the request's parameters, for its refusals.
        num_per_prompt: choices of one prompt.
    """

    asks: tuple[Ask, ...]
    server_names: Mapping[str, str]
    num_per_prompt: int
    stream: bool
    include_usage: bool
    log_probs: bool
    provenance: bool


class Translator:
    """Knows what the gateway was told and the target's tokenizer. Its methods raise ClientError naming the parameter."""

    def __init__(self, settings: GatewaySettings, vocabulary: Vocabulary | None, template: ChatTemplate) -> None:
        self._settings = settings
        self._vocabulary = vocabulary
        self._template = template

    async def completion(self, body: CompletionBody) -> Plan:
        """Of `/v1/completions`."""
        if body.logprobs:
            raise unsupported("logprobs", body.logprobs, "0: of the chosen tokens, without alternatives")
        log_probs = body.logprobs is not None
        if log_probs and body.echo:
            raise unsupported("echo", True, "false where logprobs is given: a prompt has no log probabilities here")
        options = replace(
            self._options(body, log_probs=log_probs),
            max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
            exclude_input_in_output=not body.echo,
        )
        return self._plan(body, _prompts(body), options, {"text_input": "prompt", "input_ids": "prompt"})

    async def chat(self, body: ChatBody) -> Plan:
        """Of `/v1/chat/completions`."""
        if body.top_logprobs:
            raise unsupported("top_logprobs", body.top_logprobs, "0: of the chosen tokens, without alternatives")
        limits = {name: getattr(body, name) for name in ("max_completion_tokens", "max_tokens")}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(set(given.values())) > 1:
            raise invalid("max_tokens", given["max_tokens"], "the same as max_completion_tokens, or only one of them")
        options = replace(
            self._options(body, log_probs=bool(body.logprobs)), max_tokens=next(iter(given.values()), None), exclude_input_in_output=True
        )
        names = {"text_input": "messages", "input_ids": "messages", "max_tokens": next(iter(given), "max_completion_tokens")}
        return self._plan(body, (await self._rendered(body.messages),), options, names)

    async def _rendered(self, messages: Sequence[Message]) -> Prompt:
        text = self._template.render([_as_template_sees(message) for message in messages])
        if self._vocabulary is None or self._template.is_default:
            return text
        return await self._vocabulary.encode_rendered(text)

    def _options(self, body: GenerationBody, *, log_probs: bool) -> GenerateOptions:
        if log_probs and self._vocabulary is None:
            raise unsupported("logprobs", True, "none: this gateway was started without the target's tokenizer (--tokenizer)")
        return GenerateOptions(
            min_tokens=body.min_tokens,
            stop_words=_stop_words(body.stop),
            end_id=_NO_END_ID if body.ignore_eos else None,
            temperature=DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            return_log_probs=log_probs,
            num_draft_tokens=body.num_draft_tokens,
            drafters=tuple(body.drafters or ()),
            deadline_ms=body.deadline_ms,
            request_priority=body.priority,
            timeout_s=self._settings.timeout_s,
        )

    def _plan(self, body: GenerationBody, prompts: Sequence[Prompt], options: GenerateOptions, names: Mapping[str, str]) -> Plan:
        n, most = body.n or 1, self._settings.max_choices
        if n * len(prompts) > most:
            name, value = ("n", n) if len(prompts) == 1 else ("prompt", len(prompts))
            raise invalid(name, value, f"at most {most} choices (prompts × n) in one request")
        if body.stream_options is not None and not body.stream:
            raise invalid("stream_options", None, "null where stream is not true")
        seeds = [None if body.seed is None else choice_seed(body.seed, index) for index in range(n)]
        each = [(prompt, replace(options, seed=seed)) for prompt in prompts for seed in seeds]
        return Plan(
            asks=tuple(Ask(index, prompt, own) for index, (prompt, own) in enumerate(each)),
            server_names={**_SERVER_NAMES, **names},
            num_per_prompt=n,
            stream=bool(body.stream),
            include_usage=bool(body.stream_options and body.stream_options.include_usage),
            log_probs=options.return_log_probs,
            provenance=bool(body.provenance),
        )


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of several choices: the first has the request's own, so that it is the text that `n` = 1 gives."""
    if index == 0:
        return seed % _UINT64
    return int.from_bytes(blake2b(f"{seed}:{index}".encode(), digest_size=8).digest())


def _prompts(body: CompletionBody) -> tuple[Prompt, ...]:
    """A prompt is a text or a list of ids; several are a list of either."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(item for item in prompt if isinstance(item, int)),)
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt if not isinstance(item, int))


def _stop_words(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _as_template_sees(message: Message) -> dict[str, str]:
    """`developer` is OpenAI's newer word for `system`, which templates know; parts of a text are joined."""
    content = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    seen = {"role": "system" if message.role == "developer" else message.role, "content": content}
    return seen | ({"name": message.name} if message.name is not None else {})
