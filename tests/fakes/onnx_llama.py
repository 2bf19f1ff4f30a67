"""The smallest caller of an exported graph: a KV cache bound in place, rows addressed by index, masks built from parents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class OnnxLlama:
    """Runs an exported model on the CPU; `cache[layer, side]` is `[rows, H_kv, S, D_h]` and is written in place."""

    def __init__(self, model: onnx.ModelProto | Path, rows: int, threads: int = 2) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        self.session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        past = [value for value in self.session.get_inputs() if value.name.startswith("past_")]
        self.num_layers = len(past) // 2
        _, self.num_kv_heads, _, self.head_dim = past[0].shape
        self.context_len = int(self.session.get_modelmeta().custom_metadata_map["context_len"])
        self.cache = np.zeros((self.num_layers, 2, rows, self.num_kv_heads, self.context_len, self.head_dim), np.float32)

    def step(
        self, first_row: int, tokens: Sequence[Sequence[int]], starts: Sequence[int], parents: Sequence[int] | None = None
    ) -> FloatArray:
        """Feeds `tokens [B, T]` to rows `first_row …`, writing from `starts [B]`; returns logits `[B, T, V]`.

        `parents [T]` makes the new tokens a tree (-1 = the row's last committed token); without it they are a chain.
        """
        logits = self.step_ragged(first_row, tokens, starts, [parents] * len(tokens))
        return np.stack(logits)

    def step_ragged(
        self,
        first_row: int,
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        parents: Sequence[Sequence[int] | None] | None = None,
        *,
        places: int = 2,
        padding: int = 0,
    ) -> list[FloatArray]:
        """As `step` for rows of different lengths; returns `[T_b, V]` per row.

        The rectangle gets at least `places` per row, and `padding` further packed tokens repeat the first one.
        """
        width = max(places, *map(len, tokens))
        shape = (len(tokens), width)
        positions = np.asarray(starts, np.int64)[:, None] + np.arange(width)
        mask = np.arange(self.context_len) <= positions[:, :, None]
        unpack = np.zeros(shape, np.int64)
        pack: list[int] = []
        for row, (own, start) in enumerate(zip(tokens, starts, strict=True)):
            count = len(own)
            tree = parents[row] if parents is not None else None
            ancestors = tree_ancestors(tree if tree is not None else range(-1, count - 1))
            positions[row, :count] = start + ancestors.sum(axis=1) - 1
            mask[row, :count] = False
            mask[row, :count, :start] = True
            mask[row, :count, start : start + count] = ancestors
            unpack[row, :count] = range(len(pack), len(pack) + count)
            pack += range(row * width, row * width + count)
        ids = [token for own in tokens for token in own]
        feeds = {
            "input_ids": np.asarray(ids + ids[:1] * padding),
            "position_ids": positions,
            "write_indices": np.asarray(starts, np.int64),
            "attn_mask": mask[:, None],
            "unpack_indices": unpack,
            "pack_indices": np.asarray(pack + pack[:1] * padding),
        }
        logits = self.run(first_row, feeds)[: len(ids)]
        return np.split(logits, np.cumsum([len(own) for own in tokens])[:-1])

    def run(self, first_row: int, feeds: dict[str, NDArray[np.generic]]) -> FloatArray:
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("logits", "cpu")
        shape = [len(feeds["write_indices"]), self.num_kv_heads, self.context_len, self.head_dim]
        for layer in range(self.num_layers):
            for index, side in enumerate("kv"):
                address = self.cache[layer, index, first_row:].ctypes.data
                binding.bind_input(f"past_{side}_{layer}", "cpu", 0, np.float32, shape, address)
                binding.bind_output(f"present_{side}_{layer}", "cpu", 0, np.float32, shape, address)
        self.session.run_with_iobinding(binding)
        logits: FloatArray = binding.get_outputs()[0].numpy()
        return logits


def tree_ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """`[T, T]`: which nodes each node sees (itself and its ancestors); a parent precedes its children."""
    seen = np.eye(len(parents), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen
