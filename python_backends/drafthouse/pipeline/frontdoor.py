"""From the inputs of one Triton request to a `GenerationRequest`, or to an error that says what was wrong.

What a request gets when it does not say:

- `max_tokens`: `default_max_tokens` of the configuration, clipped to what the prompt leaves of the context;
- `temperature` 0 (greedy), `top_k` 0 and `top_p` 1 (no filter), a random `seed` when it samples;
- `exclude_input_in_output` true: streams are appended to what the user sees already, and OpenAI's completions do not
  repeat the prompt either (Triton's OpenAI front end sends this input only for `echo`);
- `end_id`: the model's own end-of-text tokens; -1 = the text never ends by itself;
- `num_draft_tokens`: the server's choice. A number is an upper bound: fewer are drafted where fewer make sense;
- `deadline_ms`: `default_deadline_ms` of the configuration. It counts from arrival, whether the request waits, runs or is preempted;
- `request_priority` 0. From 0 to `MAX_PRIORITY`: under every policy, requests of a higher number go before those of a lower one.

`pad_id` is checked and has no effect, because answers are never padded.
"""

import itertools
import math
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import invalid
from drafthouse.core.sampling_params import NO_TOKEN, SamplingParams
from drafthouse.engine.contract import EngineLimits
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import GenerationRequest
from drafthouse.pipeline.fields import RawInputs, read_inputs
from drafthouse.pipeline.tokenizer import Tokenizer

MAX_WORDS = 32  # stop words, and bad words, per request: every one is looked for after every token
MAX_WORD_BYTES = 128
# Below, logit / temperature overflows float32. The input is float32, in which 1e-6 is a little less than that.
MIN_TEMPERATURE, MAX_TEMPERATURE = float(np.float32(1e-6)), 100.0
MAX_PRIORITY = 1_000_000
UINT64_MAX = 2**64 - 1


def new_uids() -> Iterator[int]:
    """Request uids from a random start, so that an engine never takes a restarted caller's request for an old one."""
    return itertools.count(secrets.randbits(62))


@dataclass(frozen=True, slots=True)
class FrontDoorContext:
    """What a request is judged against."""

    tokenizer: Tokenizer
    limits: EngineLimits  # the target's
    drafter_names: tuple[str, ...]  # those that may work in the configured mode
    config: PipelineConfig
    uids: Iterator[int] = field(default_factory=new_uids)

    @property
    def vocab_size(self) -> int:
        """Ids that both the tokenizer and the target know."""
        return min(self.tokenizer.vocab_size, self.limits.vocab_size)


def parse_request(tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, object], ctx: FrontDoorContext) -> GenerationRequest:
    """Judge one request.

    Args:
        tensors: input name → array as Triton's Python backend gives it (text: object arrays of bytes).
        parameters: the request parameters; keys of the JSON body that name no input arrive here.
        ctx: tokenizer, limits, drafters, configuration.

    Raises:
        ClientError: INVALID_ARG or UNSUPPORTED, naming the field, the value and what is allowed.
    """
    arrival_time_ns, now_ns = time.time_ns(), time.monotonic_ns()
    raw = read_inputs(tensors, parameters)
    prompt_ids, prompt_text = _prompt(raw, ctx)
    max_tokens = _max_tokens(raw, len(prompt_ids), ctx)
    min_tokens = _in_range("min_tokens", raw.min_tokens, 0, max_tokens, default=0)
    return GenerationRequest(
        request_uid=next(ctx.uids),
        prompt_ids=prompt_ids,
        max_tokens=max_tokens,
        sampling=_sampling(raw, _end_ids(raw, ctx), len(prompt_ids) + min_tokens),
        arrival_time_ns=arrival_time_ns,
        min_tokens=min_tokens,
        stop_words=_words("stop_words", raw.stop_words),
        stream=bool(raw.stream),
        num_draft_tokens=_num_draft_tokens(raw, ctx),
        drafters=_drafters(raw, ctx),
        deadline_ns=now_ns + _deadline_ms(raw, ctx) * 1_000_000,
        priority=_in_range("request_priority", raw.request_priority, 0, MAX_PRIORITY, default=0),
        echo_text=prompt_text if raw.exclude_input_in_output is False else "",
        return_log_probs=bool(raw.return_log_probs),
        return_num_input_tokens=bool(raw.return_num_input_tokens),
        return_num_output_tokens=bool(raw.return_num_output_tokens),
        return_finish_reason=bool(raw.return_finish_reason),
        return_perf_metrics=bool(raw.return_perf_metrics),
    )


