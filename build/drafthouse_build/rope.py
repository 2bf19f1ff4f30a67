"""Rotary embedding tables. Same float32 steps as `transformers.modeling_rope_utils`, so that long positions agree too."""

from __future__ import annotations

import math

import numpy as np

from drafthouse_build.checkpoint import FloatArray
from drafthouse_build.rope_config import RopeConfig


def rope_tables(rope: RopeConfig, head_dim: int, num_positions: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines for positions 0 … num_positions - 1, each `[num_positions, rotated channels / 2]`."""
    frequencies = inverse_frequencies(rope, head_dim)
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies[None, :]
    amplitude = np.float32(rope.amplitude)
    return np.cos(angles) * amplitude, np.sin(angles) * amplitude


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> FloatArray:
    """Radians per position of each pair of rotated channels, scaled as `rope` says."""
    dims = rope.rotary_dim or head_dim
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    powers = np.power(np.float32(rope.theta), exponents)
    if rope.divisors:
        powers *= np.asarray(rope.divisors, np.float32)
    frequencies: FloatArray = np.float32(1.0) / powers
    if rope.rope_type == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.rope_type == "llama3":
        return _llama3_frequencies(rope, frequencies)
    return frequencies


def _llama3_frequencies(rope: RopeConfig, frequencies: FloatArray) -> FloatArray:
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, those between are interpolated."""
    turns = np.float32(rope.original_max_positions) * frequencies / np.float32(2 * math.pi)
    keep = (turns - np.float32(rope.low_freq_factor)) / np.float32(rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, np.float32(0), np.float32(1))
    scaled: FloatArray = ((1 - keep) / np.float32(rope.factor) + keep) * frequencies
    return scaled
