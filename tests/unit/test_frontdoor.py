"""What the front door accepts, what it assumes, and how it refuses."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray

from drafthouse.core.errors import ClientError
from drafthouse.engine.contract import EngineLimits
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import GenerationRequest
from drafthouse.pipeline.fields import INPUT_NAMES
from drafthouse.pipeline.frontdoor import MAX_PRIORITY, FrontDoorContext, parse_request
from drafthouse.pipeline.modes import Mode
from drafthouse.pipeline.tokenizer import FileTokenizer
from drafthouse.sampling.vocabulary import byte_level_alphabet

CONTEXT = 40
DTYPES = {
    "seed": np.uint64,
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "length_penalty"), np.float32),
}


def byte_tokenizer(extra: Sequence[tuple[str, bool]] = (("<|eos|>", True), ("<|tool|>", False))) -> tokenizers.Tokenizer:
    """Ids 0 to 255 are the bytes in order, 256 is ``th``; then the added tokens (text, special)."""
    vocab = {character: byte for character, byte in byte_level_alphabet().items()} | {"th": 256}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("t", "h")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    for text, special in extra:
        tokenizer.add_tokens([tokenizers.AddedToken(text, special=special)])
    return tokenizer


EOS, TOOL = 257, 258


def saved(tokenizer: tokenizers.Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


with tempfile.TemporaryDirectory() as _folder:
    TOKENIZER = FileTokenizer(saved(byte_tokenizer(), Path(_folder)), eos_ids=(EOS, 0))


def context(**changes: object) -> FrontDoorContext:
    limits = EngineLimits(max_step_tokens=8, usable_context=CONTEXT, vocab_size=300, slots=2)
    values: dict[str, Any] = {"limits": limits, "drafter_names": ("code", "math"), "config": PipelineConfig()}
    return FrontDoorContext(TOKENIZER, **(values | changes))


def tensor(name: str, value: object) -> NDArray[Any]:
    """The array that Triton's Python backend hands over for a JSON value (max_batch_size 1)."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if items and isinstance(items[0], str | bytes):
        data = [item.encode() if isinstance(item, str) else item for item in items]
        return np.array(data, dtype=object).reshape(1, -1)
    default = np.bool_ if items and isinstance(items[0], bool) else np.int32
    return np.array(items, dtype=DTYPES.get(name, default)).reshape(1, -1)


def parse(ctx: FrontDoorContext | None = None, parameters: dict[str, object] | None = None, **inputs: object) -> GenerationRequest:
    tensors = {name: tensor(name, value) for name, value in inputs.items() if value is not None}
    return parse_request(tensors, parameters or {}, ctx or context())


def test_a_bare_prompt_gets_the_documented_defaults() -> None:
    before_ns = time.monotonic_ns()
    request = parse(text_input="the x")
    assert request.prompt_ids == (256, ord("e"), ord(" "), ord("x"))
    assert request.max_tokens == CONTEXT - 4  # default_max_tokens, clipped to the context
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p, request.sampling.seed) == (0.0, 0, 1.0, 0)
    assert (request.sampling.end_ids, request.sampling.min_end_position) == ((EOS, 0), 4)
    assert (request.stream, request.echo_text, request.num_draft_tokens, request.drafters, request.priority) == (False, "", None, (), 0)
    assert request.deadline_ns is not None
    assert request.deadline_ns - before_ns >= 120_000_000_000
    assert parse(context(config=PipelineConfig(default_max_tokens=7)), text_input="x").max_tokens == 7


def test_every_field_arrives_where_it_belongs() -> None:
    request = parse(
        text_input="ab", max_tokens=9, min_tokens=3, stop_words=["é", "no", "é"], bad_words=["ü"], end_id=5, pad_id=0, temperature=0.5,
        top_k=7, top_p=0.25, seed=2**64 - 1, stream=True, exclude_input_in_output=False, return_num_input_tokens=True,
        return_num_output_tokens=True, return_log_probs=True, return_finish_reason=True, return_perf_metrics=True, num_draft_tokens=4,
        drafters=["math", "math"], deadline_ms=50, request_priority=0, repetition_penalty=1.0, frequency_penalty=0.0,
        presence_penalty=0.0, length_penalty=1.0, beam_width=1, num_return_sequences=1, guided_decoding_guide_type="",
        guided_decoding_guide="",
    )  # fmt: skip
    sampling = request.sampling
    assert (request.max_tokens, request.min_tokens, request.stop_words, sampling.bad_words) == (9, 3, ("é", "no"), ("ü".encode(),))
    assert (sampling.end_ids, sampling.min_end_position) == ((5,), 5)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 7, 0.25, 2**64 - 1)
    assert (request.stream, request.echo_text, request.num_draft_tokens, request.drafters) == (True, "ab", 4, ("math",))
    assert request.return_num_input_tokens
    assert request.return_num_output_tokens
    assert request.return_log_probs
    assert request.return_finish_reason
    assert request.return_perf_metrics


