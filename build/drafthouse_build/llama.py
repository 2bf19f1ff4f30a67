"""Llama (arXiv 2302.13971, grouped-query attention of arXiv 2305.13245) as a plain opset-24 ONNX graph with an in-place KV cache.

The graph is the interface between the build and the engines:

| tensor | shape | type | meaning |
|---|---|---|---|
| `input_ids` | [N] | int64 | new tokens of all sequences, packed |
| `position_ids` | [B, T] | int64 | positions of the tokens of the rectangle, below S |
| `write_indices` | [B] | int64 | cache row of each sequence's first new token; `write_indices + T ≤ S`, else the whole call fails |
| `attn_mask` | [B, 1, T, S] | bool | cache rows that each new token sees, its own row among them |
| `unpack_indices` | [B, T] | int64 | which packed token stands at a place of the rectangle; any one where none does |
| `pack_indices` | [N] | int64 | place `b · T + t` of each packed token in the rectangle |
| `past_k_i`, `past_v_i` | [B, H_kv, S, D_h] | float32 | cache of layer i; finite numbers everywhere, also in rows that nobody sees |
| `logits` | [N, V] | float32 | next-token scores of every packed token |
| `present_k_i`, `present_v_i` | as `past` | float32 | the cache with the new rows; bound to the memory of `past`, only those are written |

All dimensions that are letters are free; S goes up to `context_len`, which the model's metadata name. A runtime that needs it static
(TensorRT's KV-cache-update layer) fixes it there; one that does not reads only as much of the cache as is in use. What a mask row without
any True gives is up to the runtime (NaN, which the next layer would write into the cache, is allowed): places that only pad the rectangle
see themselves.

Sequences of different lengths share a call: everything but attention runs on the N packed tokens, so that padding the rectangle, in
which attention needs them, costs no matrix product (selective batching: Yu et al., "Orca", OSDI 2022, section 3.2).

With N ≥ 2 and T ≥ 2 a token's logits do not depend on B, T, N, S or the neighbours, bit by bit, on ONNX Runtime's CPU kernels. With
N = 1 the matrix products, with T = 1 attention take another kernel, which rounds differently.

A weight is stored as `[in, out]`, the layout of `MatMul`. Query, key and value projections are one matrix, and so are gate and up:
fewer operators, which is what a two-layer drafter spends most of its time on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from drafthouse.engine.manifest import CONTEXT_LEN_KEY
from drafthouse_build.checkpoint import FloatArray, Weights
from drafthouse_build.config import LlamaConfig
from drafthouse_build.errors import BuildError
from drafthouse_build.graph import GraphBuilder
from drafthouse_build.rope import rope_tables


def export_llama(config: LlamaConfig, weights: Weights, context_len: int) -> onnx.ModelProto:
    """Builds the graph for up to `context_len` cache rows (S) from weights whose shapes were checked."""
    return _LlamaExporter(config, weights, context_len).export()


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape, `[out, in]` for matrices, of every tensor that a checkpoint of this configuration holds."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears: dict[str, tuple[int, int]] = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        for name, shape in linears.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if config.mlp_bias if name.startswith("mlp") else config.attention_bias:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def num_parameters(config: LlamaConfig) -> int:
    """Number of trained numbers in the model; a tied embedding counts once."""
    return sum(int(np.prod(shape)) for shape in expected_shapes(config).values())


def check_shapes(config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `BuildError` when names or shapes are not exactly those of the configuration."""
    expected = expected_shapes(config)
    # Old checkpoints carry the rotary frequencies, and some a copy of the tied output matrix.
    ignored = {"lm_head.weight"} if config.tied_embeddings else set()
    surplus = [name for name in shapes if name not in expected and name not in ignored and not name.endswith("rotary_emb.inv_freq")]
    if surplus:
        raise BuildError("UNSUPPORTED", "weights", surplus[0], f"the tensors of LlamaForCausalLM ({len(surplus)} others found)")
    for name, shape in expected.items():
        if name not in shapes:
            raise BuildError("INVALID_ARG", "weights", f"{name} missing", f"a tensor of shape {list(shape)}")
        if shapes[name] != shape:
            raise BuildError("INVALID_ARG", name, list(shapes[name]), str(list(shape)))


