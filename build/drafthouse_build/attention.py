"""Attention over the cache, with what the families do to it: norms of queries and keys, rotation, windows, soft caps.

**Windows.** A token at position p of a layer with a window of W tokens sees positions p - W + 1 … p. The graph makes that mask itself
from `attn_mask` and `position_ids`, once for all layers with the same window, so that callers know nothing of windows. It takes a cache
row for the position of what lies there. That is right for the committed tokens; a draft node lies at or behind its position, and is
inside the window wherever its tree is no larger than W (`ModelConfig.check_context`). A window that S cannot outgrow is no window.

**Soft caps.** Scores become c · tanh(score / c) before they are masked. The operator `Attention` has an attribute for it. But its
definition applied the mask first until 2026 (onnx issue 7865), and so did ONNX Runtime's CPU kernel, which gives masked keys a share; and
TensorRT's importer does not take the attribute (onnx-tensorrt, docs/operators.md, 10.15). So these layers are written out in products,
`Tanh`, `Where` and `Softmax`.
"""

from __future__ import annotations

import numpy as np

from drafthouse_build.checkpoint import FloatArray
from drafthouse_build.config import LayerConfig, ModelConfig
from drafthouse_build.graph import GraphBuilder
from drafthouse_build.rope import rope_tables

_MASKED = float(np.finfo(np.float32).min)


class AttentionWriter:
    """Writes the attention of one layer after the other; tables and masks that layers share are written where first used."""

    def __init__(self, graph: GraphBuilder, config: ModelConfig, context_len: int) -> None:
        self._graph = graph
        self._config = config
        self._context_len = context_len
        self._masks: dict[tuple[int, bool], str] = {(0, False): "attn_mask"}
        used = sorted({layer.rope for layer in config.layers if layer.rope is not None})
        for rope in used:
            cosines, sines = rope_tables(config.ropes[rope], config.head_dim, context_len)
            graph.constant(f"{_rope_name(rope)}.cos", cosines)
            graph.constant(f"{_rope_name(rope)}.sin", sines)

    def write(self, layer: int, name: str, joined: str, head_scales: FloatArray | None) -> str:
        """From `joined [B, H + 2 · H_kv, T, D_h]`, queries, keys and values, to `[B, H, T, D_h]`; writes the layer's cache on the way."""
        config, graph = self._config, self._graph
        heads, kv_heads = config.num_heads, config.num_kv_heads
        graph.split(joined, [heads + kv_heads, kv_heads], [f"{name}.qk", f"{name}.v"], axis=1)
        turned = f"{name}.qk" if head_scales is None else self._normalise(name, head_scales)
        turned = self._rotate(config.layers[layer], name, turned)
        graph.split(turned, [heads, kv_heads], [f"{name}.q_rotated", f"{name}.k_rotated"], axis=1)
        keys = self._write_cache("k", layer, f"{name}.k_rotated")
        values = self._write_cache("v", layer, f"{name}.v")
        window = config.layers[layer].window
        window = window if window < self._context_len else 0
        if config.attention_softcap:
            return self._attend_capped(name, keys, values, self._mask(window, by_group=True))
        scale = {"scale": config.attention_scale} if config.attention_scale else {}
        return graph.node("Attention", [f"{name}.q_rotated", keys, values, self._mask(window)], f"{name}.attention", **scale)

    def _normalise(self, name: str, head_scales: FloatArray) -> str:
        """Queries and keys in one go: the norm without weights, then every head's own."""
        graph = self._graph
        ones = graph.constant(f"{name}.qk_norm.ones", np.ones(self._config.head_dim, np.float32))
        normed = graph.node("RMSNormalization", [f"{name}.qk", ones], f"{name}.qk_norm", axis=-1, epsilon=self._config.rms_norm_eps)
        return graph.node("Mul", [normed, graph.constant(f"{name}.qk_norm.scales", head_scales)], f"{name}.qk_scaled")

    def _rotate(self, layer: LayerConfig, name: str, source: str) -> str:
        if layer.rope is None:
            return source
        rotary_dim = self._config.ropes[layer.rope].rotary_dim
        partial = {"rotary_embedding_dim": rotary_dim} if 0 < rotary_dim < self._config.head_dim else {}
        tables = [f"{_rope_name(layer.rope)}.cos", f"{_rope_name(layer.rope)}.sin"]
        return self._graph.node("RotaryEmbedding", [source, *tables, "position_ids"], f"{name}.qk_rotated", **partial)

    def _write_cache(self, side: str, layer: int, update: str) -> str:
        return self._graph.node("TensorScatter", [f"past_{side}_{layer}", update, "write_indices"], f"present_{side}_{layer}", axis=-2)

    def _attend_capped(self, name: str, keys: str, values: str, mask: str) -> str:
        """Products by groups of query heads `[B, H_kv, G, T, D_h]`: the cache is read where it lies, once per group."""
        config, graph = self._config, self._graph
        kv_heads, groups = config.num_kv_heads, config.num_heads // config.num_kv_heads
        scale = config.attention_scale or config.head_dim**-0.5
        queries = graph.reshape(f"{name}.q_rotated", f"{name}.q_groups", 0, kv_heads, groups, -1, config.head_dim)
        queries = graph.node("Mul", [queries, graph.number(f"{name}.q_scale", scale / config.attention_softcap)], f"{name}.q_scaled")
        keys = graph.transpose(graph.unsqueeze(keys, f"{name}.k_groups", 2), f"{name}.k_turned", [0, 1, 2, 4, 3])
        scores = graph.node("MatMul", [queries, keys], f"{name}.scores")
        scores = graph.node("Tanh", [scores], f"{name}.scores_tanh")
        scores = graph.node("Mul", [scores, graph.number(f"{name}.cap", config.attention_softcap)], f"{name}.scores_capped")
        scores = graph.node("Where", [mask, scores, graph.number(f"{name}.masked", _MASKED)], f"{name}.scores_masked")
        shares = graph.node("Softmax", [scores], f"{name}.shares", axis=-1)
        attended = graph.node("MatMul", [shares, graph.unsqueeze(values, f"{name}.v_groups", 2)], f"{name}.attention_groups")
        return graph.reshape(attended, f"{name}.attention", 0, config.num_heads, -1, config.head_dim)

    def _mask(self, window: int, by_group: bool = False) -> str:
        """`[B, 1, T, S]`, or `[B, 1, 1, T, S]`: what layers of this window see."""
        key = (window, by_group)
        if key not in self._masks and by_group:
            self._masks[key] = self._graph.unsqueeze(self._mask(window), f"{self._mask(window)}.by_group", 1)
        elif key not in self._masks:
            self._masks[key] = self._near(window)
        return self._masks[key]

    def _near(self, window: int) -> str:
        """What `attn_mask` shows, of the last `window` tokens."""
        graph, name = self._graph, f"window.{window}"
        columns = graph.constant(f"{name}.all_columns", np.arange(self._context_len))
        end = graph.node("Shape", ["attn_mask"], f"{name}.num_columns", start=3, end=4)
        columns = graph.node("Slice", [columns, graph.numbers(f"{name}.begin", 0), end], f"{name}.columns")
        before = graph.node("Sub", ["position_ids", graph.constant(f"{name}.size", np.asarray(window))], f"{name}.last_unseen")
        before = graph.unsqueeze(before, f"{name}.last_unseen_by_token", 1, 3)
        near = graph.node("Greater", [columns, before], f"{name}.near")
        return graph.node("And", ["attn_mask", near], f"{name}.mask")


def _rope_name(rope: int) -> str:
    return "rope" if rope == 0 else f"rope.{rope}"
