"""8-bit weights for the CPU: every `MatMul` by a constant becomes ONNX Runtime's `MatMulNBits`.

The one operator that is not standard ONNX, so a pass over the finished graph and not part of the exporter. Weights are rounded in
blocks along the input dimension, each with its own scale, symmetric about zero. Activations are rounded per row and block inside the
kernel (`accuracy_level` 4), so that a token's logits depend on its own row alone. `quantize_dynamic` scales activations over the whole
batch instead: a token's logits would depend on its neighbours, and speculation would no longer be lossless.

The output projection is quantised too: at a vocabulary of 4096 and more it is a large share of the bytes read per token. The embedding
table stays float32, also when both are one matrix: looking up a row costs nothing, and rounding it would reach every layer.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

BLOCK_SIZE = 64
_ZERO_POINT = 128
_INT8_ACTIVATIONS = 4


def quantize_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of `model` whose constant right-hand matrices are 8-bit blocks."""
    source = model.graph
    constants = {tensor.name: tensor for tensor in source.initializer}
    transposed = {node.output[0]: node.input[0] for node in source.node if node.op_type == "Transpose" and node.input[0] in constants}
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []
    for node in source.node:
        right = node.input[1] if node.op_type == "MatMul" else ""
        if right in constants or right in transposed:
            matrix = numpy_helper.to_array(constants[transposed.get(right, right)])
            quantized, tensors = _quantized_matmul(node, matrix.T if right in transposed else matrix)
            nodes.append(quantized)
            added.extend(tensors)
        else:
            nodes.append(node)
    return _rebuilt(model, nodes, added)


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


def _quantized_matmul(node: onnx.NodeProto, matrix: NDArray[np.float32]) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    values, scales = quantize_blocks(matrix, BLOCK_SIZE)
    tensors = [numpy_helper.from_array(values, f"{node.name}.blocks"), numpy_helper.from_array(scales, f"{node.name}.scales")]
    quantized = helper.make_node(
        "MatMulNBits",
        [node.input[0], tensors[0].name, tensors[1].name],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        K=matrix.shape[0],
        N=matrix.shape[1],
        bits=8,
        block_size=BLOCK_SIZE,
        accuracy_level=_INT8_ACTIVATIONS,
    )
    return quantized, tensors


def _rebuilt(model: onnx.ModelProto, nodes: list[onnx.NodeProto], added: list[onnx.TensorProto]) -> onnx.ModelProto:
    """`model` with other nodes, without what they no longer read."""
    outputs = {value.name for value in model.graph.output}
    used = {name for node in nodes for name in node.input} | outputs
    nodes = [node for node in nodes if any(name in used for name in node.output)]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, kept + added)
    opsets = [*model.opset_import, helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version, producer_name=model.producer_name)