class _LlamaExporter:
    """Writes the graph layer by layer; every method returns the name of the value it produced."""

    def __init__(self, config: LlamaConfig, weights: Weights, context_len: int) -> None:
        self.config = config
        self.weights = weights
        self.context_len = context_len
        self.graph = GraphBuilder("llama")

    def export(self) -> onnx.ModelProto:
        self._declare_inputs()
        embeddings = self.graph.constant("embed_tokens", self.weights["model.embed_tokens.weight"])
        cosines, sines = rope_tables(self.config.rope, self.config.head_dim, self.context_len)
        self.graph.constant("rope.cos", cosines)
        self.graph.constant("rope.sin", sines)
        hidden = self.graph.node("Gather", [embeddings, "input_ids"], "embedded")
        for layer in range(self.config.num_layers):
            hidden = self._block(layer, hidden)
        hidden = self._norm("model.norm.weight", hidden, "final_norm")
        self.graph.node("MatMul", [hidden, self._output_matrix(embeddings)], "logits")
        self._declare_outputs()
        self.graph.describe(CONTEXT_LEN_KEY, str(self.context_len))
        return self.graph.model

    def _declare_inputs(self) -> None:
        self.graph.add_input("input_ids", TensorProto.INT64, ["N"])
        self.graph.add_input("position_ids", TensorProto.INT64, ["B", "T"])
        self.graph.add_input("write_indices", TensorProto.INT64, ["B"])
        self.graph.add_input("attn_mask", TensorProto.BOOL, ["B", 1, "T", "S"])
        self.graph.add_input("unpack_indices", TensorProto.INT64, ["B", "T"])
        self.graph.add_input("pack_indices", TensorProto.INT64, ["N"])
        for layer in range(self.config.num_layers):
            for side in "kv":
                self.graph.add_input(f"past_{side}_{layer}", TensorProto.FLOAT, self._cache_shape())

    def _declare_outputs(self) -> None:
        self.graph.add_output("logits", ["N", self.config.vocab_size])
        for layer in range(self.config.num_layers):
            for side in "kv":
                self.graph.add_output(f"present_{side}_{layer}", self._cache_shape())

    def _cache_shape(self) -> list[int | str]:
        return ["B", self.config.num_kv_heads, "S", self.config.head_dim]

    def _output_matrix(self, embeddings: str) -> str:
        """The output projection `[hidden, V]`. Tied: one copy in the file, turned round by constant folding at load."""
        if self.config.tied_embeddings:
            return self.graph.transpose(embeddings, "lm_head", [1, 0])
        return self.graph.constant("lm_head", self.weights["lm_head.weight"].T)

    def _block(self, layer: int, hidden: str) -> str:
        name = f"layers.{layer}"
        source = f"model.{name}."
        normed = self._norm(source + "input_layernorm.weight", hidden, f"{name}.attention_norm")
        attended = self._attention(layer, name, source + "self_attn.", normed)
        hidden = self.graph.node("Add", [hidden, attended], f"{name}.after_attention")
        normed = self._norm(source + "post_attention_layernorm.weight", hidden, f"{name}.mlp_norm")
        fed = self._feed_forward(name, source + "mlp.", normed)
        return self.graph.node("Add", [hidden, fed], f"{name}.after_mlp")

    def _attention(self, layer: int, name: str, source: str, normed: str) -> str:
        config, graph = self.config, self.graph
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        joined = self._linear([source + "q_proj", source + "k_proj", source + "v_proj"], normed, f"{name}.qkv")
        joined = graph.node("Gather", [joined, "unpack_indices"], f"{name}.qkv_unpacked")
        shape = graph.constant(f"{name}.qkv_shape", np.asarray([0, 0, heads + 2 * kv_heads, head_dim], np.int64))
        joined = graph.node("Reshape", [joined, shape], f"{name}.qkv_heads")
        joined = graph.transpose(joined, f"{name}.qkv_by_head", [0, 2, 1, 3])
        graph.split(joined, [heads + kv_heads, kv_heads], [f"{name}.qk", f"{name}.v"], axis=1)
        rotated = graph.node("RotaryEmbedding", [f"{name}.qk", "rope.cos", "rope.sin", "position_ids"], f"{name}.qk_rotated")
        graph.split(rotated, [heads, kv_heads], [f"{name}.q_rotated", f"{name}.k_rotated"], axis=1)
        keys = self._write_cache("k", layer, f"{name}.k_rotated")
        values = self._write_cache("v", layer, f"{name}.v")
        attended = graph.node("Attention", [f"{name}.q_rotated", keys, values, "attn_mask"], f"{name}.attention")
        attended = graph.transpose(attended, f"{name}.attention_by_token", [0, 2, 1, 3])
        shape = graph.constant(f"{name}.attention_shape", np.asarray([-1, heads * head_dim], np.int64))
        attended = graph.node("Reshape", [attended, shape], f"{name}.attention_flat")
        attended = graph.node("Gather", [attended, "pack_indices"], f"{name}.attention_packed")
        return self._linear([source + "o_proj"], attended, f"{name}.attention_out")

    def _write_cache(self, side: str, layer: int, update: str) -> str:
        return self.graph.node("TensorScatter", [f"past_{side}_{layer}", update, "write_indices"], f"present_{side}_{layer}", axis=-2)

    def _feed_forward(self, name: str, source: str, normed: str) -> str:
        graph, inner = self.graph, self.config.intermediate_size
        joined = self._linear([source + "gate_proj", source + "up_proj"], normed, f"{name}.gate_up")
        graph.split(joined, [inner, inner], [f"{name}.gate", f"{name}.up"], axis=-1)
        gate = graph.node("Sigmoid", [f"{name}.gate"], f"{name}.gate_sigmoid")
        gate = graph.node("Mul", [f"{name}.gate", gate], f"{name}.gate_silu")
        fed = graph.node("Mul", [gate, f"{name}.up"], f"{name}.gated")
        return self._linear([source + "down_proj"], fed, f"{name}.mlp_out")

    def _norm(self, weight: str, hidden: str, output: str) -> str:
        scale = self.graph.constant(f"{output}.scale", self.weights[weight])
        return self.graph.node("RMSNormalization", [hidden, scale], output, axis=-1, epsilon=self.config.rms_norm_eps)

    def _linear(self, sources: list[str], hidden: str, output: str) -> str:
        """One `MatMul` for the projections `sources`, side by side, with their biases where the checkpoint has them."""
        matrix = self._joined(sources, ".weight")
        product = self.graph.node("MatMul", [hidden, self.graph.constant(f"{output}.weight", matrix.T)], f"{output}.product")
        if f"{sources[0]}.bias" not in self.weights:
            return product
        bias = self.graph.constant(f"{output}.bias", self._joined(sources, ".bias"))
        return self.graph.node("Add", [product, bias], output)

    def _joined(self, sources: list[str], suffix: str) -> FloatArray:
        return np.concatenate([self.weights[source + suffix] for source in sources])