def test_ids_instead_of_text() -> None:
    request = parse(input_ids=[256, 0xC3, 0xA9, EOS], exclude_input_in_output=False)
    assert request.prompt_ids == (256, 0xC3, 0xA9, EOS)
    assert request.echo_text == "thé"


def test_uids_differ_and_a_missing_seed_is_drawn() -> None:
    ctx = context()
    requests = [parse(ctx, text_input="x", temperature=0.8) for _ in range(4)]
    assert len({request.request_uid for request in requests}) == 4
    assert len({request.sampling.seed for request in requests}) == 4
    assert all(0 <= request.request_uid < 2**64 for request in requests)


def test_end_id_minus_one_never_ends_the_text() -> None:
    assert parse(text_input="x", end_id=-1).sampling.end_ids == ()


def test_priorities_are_numbers_from_0() -> None:
    assert [parse(text_input="x", request_priority=priority).priority for priority in (0, 7, MAX_PRIORITY)] == [0, 7, MAX_PRIORITY]
    assert parse(text_input="x").priority == 0


@pytest.mark.parametrize("temperature", [1e-6, 100.0])
def test_the_limits_of_the_temperature_are_themselves_allowed(temperature: float) -> None:
    assert parse(text_input="x", temperature=temperature).sampling.temperature == float(np.float32(temperature))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scalars_come_in_three_shapes(shape: tuple[int, ...]) -> None:
    tensors = {"text_input": np.array([b"x"], object).reshape(shape), "max_tokens": np.full(shape, 3, np.int32)}
    assert parse_request(tensors, {"triton_trace_id": 1}, context()).max_tokens == 3


BAD: list[tuple[dict[str, object], str]] = [
    ({"text_input": ""}, "INVALID_ARG field=text_input value=''"),
    ({"text_input": None}, "INVALID_ARG field=text_input value='neither' allowed=either text_input or input_ids"),
    ({"input_ids": [1]}, "INVALID_ARG field=text_input value='both'"),
    ({"text_input": None, "input_ids": []}, "field=text_input value='neither'"),
    ({"text_input": None, "input_ids": [1, 259]}, "INVALID_ARG field=input_ids value=259 allowed=0 to 258"),
    ({"text_input": None, "input_ids": [-1]}, "field=input_ids value=-1"),
    ({"text_input": None, "input_ids": [1] * CONTEXT}, f"field=input_ids value='{CONTEXT} tokens' allowed=1 to {CONTEXT - 1} tokens"),
    ({"text_input": "x" * CONTEXT}, f"field=text_input value='{CONTEXT} tokens'"),
    ({"text_input": "x" * 10_000}, "field=text_input value='10000 bytes'"),
    ({"text_input": b"ab\xff\xfe"}, r"INVALID_ARG field=text_input value=b'\xff\xfe' allowed=valid UTF-8"),
    ({"text_input": ["a", "b"]}, "field=text_input value='2 values' allowed=exactly one value"),
    ({"max_tokens": 0}, "INVALID_ARG field=max_tokens value=0 allowed=1 to 39"),
    ({"max_tokens": -5}, "field=max_tokens value=-5"),
    ({"max_tokens": CONTEXT}, f"field=max_tokens value={CONTEXT} allowed=1 to 39 after a prompt of 1 tokens"),
    ({"max_tokens": [1, 2]}, "field=max_tokens value='2 values'"),
    ({"max_tokens": []}, "field=max_tokens value='0 values'"),
    ({"max_tokens": 5, "min_tokens": 6}, "field=min_tokens value=6 allowed=0 to 5"),
    ({"min_tokens": -1}, "field=min_tokens value=-1"),
    ({"temperature": float("nan")}, "field=temperature value=nan allowed=0 (greedy)"),
    ({"temperature": float("inf")}, "field=temperature value=inf"),
    ({"temperature": -0.5}, "field=temperature value=-0.5"),
    ({"temperature": 9.9e-7}, "field=temperature value=9.89"),
    ({"temperature": 100.1}, "allowed=0 (greedy) or 1e-06 to 100"),
    ({"top_p": 0.0}, "field=top_p value=0.0 allowed=above 0, at most 1"),
    ({"top_p": 1.5}, "field=top_p value=1.5"),
    ({"top_p": float("nan")}, "field=top_p value=nan"),
    ({"top_k": -1}, "field=top_k value=-1"),
    ({"end_id": 259}, "field=end_id value=259 allowed=-1 to 258"),
    ({"pad_id": -2}, "field=pad_id value=-2"),
    ({"stop_words": [""]}, "field=stop_words value=''"),
    ({"stop_words": ["ok", "x" * 129]}, "field=stop_words"),
    ({"stop_words": [str(number) for number in range(33)]}, "field=stop_words value='33 words' allowed=at most 32 words"),
    ({"stop_words": [b"\x80"]}, "field=stop_words value=b'\\x80' allowed=valid UTF-8"),
    ({"bad_words": [""]}, "field=bad_words"),
    ({"num_draft_tokens": -1}, "field=num_draft_tokens value=-1 allowed=0 to 16"),
    ({"num_draft_tokens": 17}, "field=num_draft_tokens value=17"),
    ({"drafters": ["maths"]}, "INVALID_ARG field=drafters value='maths' allowed=code, math (mode cosine)"),
    ({"deadline_ms": 0}, "field=deadline_ms value=0 allowed=1 to"),
    ({"request_priority": -1}, "field=request_priority value=-1 allowed=0 to 1000000"),
    ({"request_priority": MAX_PRIORITY + 1}, "field=request_priority value=1000001 allowed=0 to 1000000"),
    ({"repetition_penalty": 1.1}, "UNSUPPORTED field=repetition_penalty"),
    ({"frequency_penalty": 0.5}, "UNSUPPORTED field=frequency_penalty value=0.5 allowed=0.0 (no effect)"),
    ({"presence_penalty": float("nan")}, "UNSUPPORTED field=presence_penalty value=nan"),
    ({"length_penalty": 2.0}, "UNSUPPORTED field=length_penalty value=2.0 allowed=0.0 or 1.0"),
    ({"beam_width": 2}, "UNSUPPORTED field=beam_width value=2 allowed=1"),
    ({"num_return_sequences": 0}, "UNSUPPORTED field=num_return_sequences"),
    ({"guided_decoding_guide_type": "json"}, "UNSUPPORTED field=guided_decoding_guide_type value='json'"),
    ({"guided_decoding_guide": "{}"}, "UNSUPPORTED field=guided_decoding_guide"),
    ({"nonsense_tensor": 1}, "INVALID_ARG field=nonsense_tensor allowed=a known input"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD, ids=[f"{next(iter(inputs))}-{index}" for index, (inputs, _) in enumerate(BAD)])
def test_bad_input_is_refused_by_name(inputs: dict[str, object], message: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse(**({"text_input": "x"} | inputs))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_token", "did you mean max_tokens?"),
        ("temprature", "did you mean temperature?"),
        ("priority", "did you mean request_priority?"),
        ("random_seed", "did you mean seed?"),
        ("prompt", "did you mean text_input?"),
        ("qqqq", "one of text_input, input_ids"),
        ("lora_task_id", "a known input"),
        ("bad\nname", "field=parameters"),
    ],
)
def test_an_unknown_parameter_is_refused_and_the_nearest_input_named(name: str, meant: str) -> None:
    with pytest.raises(ClientError, match="INVALID_ARG") as caught:
        parse(parameters={name: 5}, text_input="x")
    assert meant in str(caught.value)
    assert "value=5" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [("max_tokens", np.array([1.5], np.float32)), ("text_input", np.array([1], np.int32)), ("stream", np.array([1], np.int32))],
)
def test_a_wrong_type_is_refused(name: str, array: NDArray[Any]) -> None:
    with pytest.raises(ClientError, match=f"INVALID_ARG field={name}"):
        parse_request({"text_input": np.array([b"x"], object), name: array}, {}, context())