def _prompt(raw: RawInputs, ctx: FrontDoorContext) -> tuple[tuple[int, ...], str]:
    """Token ids and text of the prompt."""
    if (raw.text_input is None) == (raw.input_ids is None):
        sent = "neither" if raw.text_input is None else "both"
        raise invalid("text_input", sent, "either text_input or input_ids, not empty")
    if raw.text_input is not None:
        return _text_prompt(raw.text_input, ctx), raw.text_input
    ids = raw.input_ids or ()
    _check_prompt_len("input_ids", len(ids), ctx)
    for token_id in ids:
        if not 0 <= token_id < ctx.vocab_size:
            raise invalid("input_ids", token_id, f"0 to {ctx.vocab_size - 1}")
    text = b"".join(ctx.tokenizer.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")
    return ids, text


def _text_prompt(text: str, ctx: FrontDoorContext) -> tuple[int, ...]:
    if not text:
        raise invalid("text_input", text, "text that is not empty")
    num_bytes = len(text.encode())
    # No token is longer than max_token_bytes, so this text cannot fit: refuse it before paying for its tokens.
    if num_bytes > ctx.limits.usable_context * ctx.tokenizer.max_token_bytes:
        raise invalid("text_input", f"{num_bytes} bytes", f"at most {ctx.limits.usable_context - 1} tokens")
    ids = tuple(ctx.tokenizer.encode(text))
    if not ids:
        raise invalid("text_input", text, "text with at least one token")
    _check_prompt_len("text_input", len(ids), ctx)
    return ids


def _check_prompt_len(name: str, prompt_len: int, ctx: FrontDoorContext) -> None:
    longest = ctx.limits.usable_context - 1
    if prompt_len > longest:
        raise invalid(name, f"{prompt_len} tokens", f"1 to {longest} tokens")


def _max_tokens(raw: RawInputs, prompt_len: int, ctx: FrontDoorContext) -> int:
    room = ctx.limits.usable_context - prompt_len
    if raw.max_tokens is None:
        return min(ctx.config.default_max_tokens, room)
    if not 1 <= raw.max_tokens <= room:
        raise invalid("max_tokens", raw.max_tokens, f"1 to {room} after a prompt of {prompt_len} tokens")
    return raw.max_tokens


def _end_ids(raw: RawInputs, ctx: FrontDoorContext) -> tuple[int, ...]:
    """Tokens that end the text: the model's own, or the one that the request names."""
    _in_range("pad_id", raw.pad_id, NO_TOKEN, ctx.vocab_size - 1, default=NO_TOKEN)
    if raw.end_id is None:
        return ctx.tokenizer.eos_ids
    end_id = _in_range("end_id", raw.end_id, NO_TOKEN, ctx.vocab_size - 1, default=NO_TOKEN)
    return () if end_id == NO_TOKEN else (end_id,)


def _sampling(raw: RawInputs, end_ids: tuple[int, ...], min_end_position: int) -> SamplingParams:
    temperature = raw.temperature or 0.0
    if temperature != 0.0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:  # NaN fails both
        raise invalid("temperature", temperature, f"0 (greedy) or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    top_p = 1.0 if raw.top_p is None else raw.top_p
    if not (math.isfinite(top_p) and 0.0 < top_p <= 1.0):
        raise invalid("top_p", top_p, "above 0, at most 1")
    seed = raw.seed
    if seed is None:
        seed = secrets.randbits(64) if temperature > 0.0 else 0
    return SamplingParams(
        temperature=temperature,
        top_k=_in_range("top_k", raw.top_k, 0, 2**31 - 1, default=0),
        top_p=top_p,
        seed=_in_range("seed", seed, 0, UINT64_MAX, default=0),
        end_ids=end_ids,
        min_end_position=min_end_position,
        bad_words=tuple(word.encode() for word in _words("bad_words", raw.bad_words)),
    )


def _words(name: str, words: tuple[str, ...] | None) -> tuple[str, ...]:
    words = words or ()
    if len(words) > MAX_WORDS:
        raise invalid(name, f"{len(words)} words", f"at most {MAX_WORDS} words")
    for word in words:
        if not 1 <= len(word.encode()) <= MAX_WORD_BYTES:
            raise invalid(name, word, f"words of 1 to {MAX_WORD_BYTES} bytes")
    return tuple(dict.fromkeys(words))


def _num_draft_tokens(raw: RawInputs, ctx: FrontDoorContext) -> int | None:
    if raw.num_draft_tokens is None:
        return None
    return _in_range("num_draft_tokens", raw.num_draft_tokens, 0, ctx.config.max_num_draft_tokens, default=0)


def _drafters(raw: RawInputs, ctx: FrontDoorContext) -> tuple[str, ...]:
    for name in raw.drafters or ():
        if name not in ctx.drafter_names:
            names = ", ".join(ctx.drafter_names) or "none"
            raise invalid("drafters", name, f"{names} (mode {ctx.config.mode})")
    return tuple(dict.fromkeys(raw.drafters or ()))


def _deadline_ms(raw: RawInputs, ctx: FrontDoorContext) -> int:
    return _in_range("deadline_ms", raw.deadline_ms, 1, 2**31 - 1, default=ctx.config.default_deadline_ms)


def _in_range(name: str, value: int | None, lowest: int, highest: int, default: int) -> int:
    if value is None:
        return default
    if not lowest <= value <= highest:
        raise invalid(name, value, f"{lowest} to {highest}")
    return value
