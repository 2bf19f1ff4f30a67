"""The part of a Hugging Face `config.json` that a Llama graph is made of, checked while it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drafthouse_build.errors import BuildError

ROPE_TYPES = ("default", "linear", "llama3")
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base, kind of scaling, and the numbers that kind needs (0 where it needs none)."""

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_positions: int = 0


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama model. `num_heads` counts query heads, `num_kv_heads` key/value heads (grouped-query attention)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_positions: int
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise BuildError("INVALID_ARG", "num_key_value_heads", self.num_kv_heads, f"divisors of num_attention_heads={self.num_heads}")
        if self.head_dim % 2:
            raise BuildError("INVALID_ARG", "head_dim", self.head_dim, "even numbers (rotary embedding)")


def parse_llama_config(raw: Mapping[str, Any]) -> LlamaConfig:
    """Reads a Llama `config.json`; raises `BuildError` for a missing field or a feature that the graph does not have."""
    _refuse_unknown_features(raw)
    num_heads = _positive_int(raw, "num_attention_heads")
    hidden_size = _positive_int(raw, "hidden_size")
    return LlamaConfig(
        vocab_size=_positive_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_positive_int(raw, "intermediate_size"),
        num_layers=_positive_int(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_positive_int(raw, "num_key_value_heads", num_heads),
        head_dim=_positive_int(raw, "head_dim", hidden_size // num_heads),
        rms_norm_eps=_positive_float(raw, "rms_norm_eps", 1e-6),
        rope=_parse_rope(raw),
        max_positions=_positive_int(raw, "max_position_embeddings", 2048),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )


def _refuse_unknown_features(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise BuildError("UNSUPPORTED", "hidden_act", activation, "silu")
    quantization = raw.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        raise BuildError("UNSUPPORTED", "quantization_config", method, "unquantised bf16, fp16 or fp32 weights")


def _parse_rope(raw: Mapping[str, Any]) -> RopeConfig:
    """Reads both spellings: `rope_parameters` (transformers ≥ 5) and `rope_theta` with `rope_scaling` (before)."""
    section = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(section, Mapping):
        raise BuildError("INVALID_ARG", "rope_parameters", section, "an object with rope_type and rope_theta")
    rope_type = section.get("rope_type", section.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise BuildError("UNSUPPORTED", "rope_type", rope_type, ROPE_TYPES)
    partial = section.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise BuildError("UNSUPPORTED", "partial_rotary_factor", partial, "1.0")
    theta = _positive_float({"rope_theta": section.get("rope_theta", raw.get("rope_theta"))}, "rope_theta", 10000.0)
    if rope_type == "default":
        return RopeConfig(theta)
    factor = _positive_float(section, "factor")
    if rope_type == "linear":
        return RopeConfig(theta, rope_type, factor)
    _, low, high, _ = (_positive_float(section, key) for key in _LLAMA3_KEYS)
    if high <= low:
        raise BuildError("INVALID_ARG", "high_freq_factor", high, f"above low_freq_factor={low}")
    return RopeConfig(theta, rope_type, factor, low, high, _positive_int(section, "original_max_position_embeddings"))


def _positive_int(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BuildError("INVALID_ARG", key, value, "an integer ≥ 1")
    return value


def _positive_float(raw: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise BuildError("INVALID_ARG", key, value, "a number > 0")
    return float(value)
