"""8-bit weights for the CPU: every `MatMul` by a constant becomes ONNX Runtime's `MatMulNBits`.

The one operator that is not standard ONNX, so a pass over the finished graph and not part of the exporter. Weights are rounded in
blocks along the input dimension, each with its own scale, symmetric about zero. Activations are rounded per row and block inside the
kernel (`accuracy_level` 4), so that a token's logits depend on its own row alone. `quantize_dynamic` scales activations over the whole
batch instead: a token's logits would depend on its neighbours, and speculation would no longer be lossless.

The output projection is quantised too: at a vocabulary of 4096 and more it is a large share of the bytes read per token. The embedding
table stays float32, also when both are one matrix: looking up a row costs nothing, and rounding it would reach every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from drafthouse_build.weight_store import WeightStore, read_tensor, spans

BLOCK_SIZE = 64
_ZERO_POINT = 128
_INT8_ACTIVATIONS = 4


def quantize_weights(model: onnx.ModelProto, folder: Path | None = None, store: WeightStore | None = None) -> onnx.ModelProto:
    """Returns a copy of `model` whose constant right-hand matrices are 8-bit blocks.

    `folder` holds the model's external weights, where it has any; the new ones go to `store`, without one into the copy itself.
    """
    source = model.graph
    constants = {tensor.name: tensor for tensor in source.initializer}
    transposed = {node.output[0]: node.input[0] for node in source.node if node.op_type == "Transpose" and node.input[0] in constants}
    result = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    result.opset_import.extend([*model.opset_import, helper.make_opsetid("com.microsoft", 1)])
    result.metadata_props.extend(model.metadata_props)
    writer = _Writer(result.graph, folder, store or WeightStore())
    result.graph.name = source.name
    result.graph.input.extend(source.input)
    result.graph.output.extend(source.output)
    for node in source.node:
        right = node.input[1] if node.op_type == "MatMul" else ""
        if right in constants or right in transposed:
            tensor = constants[transposed.get(right, right)]
            writer.add_quantized(node, tensor, right in transposed)
        elif node.output[0] not in transposed:
            result.graph.node.append(node)
    used = {name for node in result.graph.node for name in node.input}
    for name, tensor in constants.items():
        if name in used:
            writer.copy(tensor)
    return result


def quantize_blocks(matrix: NDArray[np.float32], block_size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Rounds `matrix [K, N]` to 8 bits: values `[N, ceil(K / block), block]` about 128, and scales `[N, ceil(K / block)]`."""
    rows, columns = matrix.shape
    num_blocks = -(-rows // block_size)
    padded = np.zeros((columns, num_blocks * block_size), np.float32)
    padded[:, :rows] = matrix.T
    blocks = padded.reshape(columns, num_blocks, block_size)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)
    values = np.rint(blocks / divisor[:, :, None]) + _ZERO_POINT
    return values.astype(np.uint8), scales


class _Writer:
    """Adds nodes and weights to the graph that is being made."""

    def __init__(self, graph: onnx.GraphProto, folder: Path | None, store: WeightStore) -> None:
        self._graph = graph
        self._folder = folder
        self._store = store

    def add_quantized(self, node: onnx.NodeProto, tensor: onnx.TensorProto, is_transposed: bool) -> None:
        """Adds what multiplies as `node` does, by the rounded matrix `[K, N]` in `tensor`, which may hold it as `[N, K]`."""
        matrix = read_tensor(tensor, self._folder)
        matrix = matrix.T if is_transposed else matrix
        rows, columns = matrix.shape
        num_blocks = -(-rows // BLOCK_SIZE)
        scales = np.empty((columns, num_blocks), np.float32)

        def values() -> Iterator[NDArray[np.uint8]]:
            for span in spans(columns, 4 * rows):
                part, scales[span] = quantize_blocks(np.asarray(matrix[:, span], np.float32), BLOCK_SIZE)
                yield part

        shape = (columns, num_blocks, BLOCK_SIZE)
        self._store.add_blocks(self._graph, f"{node.name}.blocks", np.dtype(np.uint8), shape, values())
        self._store.add_blocks(self._graph, f"{node.name}.scales", scales.dtype, scales.shape, [scales])
        quantized = helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{node.name}.blocks", f"{node.name}.scales"],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            K=rows,
            N=columns,
            bits=8,
            block_size=BLOCK_SIZE,
            accuracy_level=_INT8_ACTIVATIONS,
        )
        self._graph.node.append(quantized)

    def copy(self, tensor: onnx.TensorProto) -> None:
        """Adds a weight that stays as it is."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            self._graph.initializer.append(tensor)
            return
        table = read_tensor(tensor, self._folder)
        parts = (table[span] for span in spans(len(table), table[:1].nbytes))
        self._store.add_blocks(self._graph, tensor.name, table.dtype, table.shape, parts)
