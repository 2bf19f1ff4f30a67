"""Grows a Llama checkpoint without changing what it computes, so that verification costs what it costs in reality.

Two transformations, both exact in real numbers:
- identity blocks (LLaMA Pro, arXiv 2401.02415, section 3.1): a new block whose output projections `o_proj` and `down_proj` are zero adds
  nothing to the residual stream; new blocks are interleaved with the old ones;
- wider feed-forwards: the output weights of new neurons are zero, in every block.
Everything else that is new is random of ordinary scale, so that no kernel can take a short cut. The model says the same and costs more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from drafthouse_build.checkpoint import FloatArray, Weights
from drafthouse_build.config import LayerConfig, ModelConfig
from drafthouse_build.errors import BuildError
from drafthouse_build.shapes import num_parameters

_INIT_STD = 0.02
_WIDTH_STEP = 64
_UNLIKE_LLAMA = ("qkv_bias", "out_bias", "mlp_bias", "fused_projections", "query_key_norm", "sandwich_norms")


@dataclass(frozen=True)
class Expansion:
    """Size after growing: number of blocks and of feed-forward neurons per block."""

    num_layers: int
    intermediate_size: int


def expand_to(config: ModelConfig, weights: Weights, num_params: int) -> tuple[ModelConfig, Weights]:
    """Grows the model to about `num_params` parameters."""
    return expand(config, weights, plan_expansion(config, num_params))


def plan_expansion(config: ModelConfig, num_params: int) -> Expansion:
    """The expansion that comes closest to `num_params`: a new block after each old one, the rest in width, in steps of 64 neurons.

    Raises `BuildError` for fewer parameters than that gives, and for models whose blocks are not plain Llama's.
    """
    _refuse_unlike_llama(config)
    num_layers = 2 * config.num_layers
    width = config.intermediate_size
    deeper = replace(config, layers=config.layers[:1] * num_layers)
    per_neuron = num_layers * config.hidden_size * 3
    missing = num_params - num_parameters(deeper)
    steps = round(missing / (per_neuron * _WIDTH_STEP))
    if steps < 0:
        allowed = f"at least {num_parameters(deeper)} parameters"
        raise BuildError("INVALID_ARG", "expand_target", num_params, allowed)
    return Expansion(num_layers, width + steps * _WIDTH_STEP)


def expand(config: ModelConfig, weights: Weights, expansion: Expansion, seed: int = 0) -> tuple[ModelConfig, dict[str, FloatArray]]:
    """Returns configuration and weights of the grown model; the same `seed` gives the same numbers."""
    if expansion.num_layers < config.num_layers or expansion.intermediate_size < config.intermediate_size:
        raise BuildError("INVALID_ARG", "expansion", expansion, "at least the size of the checkpoint")
    _refuse_unlike_llama(config)
    grown = replace(config, layers=config.layers[:1] * expansion.num_layers, intermediate_size=expansion.intermediate_size)
    random = np.random.default_rng(seed)
    result = {name: weights[name] for name in weights if not name.startswith("model.layers.")}
    origins = interleaved_origins(config.num_layers, expansion.num_layers)
    for layer, origin in enumerate(origins):
        block = _identity_block(config, random) if origin is None else _block(weights, origin)
        widened = _widened(block, expansion.intermediate_size, random)
        result.update({f"model.layers.{layer}.{name}": tensor for name, tensor in widened.items()})
    return grown, result


def _refuse_unlike_llama(config: ModelConfig) -> None:
    for option in _UNLIKE_LLAMA:
        if getattr(config, option):
            raise BuildError("UNSUPPORTED", option, True, "False with expand_target")
    if set(config.layers) != {LayerConfig()}:
        raise BuildError("UNSUPPORTED", "layer_types", "windows or layers without rotation", "full attention with expand_target")


def interleaved_origins(num_old: int, num_new: int) -> list[int | None]:
    """For each of `num_new` blocks the old block that it is, or None for a new one; the new ones are spread evenly among the old."""
    # Block `layer` is old where the running share of old blocks reaches the next whole number.
    ends = [(layer + 1) * num_old // num_new for layer in range(num_new)]
    return [end - 1 if end > before else None for before, end in zip([0, *ends], ends, strict=False)]


def _block(weights: Weights, layer: int) -> dict[str, FloatArray]:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def _identity_block(config: ModelConfig, random: np.random.Generator) -> dict[str, FloatArray]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "input_layernorm.weight": np.ones(hidden, np.float32),
        "self_attn.q_proj.weight": _random(random, queries, hidden),
        "self_attn.k_proj.weight": _random(random, keys, hidden),
        "self_attn.v_proj.weight": _random(random, keys, hidden),
        "self_attn.o_proj.weight": np.zeros((hidden, queries), np.float32),
        "post_attention_layernorm.weight": np.ones(hidden, np.float32),
        "mlp.gate_proj.weight": _random(random, inner, hidden),
        "mlp.up_proj.weight": _random(random, inner, hidden),
        "mlp.down_proj.weight": np.zeros((hidden, inner), np.float32),
    }


def _widened(block: dict[str, FloatArray], width: int, random: np.random.Generator) -> dict[str, FloatArray]:
    hidden, inner = block["mlp.down_proj.weight"].shape
    added = width - inner
    widened = dict(block)
    for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        widened[name] = np.concatenate([block[name], _random(random, added, hidden)])
    widened["mlp.down_proj.weight"] = np.concatenate([block["mlp.down_proj.weight"], np.zeros((hidden, added), np.float32)], axis=1)
    return widened


def _random(random: np.random.Generator, rows: int, columns: int) -> FloatArray:
    return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(_INIT_STD)
