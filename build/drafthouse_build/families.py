"""The table of model families: what the checkpoints of each architecture do differently from Llama's.

All of them are decoders of one shape: embedding, blocks of attention and a gated feed-forward about a residual stream, a norm, an output
projection. What differs is a handful of options, so a further family is one more entry here (and a tiny configuration of it in
`tests/unit/test_families.py`, which compares it with `transformers`). Whatever is not in the table is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from drafthouse_build.errors import BuildError

BASIC_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Family:
    """Options of one architecture. Where an option may be a text, it names the entry of config.json that decides."""

    models: str  # for people
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    activation_field: str = "hidden_act"
    fused_projections: bool = False  # the checkpoint has qkv_proj and gate_up_proj in one piece each
    query_key_norm: bool = False  # queries and keys are normalised head by head before they are rotated
    norm_offset: float = 0.0  # norms multiply by this plus their weight
    sandwich_norms: bool = False  # a norm also behind attention and behind the feed-forward
    scaled_embeddings: bool = False  # embeddings are multiplied by sqrt(hidden_size)
    query_scalar_field: str = ""  # scores are divided by the root of this entry instead of that of head_dim
    soft_caps: bool = False  # attn_logit_softcapping and final_logit_softcapping
    windows: Literal["none", "all", "by_layer_type"] = "none"  # which layers see only the last sliding_window tokens
    ropes_by_layer_type: bool = False  # rope_parameters has one section per layer type
    unrotated_layers: bool = False  # no_rope_layers
    rope_types: tuple[str, ...] = BASIC_ROPE_TYPES
    partial_rotary: bool = False  # the first partial_rotary_factor of a head's channels may be rotated alone
    required: Mapping[str, tuple[object, ...]] = field(default_factory=dict)  # entries that must have one of these values
    # Entries that a config.json leaves out take the defaults, and older spellings the form, that transformers gives them.
    is_completed: bool = True


_CAUSAL = {"use_bidirectional_attention": (None, False)}

FAMILIES: Mapping[str, Family] = {
    # Read as it is, so that the demo models are built where transformers is not installed.
    "LlamaForCausalLM": Family(
        "Llama 2, Llama 3, SmolLM, SmolLM2",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        is_completed=False,
    ),
    "SmolLM3ForCausalLM": Family(
        "SmolLM3",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        windows="by_layer_type",
        unrotated_layers=True,
    ),
    "MistralForCausalLM": Family("Mistral", windows="all"),
    "Qwen2ForCausalLM": Family("Qwen2, Qwen2.5", qkv_bias=True, windows="by_layer_type"),
    "Qwen3ForCausalLM": Family("Qwen3", qkv_bias="attention_bias", out_bias="attention_bias", query_key_norm=True, windows="by_layer_type"),
    "Gemma2ForCausalLM": Family(
        "Gemma 2",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        activation_field="hidden_activation",
        norm_offset=1.0,
        sandwich_norms=True,
        scaled_embeddings=True,
        query_scalar_field="query_pre_attn_scalar",
        soft_caps=True,
        windows="by_layer_type",
        required=_CAUSAL,
    ),
    "Gemma3ForCausalLM": Family(
        "Gemma 3 (text)",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        activation_field="hidden_activation",
        query_key_norm=True,
        norm_offset=1.0,
        sandwich_norms=True,
        scaled_embeddings=True,
        query_scalar_field="query_pre_attn_scalar",
        soft_caps=True,
        windows="by_layer_type",
        ropes_by_layer_type=True,
        required=_CAUSAL,
    ),
    "Phi3ForCausalLM": Family(
        "Phi-3, Phi-3.5, Phi-4-mini",
        fused_projections=True,
        windows="all",
        rope_types=("default", "longrope"),
        partial_rotary=True,
    ),
}


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The first entry of `architectures` in a config.json, "none" without one."""
    architectures = raw.get("architectures") or ["none"]
    return str(architectures[0])


def family_of(architecture: str) -> Family:
    """The family of an architecture; raises `BuildError` for one that is not in the table."""
    if architecture not in FAMILIES:
        raise BuildError("UNSUPPORTED", "architectures", architecture, FAMILIES)
    return FAMILIES[architecture]
