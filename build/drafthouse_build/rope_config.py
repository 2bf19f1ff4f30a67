"""Rotary embedding as a config.json describes it, in both spellings: `rope_parameters`, and `rope_theta` with `rope_scaling` before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drafthouse_build.errors import BuildError
from drafthouse_build.families import Family
from drafthouse_build.values import positive_float, positive_int

_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class RopeConfig:
    """Base, kind of scaling, and the numbers that kind needs (0 or empty where it needs none)."""

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_positions: int = 0
    rotary_dim: int = 0  # channels of a head that are rotated; 0 = all
    divisors: tuple[float, ...] = ()  # of the frequencies, one per pair of channels
    amplitude: float = 1.0  # of cosines and sines


def parse_ropes(raw: Mapping[str, Any], family: Family, head_dim: int) -> tuple[RopeConfig, ...]:
    """The model's ropes: one, or that of full attention and that of sliding attention."""
    section = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(section, Mapping):
        raise BuildError("INVALID_ARG", "rope_parameters", section, "an object with rope_type and rope_theta")
    if not family.ropes_by_layer_type:
        return (_parse_rope(raw, section, family, head_dim),)
    sections = [section.get(name) for name in ("full_attention", "sliding_attention")]
    if not all(isinstance(part, Mapping) for part in sections):
        raise BuildError("INVALID_ARG", "rope_parameters", section, "an object with full_attention and sliding_attention")
    return tuple(_parse_rope(raw, part, family, head_dim) for part in sections if part is not None)


def _parse_rope(raw: Mapping[str, Any], section: Mapping[str, Any], family: Family, head_dim: int) -> RopeConfig:
    rope_type = section.get("rope_type", section.get("type", "default"))
    if rope_type not in family.rope_types:
        raise BuildError("UNSUPPORTED", "rope_type", rope_type, family.rope_types)
    theta = positive_float({"rope_theta": section.get("rope_theta", raw.get("rope_theta"))}, "rope_theta", _DEFAULT_THETA)
    rotary_dim = _rotary_dim(raw, section, family, head_dim)
    if rope_type == "default":
        return RopeConfig(theta, rotary_dim=rotary_dim)
    if rope_type == "linear":
        return RopeConfig(theta, rope_type, positive_float(section, "factor"), rotary_dim=rotary_dim)
    if rope_type == "longrope":
        return _parse_longrope(raw, section, theta, rotary_dim or head_dim)
    factor, low, high, _ = (positive_float(section, key) for key in _LLAMA3_KEYS)
    if high <= low:
        raise BuildError("INVALID_ARG", "high_freq_factor", high, f"above low_freq_factor={low}")
    original = positive_int(section, "original_max_position_embeddings")
    return RopeConfig(theta, rope_type, factor, low, high, original, rotary_dim)


def _rotary_dim(raw: Mapping[str, Any], section: Mapping[str, Any], family: Family, head_dim: int) -> int:
    share = section.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if share in (None, 1.0):
        return 0
    if not family.partial_rotary:
        raise BuildError("UNSUPPORTED", "partial_rotary_factor", share, "1.0")
    rotary_dim = int(head_dim * positive_float({"partial_rotary_factor": share}, "partial_rotary_factor"))
    if rotary_dim % 2 or not 0 < rotary_dim < head_dim:
        raise BuildError("INVALID_ARG", "partial_rotary_factor", share, f"an even number of the {head_dim} channels of a head")
    return rotary_dim


def _parse_longrope(raw: Mapping[str, Any], section: Mapping[str, Any], theta: float, rotary_dim: int) -> RopeConfig:
    """LongRoPE (arXiv 2402.13753) as far as its short factors go: up to `original_max_position_embeddings` positions."""
    original = positive_int({**raw, **section}, "original_max_position_embeddings")
    divisors = section.get("short_factor")
    if not isinstance(divisors, list) or len(divisors) != rotary_dim // 2 or not all(isinstance(value, int | float) for value in divisors):
        raise BuildError("INVALID_ARG", "short_factor", divisors, f"{rotary_dim // 2} numbers")
    stretch = positive_float(section, "factor", positive_int(raw, "max_position_embeddings") / original)
    grown = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    amplitude = positive_float(section, "attention_factor", grown)
    return RopeConfig(
        theta,
        "longrope",
        stretch,
        original_max_positions=original,
        rotary_dim=rotary_dim,
        divisors=tuple(map(float, divisors)),
        amplitude=amplitude,
    )
