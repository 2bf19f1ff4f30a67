"""The part of a Hugging Face `config.json` that a graph is made of, checked while it is read by the options of its family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drafthouse_build.errors import BuildError
from drafthouse_build.families import Family, architecture_of, family_of
from drafthouse_build.rope_config import RopeConfig, parse_ropes
from drafthouse_build.values import positive_float, positive_int

Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What one block's attention does. Blocks of most families are alike."""

    window: int = 0  # tokens that are seen, the token itself among them; 0 = all before it
    rope: int | None = 0  # which of the configuration's ropes; None = queries and keys are not rotated


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. `num_heads` counts query heads, `num_kv_heads` key/value heads (grouped-query attention)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[LayerConfig, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    ropes: tuple[RopeConfig, ...]
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    fused_projections: bool = False
    query_key_norm: bool = False
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0  # factor of the scores; 0 = one over the root of head_dim
    attention_softcap: float = 0.0  # 0 = none
    logit_softcap: float = 0.0  # 0 = none

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise BuildError("INVALID_ARG", "num_key_value_heads", self.num_kv_heads, f"divisors of num_attention_heads={self.num_heads}")
        if self.head_dim % 2:
            raise BuildError("INVALID_ARG", "head_dim", self.head_dim, "even numbers (rotary embedding)")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def check_context(self, context_len: int, max_step_tokens: int) -> None:
        """Raises `BuildError` when no graph with so many cache rows, and calls of so many tokens per row, would be right."""
        if context_len > self.max_positions:
            raise BuildError("INVALID_ARG", "context_len", context_len, f"up to max_position_embeddings={self.max_positions}")
        for rope in self.ropes:
            # Beyond it the model turns all its angles round, also those of the keys that are cached already.
            if rope.rope_type == "longrope" and context_len > rope.original_max_positions:
                allowed = f"up to original_max_position_embeddings={rope.original_max_positions} with rope_type=longrope"
                raise BuildError("UNSUPPORTED", "context_len", context_len, allowed)
        for window in sorted({layer.window for layer in self.layers if 0 < layer.window < context_len}):
            # The graph takes a draft node's cache row for its position; that is only right while all of a tree is inside the window.
            if max_step_tokens > window:
                raise BuildError("INVALID_ARG", "max_step_tokens", max_step_tokens, f"up to sliding_window={window}")


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Reads a `config.json`; raises `BuildError` for an architecture, a missing entry or a feature that the graph does not have."""
    family = family_of(architecture_of(raw))
    _refuse_unknown_features(raw, family)
    num_heads = positive_int(raw, "num_attention_heads")
    hidden_size = positive_int(raw, "hidden_size")
    head_dim = positive_int(raw, "head_dim", hidden_size // num_heads)
    scalar = positive_float(raw, family.query_scalar_field) if family.query_scalar_field else 0.0
    return ModelConfig(
        vocab_size=positive_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=positive_int(raw, "intermediate_size"),
        layers=_parse_layers(raw, family),
        num_heads=num_heads,
        num_kv_heads=positive_int(raw, "num_key_value_heads", num_heads),
        head_dim=head_dim,
        rms_norm_eps=positive_float(raw, "rms_norm_eps", 1e-6),
        ropes=parse_ropes(raw, family, head_dim),
        max_positions=positive_int(raw, "max_position_embeddings", 2048),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=_option(raw, family.qkv_bias),
        out_bias=_option(raw, family.out_bias),
        mlp_bias=_option(raw, family.mlp_bias),
        activation=_ACTIVATIONS[raw.get(family.activation_field) or "silu"],
        fused_projections=family.fused_projections,
        query_key_norm=family.query_key_norm,
        norm_offset=family.norm_offset,
        sandwich_norms=family.sandwich_norms,
        embedding_scale=math.sqrt(hidden_size) if family.scaled_embeddings else 1.0,
        attention_scale=scalar**-0.5 if scalar else 0.0,
        attention_softcap=_soft_cap(raw, family, "attn_logit_softcapping"),
        logit_softcap=_soft_cap(raw, family, "final_logit_softcapping"),
    )


def _refuse_unknown_features(raw: Mapping[str, Any], family: Family) -> None:
    activation = raw.get(family.activation_field) or "silu"
    if activation not in _ACTIVATIONS:
        raise BuildError("UNSUPPORTED", family.activation_field, activation, _ACTIVATIONS)
    quantization = raw.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        raise BuildError("UNSUPPORTED", "quantization_config", method, "unquantised bf16, fp16 or fp32 weights")
    for name, allowed in family.required.items():
        if raw.get(name) not in allowed:
            raise BuildError("UNSUPPORTED", name, raw.get(name), map(str, allowed))


def _option(raw: Mapping[str, Any], option: bool | str) -> bool:
    return bool(raw.get(option, False)) if isinstance(option, str) else option


def _soft_cap(raw: Mapping[str, Any], family: Family, name: str) -> float:
    return positive_float(raw, name) if family.soft_caps and raw.get(name) is not None else 0.0


def _parse_layers(raw: Mapping[str, Any], family: Family) -> tuple[LayerConfig, ...]:
    num_layers = positive_int(raw, "num_hidden_layers")
    types = _by_layer(raw, "layer_types", num_layers, "full_attention", _LAYER_TYPES) if family.windows == "by_layer_type" else None
    is_rotated = _by_layer(raw, "no_rope_layers", num_layers, 1, (0, 1)) if family.unrotated_layers else [1] * num_layers
    layers = []
    for layer in range(num_layers):
        is_sliding = family.windows == "all" or (types is not None and types[layer] == "sliding_attention")
        # Mistral and Phi-3 without a window say null; a layer that slides must have one.
        window = positive_int(raw, "sliding_window") if is_sliding and (types or raw.get("sliding_window") is not None) else 0
        rope = 1 if family.ropes_by_layer_type and is_sliding else 0
        layers.append(LayerConfig(window, rope if is_rotated[layer] else None))
    return tuple(layers)


def _by_layer(raw: Mapping[str, Any], name: str, num_layers: int, default: object, allowed: Sequence[object]) -> list[object]:
    """A list with one entry per layer; `default` for all where there is none."""
    values = raw.get(name)
    if values is None:
        return [default] * num_layers
    if not isinstance(values, list) or len(values) != num_layers:
        raise BuildError("INVALID_ARG", name, values, f"a list of num_hidden_layers={num_layers} entries")
    for value in values:
        if value not in allowed:
            raise BuildError("UNSUPPORTED", name, value, map(str, allowed))
    return values
