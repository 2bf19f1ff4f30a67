"""Names and shapes of the tensors that a checkpoint of a configuration holds, as `transformers` names them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drafthouse_build.config import ModelConfig
from drafthouse_build.errors import BuildError

# Some checkpoints carry what is computed from the configuration here.
_COMPUTED = ("rotary_emb.inv_freq",)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape, `[out, in]` for matrices, of every tensor that a checkpoint of this configuration holds."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    linears, norms = _linears(config), _norms(config)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes.update({f"{prefix}{name}.weight": (size,) for name, size in norms.items()})
        for name, (shape, has_bias) in linears.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if has_bias:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def num_parameters(config: ModelConfig) -> int:
    """Number of trained numbers in the model; a tied embedding counts once."""
    return sum(int(np.prod(shape)) for shape in expected_shapes(config).values())


def check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], architecture: str) -> None:
    """Raises `BuildError` when names or shapes are not exactly those of the configuration."""
    expected = expected_shapes(config)
    # Some checkpoints have a copy of the tied output matrix.
    ignored = {"lm_head.weight"} if config.tied_embeddings else set()
    surplus = [name for name in shapes if name not in expected and name not in ignored and not name.endswith(_COMPUTED)]
    if surplus:
        raise BuildError("UNSUPPORTED", "weights", surplus[0], f"the tensors of {architecture} ({len(surplus)} others found)")
    for name, shape in expected.items():
        if name not in shapes:
            raise BuildError("INVALID_ARG", "weights", f"{name} missing", f"a tensor of shape {list(shape)}")
        if shapes[name] != shape:
            raise BuildError("INVALID_ARG", name, list(shapes[name]), str(list(shape)))


def _linears(config: ModelConfig) -> dict[str, tuple[tuple[int, int], bool]]:
    """Shape and whether there is a bias, of a block's projections."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if config.fused_projections:
        joined = {
            "self_attn.qkv_proj": ((queries + 2 * keys, hidden), config.qkv_bias),
            "mlp.gate_up_proj": ((2 * inner, hidden), config.mlp_bias),
        }
    else:
        joined = {
            "self_attn.q_proj": ((queries, hidden), config.qkv_bias),
            "self_attn.k_proj": ((keys, hidden), config.qkv_bias),
            "self_attn.v_proj": ((keys, hidden), config.qkv_bias),
            "mlp.gate_proj": ((inner, hidden), config.mlp_bias),
            "mlp.up_proj": ((inner, hidden), config.mlp_bias),
        }
    outputs = {
        "self_attn.o_proj": ((hidden, queries), config.out_bias),
        "mlp.down_proj": ((hidden, inner), config.mlp_bias),
    }
    return {**joined, **outputs}


def _norms(config: ModelConfig) -> dict[str, int]:
    """A block's norms and how many channels each one scales."""
    hidden = config.hidden_size
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.sandwich_norms:
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    if config.query_key_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    return norms
