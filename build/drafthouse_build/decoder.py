"""Decoder-only transformers (Llama, arXiv 2302.13971, and its relatives) as a plain opset-24 ONNX graph with an in-place KV cache.

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
fewer operators, which is what a two-layer drafter spends most of its time on. What only some families have (`families.py`) costs the
others no operator. The attention itself is in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from drafthouse.engine.manifest import CONTEXT_LEN_KEY
from drafthouse_build.attention import AttentionWriter
from drafthouse_build.checkpoint import FloatArray, Weights, block
from drafthouse_build.config import ModelConfig
from drafthouse_build.graph import GraphBuilder
from drafthouse_build.shapes import expected_shapes
from drafthouse_build.vocabulary import Vocabulary
from drafthouse_build.weight_store import WeightStore, spans


def export_decoder(
    config: ModelConfig, weights: Weights, context_len: int, vocabulary: Vocabulary | None = None, store: WeightStore | None = None
) -> onnx.ModelProto:
    """Builds the graph for up to `context_len` cache rows (S) from weights whose shapes were checked.

    `vocabulary` are the ids of a drafter, None for the checkpoint's own. Weights go to `store`, without one into the model itself.
    """
    return _Exporter(config, weights, context_len, vocabulary, store or WeightStore()).export()


class _Exporter:
    """Writes the graph layer by layer; every method returns the name of the value it produced."""

    def __init__(self, config: ModelConfig, weights: Weights, context_len: int, vocabulary: Vocabulary | None, store: WeightStore) -> None:
        self.config = config
        self.weights = weights
        self.context_len = context_len
        self.vocabulary = vocabulary
        self.vocab_size = config.vocab_size if vocabulary is None else vocabulary.size
        self.graph = GraphBuilder("decoder", store)
        self._shapes = expected_shapes(config)

    def export(self) -> onnx.ModelProto:
        config, graph = self.config, self.graph
        self._declare_inputs()
        embeddings = self._embeddings()
        attention = AttentionWriter(graph, config, self.context_len)
        hidden = graph.node("Gather", [embeddings, "input_ids"], "embedded")
        if config.embedding_scale != 1:
            hidden = graph.node("Mul", [hidden, graph.number("embedding_scale", config.embedding_scale)], "embedded_scaled")
        for layer in range(config.num_layers):
            hidden = self._block(layer, hidden, attention)
        hidden = self._norm("model.norm", hidden, "final_norm")
        self._logits(hidden, embeddings)
        self._declare_outputs()
        graph.describe(CONTEXT_LEN_KEY, str(self.context_len))
        return graph.model

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
        self.graph.add_output("logits", ["N", self.vocab_size])
        for layer in range(self.config.num_layers):
            for side in "kv":
                self.graph.add_output(f"present_{side}_{layer}", self._cache_shape())

    def _cache_shape(self) -> list[int | str]:
        return ["B", self.config.num_kv_heads, "S", self.config.head_dim]

    def _embeddings(self) -> str:
        """The table `[V, hidden]`: the checkpoint's ids that there are, then zeros."""
        width = self.config.hidden_size
        known = min(self.config.vocab_size, self.vocab_size)

        def rows() -> Iterator[FloatArray]:
            for span in spans(known, 4 * width):
                yield block(self.weights, "model.embed_tokens.weight", rows=span)
            for span in spans(self.vocab_size - known, 4 * width):
                yield np.zeros((span.stop - span.start, width), np.float32)

        return self.graph.weight("embed_tokens", (self.vocab_size, width), rows())

    def _logits(self, hidden: str, embeddings: str) -> str:
        config, graph = self.config, self.graph
        penalties = None if self.vocabulary is None else self.vocabulary.penalties(config.vocab_size)
        output = "logits" if penalties is None and not config.logit_softcap else "logits.product"
        # Tied: one copy in the file, turned round by constant folding at load.
        matrix = graph.transpose(embeddings, "lm_head", [1, 0]) if config.tied_embeddings else self._output_matrix()
        scores = graph.node("MatMul", [hidden, matrix], output)
        if config.logit_softcap:
            output = "logits" if penalties is None else "logits.capped"
            scores = graph.node("Mul", [scores, graph.number("logits.uncap", 1 / config.logit_softcap)], "logits.uncapped")
            scores = graph.node("Tanh", [scores], "logits.tanh")
            scores = graph.node("Mul", [scores, graph.number("logits.cap", config.logit_softcap)], output)
        if penalties is not None:
            scores = graph.node("Add", [scores, graph.constant("logits.penalties", penalties)], "logits")
        return scores

    def _output_matrix(self) -> str:
        """`[hidden, V]`: the columns of the checkpoint's ids that there are, then zeros."""
        known = min(self.config.vocab_size, self.vocab_size)
        padding = self.vocab_size - known

        def columns() -> Iterator[FloatArray]:
            for span in spans(self.config.hidden_size, 4 * self.vocab_size):
                part = block(self.weights, "lm_head.weight", rows=slice(0, known), columns=span)
                yield np.pad(part.T, ((0, 0), (0, padding))) if padding else part.T

        return self.graph.weight("lm_head", (self.config.hidden_size, self.vocab_size), columns())

    def _block(self, layer: int, hidden: str, attention: AttentionWriter) -> str:
        name, source = f"layers.{layer}", f"model.layers.{layer}."
        normed = self._norm(source + "input_layernorm", hidden, f"{name}.attention_norm")
        attended = self._attention(layer, name, source + "self_attn.", normed, attention)
        behind = "pre_feedforward_layernorm" if self.config.sandwich_norms else "post_attention_layernorm"
        if self.config.sandwich_norms:
            attended = self._norm(source + "post_attention_layernorm", attended, f"{name}.attended_norm")
        hidden = self.graph.node("Add", [hidden, attended], f"{name}.after_attention")
        normed = self._norm(source + behind, hidden, f"{name}.mlp_norm")
        fed = self._feed_forward(name, source + "mlp.", normed)
        if self.config.sandwich_norms:
            fed = self._norm(source + "post_feedforward_layernorm", fed, f"{name}.fed_norm")
        return self.graph.node("Add", [hidden, fed], f"{name}.after_mlp")

    def _attention(self, layer: int, name: str, source: str, normed: str, attention: AttentionWriter) -> str:
        config, graph = self.config, self.graph
        parts = ["qkv_proj"] if config.fused_projections else ["q_proj", "k_proj", "v_proj"]
        joined = self._linear([source + part for part in parts], normed, f"{name}.qkv")
        joined = graph.node("Gather", [joined, "unpack_indices"], f"{name}.qkv_unpacked")
        joined = graph.reshape(joined, f"{name}.qkv_heads", 0, 0, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        joined = graph.transpose(joined, f"{name}.qkv_by_head", [0, 2, 1, 3])
        attended = attention.write(layer, name, joined, self._head_scales(source))
        attended = graph.transpose(attended, f"{name}.attention_by_token", [0, 2, 1, 3])
        attended = graph.reshape(attended, f"{name}.attention_flat", -1, config.num_heads * config.head_dim)
        attended = graph.node("Gather", [attended, "pack_indices"], f"{name}.attention_packed")
        return self._linear([source + "o_proj"], attended, f"{name}.attention_out")

    def _head_scales(self, source: str) -> FloatArray | None:
        """`[H + H_kv, 1, D_h]`, the weights of the norms of queries and keys; None where there are none."""
        if not self.config.query_key_norm:
            return None
        queries, keys = (self.weights[f"{source}{side}_norm.weight"] for side in "qk")
        scales = np.concatenate([np.tile(queries, (self.config.num_heads, 1)), np.tile(keys, (self.config.num_kv_heads, 1))])
        return (scales + np.float32(self.config.norm_offset))[:, None, :]

    def _feed_forward(self, name: str, source: str, normed: str) -> str:
        graph, inner = self.graph, self.config.intermediate_size
        parts = ["gate_up_proj"] if self.config.fused_projections else ["gate_proj", "up_proj"]
        joined = self._linear([source + part for part in parts], normed, f"{name}.gate_up")
        graph.split(joined, [inner, inner], [f"{name}.gate", f"{name}.up"], axis=-1)
        if self.config.activation == "gelu_tanh":
            gate = graph.node("Gelu", [f"{name}.gate"], f"{name}.gate_gelu", approximate="tanh")
        else:
            gate = graph.node("Sigmoid", [f"{name}.gate"], f"{name}.gate_sigmoid")
            gate = graph.node("Mul", [f"{name}.gate", gate], f"{name}.gate_silu")
        fed = graph.node("Mul", [gate, f"{name}.up"], f"{name}.gated")
        return self._linear([source + "down_proj"], fed, f"{name}.mlp_out")

    def _norm(self, source: str, hidden: str, output: str) -> str:
        weight = self.weights[source + ".weight"]
        # Llama's numbers stay the bits they are.
        scale = weight + np.float32(self.config.norm_offset) if self.config.norm_offset else weight
        scale_name = self.graph.constant(f"{output}.scale", scale)
        return self.graph.node("RMSNormalization", [hidden, scale_name], output, axis=-1, epsilon=self.config.rms_norm_eps)

    def _linear(self, sources: list[str], hidden: str, output: str) -> str:
        """One `MatMul` for the projections `sources`, side by side, with their biases where the checkpoint has them."""
        shapes = [self._shapes[f"{source}.weight"] for source in sources]
        width, inputs = sum(shape[0] for shape in shapes), shapes[0][1]

        def columns() -> Iterator[FloatArray]:
            for span in spans(inputs, 4 * width):
                joined = np.empty((span.stop - span.start, width), np.float32)
                end = 0
                for source, shape in zip(sources, shapes, strict=True):
                    begin, end = end, end + shape[0]
                    joined[:, begin:end] = block(self.weights, f"{source}.weight", columns=span).T
                yield joined

        matrix = self.graph.weight(f"{output}.weight", (inputs, width), columns())
        product = self.graph.node("MatMul", [hidden, matrix], f"{output}.product")
        if f"{sources[0]}.bias" not in self.weights:
            return product
        bias = self.graph.constant(f"{output}.bias", np.concatenate([self.weights[f"{source}.bias"] for source in sources]))
        return self.graph.node("Add", [product, bias], output)
