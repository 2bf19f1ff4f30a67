"""Reading checkpoint folders: every weight format gives the same numbers, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.config import parse_config
from drafthouse_build.engine import EngineOptions, check_model
from drafthouse_build.errors import BuildError
from drafthouse_build.rope import inverse_frequencies
from fakes.tiny_llama import random_weights, tiny_config, tiny_tokenizer, write_checkpoint

OPTIONS = EngineOptions(context_len=64, max_step_tokens=16)


@pytest.mark.parametrize(("dtype", "num_shards"), [("float32", 1), ("float16", 1), ("bfloat16", 1), ("bfloat16", 3)])
def test_weights_of_every_format_arrive_as_float32(tmp_path: Path, dtype: str, num_shards: int) -> None:
    expected = random_weights(tiny_config())
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, dtype=dtype, num_shards=num_shards))
    assert set(checkpoint.weights) == set(expected)
    assert {name: checkpoint.weights[name].shape for name in checkpoint.weights} == checkpoint.weights.shapes
    stored = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    for name, tensor in expected.items():
        assert checkpoint.weights[name].dtype == np.float32
        np.testing.assert_array_equal(checkpoint.weights[name], tensor.astype(stored).astype(np.float32))


def test_digest_depends_on_the_weights_alone(tmp_path: Path) -> None:
    digests = [load_checkpoint(write_checkpoint(tmp_path / str(index), seed=seed)).weights_sha256 for index, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(0, None, (0,)), (0, 7, (7,)), (0, [7, 9], (7, 9)), (None, None, ()), (None, 0, (0,))],
)
def test_end_of_sequence_ids_follow_generation_config(
    tmp_path: Path, in_config: object, in_generation: object, expected: tuple[int, ...]
) -> None:
    write_checkpoint(tmp_path, tiny_config(eos_token_id=in_config))
    if in_generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert load_checkpoint(tmp_path).eos_token_ids == expected


def test_both_spellings_of_rope_scaling_mean_the_same() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    newer = parse_config(tiny_config(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3}))
    older = parse_config(tiny_config(rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "llama3", **llama3}))
    assert newer == older


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    plain = inverse_frequencies(parse_config(tiny_config()).ropes[0], 16)
    scaled = inverse_frequencies(
        parse_config(tiny_config(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, **llama3})).ropes[0], 16
    )
    turns = 64 * plain / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "UNSUPPORTED field=architectures value=GPT2LMHeadModel allowed=LlamaForCausalLM"),
        ({"architectures": None}, "UNSUPPORTED field=architectures value=none allowed=LlamaForCausalLM"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "UNSUPPORTED field=rope_type value=yarn allowed=default, linear, llama3",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "INVALID_ARG field=factor value=None allowed=a number > 0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "UNSUPPORTED field=partial_rotary_factor value=0.5 allowed=1.0"),
        ({"hidden_act": "gelu"}, "UNSUPPORTED field=hidden_act value=gelu allowed=silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "UNSUPPORTED field=quantization_config value=gptq allowed=unquantised"),
        ({"num_hidden_layers": "three"}, "INVALID_ARG field=num_hidden_layers value=three allowed=an integer ≥ 1"),
        ({"vocab_size": None}, "INVALID_ARG field=vocab_size value=None allowed=an integer ≥ 1"),
        ({"num_key_value_heads": 4}, "INVALID_ARG field=num_key_value_heads value=4 allowed=divisors of num_attention_heads=6"),
        ({"max_position_embeddings": 32}, "INVALID_ARG field=context_len value=64 allowed=up to max_position_embeddings=32"),
        ({"num_hidden_layers": 4}, "INVALID_ARG field=weights value=model.layers.3.input_layernorm.weight missing"),
        ({"num_hidden_layers": 2}, "UNSUPPORTED field=weights value=model.layers.2.input_layernorm.weight"),
        ({"intermediate_size": 64}, "INVALID_ARG field=model.layers.0.mlp.gate_proj.weight value=[112, 48] allowed=[64, 48]"),
        ({"attention_bias": True}, "INVALID_ARG field=weights value=model.layers.0.self_attn.q_proj.bias missing"),
        ({"tie_word_embeddings": False}, "INVALID_ARG field=weights value=lm_head.weight missing"),
        ({"eos_token_id": 500}, "INVALID_ARG field=tokenizer value=id 500 allowed=ids below vocab_size=96"),
        ({"eos_token_id": "end"}, "INVALID_ARG field=eos_token_id value=end allowed=a token id or a list of token ids"),
    ],
)
def test_unusable_configuration_is_named(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    folder = write_checkpoint(tmp_path, weights=random_weights(tiny_config()))
    (folder / "config.json").write_text(json.dumps(tiny_config(**overrides)))
    with pytest.raises(BuildError) as error:
        check_model(load_checkpoint(folder), OPTIONS)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(BuildError, match=f"^INVALID_ARG field=.*value={folder / missing} allowed="):
        check_model(load_checkpoint(folder), OPTIONS)


def test_missing_folder_and_missing_shard_are_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=checkpoint value=.*nowhere allowed=an existing folder"):
        load_checkpoint(tmp_path / "nowhere")
    folder = write_checkpoint(tmp_path / "sharded", num_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=weights value=.*model-00002-of-00002.safetensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "field"), [("config.json", "checkpoint"), ("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")]
)
def test_damaged_file_is_named(tmp_path: Path, file: str, field: str) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / file).write_bytes(b"{damaged")
    with pytest.raises(BuildError, match=f"^INVALID_ARG field={field} value={folder / file}"):
        check_model(load_checkpoint(folder), OPTIONS)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tokenizer=tiny_tokenizer())
    save_file({"model.norm.weight": np.zeros(48, np.int8)}, folder / "model.safetensors")
    with pytest.raises(BuildError, match=r"^UNSUPPORTED field=dtype of model\.norm\.weight value=int8 allowed=float32"):
        load_checkpoint(folder).weights["model.norm.weight"]
