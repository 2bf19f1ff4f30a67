"""What a family's config.json may say: hub files in their own spelling, and refusals that name the entry."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.config import LayerConfig, ModelConfig, parse_config
from drafthouse_build.engine import EngineOptions, check_model
from drafthouse_build.errors import BuildError
from drafthouse_build.families import FAMILIES
from fakes.tiny_llama import tiny_config, write_checkpoint

SIZES = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6}
SLIDING, FULL = "sliding_attention", "full_attention"
# As published, in the spelling of the library that wrote each, cut down to what decides something.
HUB_FILES: dict[str, dict[str, Any]] = {
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "phi-3-mini-128k": {
        "architectures": ["Phi3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "model_type": "phi3",
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.05] * 48, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "vocab_size": 32064,
    },
    "mistral-7b-v0.3": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32768,
    },
    "smollm3-3b": {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 65536,
        "no_rope_layer_interval": 4,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
}


def parse_file(folder: Path, raw: dict[str, Any]) -> ModelConfig:
    """The configuration of a checkpoint folder with this config.json (and weights that do not fit it)."""
    write_checkpoint(folder, tiny_config())
    (folder / "config.json").write_text(json.dumps(raw))
    return parse_config(load_checkpoint(folder).raw_config)


@pytest.mark.torch
def test_hub_files_mean_what_they_meant(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the train extra")
    models = {name: parse_file(tmp_path / name, raw) for name, raw in HUB_FILES.items()}
    gemma3, gemma2, qwen = models["gemma-3-1b"], models["gemma-2-2b"], models["qwen2.5-0.5b"]
    assert [layer.window for layer in gemma3.layers[:7]] == [512] * 5 + [0, 512]
    assert [gemma3.ropes[layer.rope or 0].theta for layer in gemma3.layers[4:7]] == [10_000, 1_000_000, 10_000]
    assert (gemma3.tied_embeddings, gemma3.query_key_norm, gemma3.norm_offset, gemma3.sandwich_norms) == (True, True, 1, True)
    assert (gemma3.embedding_scale, gemma3.attention_scale, gemma3.activation) == (math.sqrt(1152), 1 / 16, "gelu_tanh")
    assert (gemma3.attention_softcap, gemma3.logit_softcap) == (0, 0)
    assert [layer.window for layer in gemma2.layers[:3]] == [4096, 0, 4096]
    assert (gemma2.attention_softcap, gemma2.logit_softcap, gemma2.query_key_norm) == (50, 30, False)
    assert (qwen.qkv_bias, qwen.out_bias, qwen.tied_embeddings, qwen.head_dim, set(qwen.layers)) == (True, False, True, 64, {LayerConfig()})
    phi, mistral, smollm = models["phi-3-mini-128k"], models["mistral-7b-v0.3"], models["smollm3-3b"]
    assert phi.fused_projections
    assert (phi.ropes[0].divisors, phi.ropes[0].original_max_positions) == ((1.05,) * 48, 4096)
    assert math.isclose(phi.ropes[0].amplitude, math.sqrt(1 + math.log(32) / math.log(4096)))
    assert (set(mistral.layers), mistral.ropes[0].theta, mistral.head_dim) == ({LayerConfig()}, 1_000_000, 128)
    assert [layer.rope for layer in smollm.layers[:5]] == [0, 0, 0, None, 0]
    assert (smollm.tied_embeddings, smollm.ropes[0].theta) == (True, 5_000_000)


@pytest.mark.torch
def test_what_transformers_cannot_read_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the train extra")
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=config.json value=.* allowed=what transformers reads for it: "):
        parse_file(tmp_path, {**HUB_FILES["gemma-2-2b"], "num_attention_heads": 7})


def test_a_family_that_needs_transformers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BuildError, match=r"^UNAVAILABLE field=transformers value=not installed allowed=.*Qwen2ForCausalLM"):
        parse_file(tmp_path, HUB_FILES["qwen2.5-0.5b"])


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Gemma3ForConditionalGeneration", "Qwen3MoeForCausalLM", "none"])
def test_other_architectures_are_refused_with_the_list_of_those_there_are(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(BuildError) as error:
        parse_file(tmp_path, {**SIZES, "architectures": [] if architecture == "none" else [architecture]})
    assert str(error.value) == f"UNSUPPORTED field=architectures value={architecture} allowed={', '.join(FAMILIES)}"


@pytest.mark.parametrize(
    ("architecture", "entries", "message"),
    [
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "UNSUPPORTED field=use_bidirectional_attention value=True allowed="),
        ("Gemma2ForCausalLM", {"hidden_activation": "relu"}, "UNSUPPORTED field=hidden_activation value=relu allowed=silu, gelu_pytorch"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": -1}, "INVALID_ARG field=attn_logit_softcapping value=-1 allowed=a number > 0"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": None}, "INVALID_ARG field=query_pre_attn_scalar value=None allowed=a number > 0"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"rope_type": "default"}}, "INVALID_ARG field=rope_parameters value="),
        (
            "Qwen2ForCausalLM",
            {"layer_types": [FULL, "chunked_attention"]},
            "UNSUPPORTED field=layer_types value=chunked_attention",
        ),
        (
            "Qwen2ForCausalLM",
            {"layer_types": [FULL]},
            "INVALID_ARG field=layer_types value=['full_attention'] allowed=a list of",
        ),
        (
            "Qwen2ForCausalLM",
            {"layer_types": [FULL, SLIDING], "sliding_window": None},
            "INVALID_ARG field=sliding_window value=None",
        ),
        ("Qwen2ForCausalLM", {"rope_parameters": {"rope_type": "yarn"}}, "UNSUPPORTED field=rope_type value=yarn allowed=default, linear"),
        ("Qwen3ForCausalLM", {"partial_rotary_factor": 0.5}, "UNSUPPORTED field=partial_rotary_factor value=0.5 allowed=1.0"),
        ("MistralForCausalLM", {"sliding_window": 0}, "INVALID_ARG field=sliding_window value=0 allowed=an integer ≥ 1"),
        (
            "Phi3ForCausalLM",
            {"rope_parameters": {"rope_type": "linear"}},
            "UNSUPPORTED field=rope_type value=linear allowed=default, ",
        ),
        (
            "Phi3ForCausalLM",
            {"rope_parameters": {"rope_type": "longrope"}},
            "INVALID_ARG field=original_max_position_embeddings",
        ),
        (
            "Phi3ForCausalLM",
            {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0]}},
            "INVALID_ARG field=short_factor value=[1.0] allowed=4 numbers",
        ),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 2]}, "UNSUPPORTED field=no_rope_layers value=2 allowed=0, 1"),
    ],
)
def test_options_that_no_graph_has_are_refused_by_name(architecture: str, entries: dict[str, Any], message: str) -> None:
    raw = {**SIZES, "query_pre_attn_scalar": 8, "architectures": [architecture], **entries}
    with pytest.raises(BuildError) as error:
        parse_config(raw)
    assert str(error.value).startswith(message)


def test_calls_and_caches_must_fit_window_and_rope() -> None:
    mistral = parse_config({**SIZES, "architectures": ["MistralForCausalLM"], "sliding_window": 32})
    mistral.check_context(64, 32)
    mistral.check_context(32, 31)
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=max_step_tokens value=33 allowed=up to sliding_window=32"):
        mistral.check_context(64, 33)
    section = {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0] * 4}
    phi = parse_config({**SIZES, "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 128, "rope_parameters": section})
    phi.check_context(64, 16)
    with pytest.raises(BuildError, match=r"^UNSUPPORTED field=context_len value=65 allowed=up to original_max_position_embeddings=64"):
        phi.check_context(65, 16)


def test_expansion_is_for_llama_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(attention_bias=True))
    with pytest.raises(BuildError, match=r"^UNSUPPORTED field=qkv_bias value=True allowed=False with expand_target"):
        check_model(load_checkpoint(tmp_path), EngineOptions(context_len=64, max_step_tokens=16, expand_to=10**6))