def test_the_mode_decides_which_drafters_may_be_named() -> None:
    config = PipelineConfig(mode=Mode.TARGET_ONLY)
    with pytest.raises(ClientError, match=r"field=drafters value='code' allowed=none \(mode target_only\)"):
        parse(context(config=config, drafter_names=config.usable_drafters(("code", "math"))), text_input="x", drafters=["code"])


def test_the_input_names_are_nvidias_and_ours() -> None:
    assert len(INPUT_NAMES) == len(set(INPUT_NAMES)) == 31
    assert {"text_input", "seed", "num_draft_tokens", "guided_decoding_guide", "deadline_ms"} <= set(INPUT_NAMES)


def test_token_bytes_spell_the_text() -> None:
    text = "the thé \N{GRINNING FACE}\n\x00"
    ids = TOKENIZER.encode(text)
    assert b"".join(map(TOKENIZER.token_bytes, ids)).decode() == text
    assert (TOKENIZER.token_bytes(EOS), TOKENIZER.token_bytes(TOOL), TOKENIZER.token_bytes(999)) == (b"", b"<|tool|>", b"")
    assert (TOKENIZER.vocab_size, TOKENIZER.max_token_bytes) == (259, 8)
    assert TOKENIZER.encode("<|eos|>") == [EOS]


def test_the_alphabet_is_a_bijection_of_bytes() -> None:
    alphabet = byte_level_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert (alphabet["Ġ"], alphabet["Ċ"], alphabet["A"]) == (0x20, 0x0A, 0x41)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="field=tokenizer"):
        FileTokenizer(tmp_path / "tokenizer.json", ())


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    other = byte_tokenizer()
    other.decoder = tokenizers.decoders.WordPiece()
    other.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    with pytest.raises(ClientError, match=r"UNSUPPORTED field=tokenizer value='?.*WordPiece"):
        FileTokenizer(saved(other, tmp_path), ())
