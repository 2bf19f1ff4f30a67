"""8-bit weights: what is rounded, how far, and what stays as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from drafthouse_build.config import parse_config
from drafthouse_build.decoder import export_decoder
from drafthouse_build.quantize import BLOCK_SIZE, quantize_blocks, quantize_weights
from fakes.onnx_llama import OnnxLlama
from fakes.tiny_llama import VOCAB_SIZE, random_weights, tiny_config


def export(**overrides: object) -> onnx.ModelProto:
    config = tiny_config(**overrides)
    return export_decoder(parse_config(config), random_weights(config), 64)


@pytest.mark.parametrize("rows", [BLOCK_SIZE * 2, BLOCK_SIZE + 7, 5])
def test_rounding_error_is_at_most_half_a_step_of_the_block(rows: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((rows, 9), dtype=np.float32)
    matrix[0, 0] = 40  # one outlier spoils the precision of its own block alone
    matrix[:, 4] = 0
    values, scales = quantize_blocks(matrix, BLOCK_SIZE)
    assert values.dtype == np.uint8
    assert values.shape == (9, -(-rows // BLOCK_SIZE), BLOCK_SIZE)
    restored = (values.astype(np.float32) - 128) * scales[:, :, None]
    restored = restored.reshape(9, -1)[:, :rows].T
    steps = np.repeat(scales, BLOCK_SIZE, axis=1)[:, :rows].T
    assert (np.abs(restored - matrix) <= steps * 0.5001).all()
    assert scales[1].max() < scales[0].max()
    np.testing.assert_array_equal(restored[:, 4], 0)


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_matrix_but_the_embedding_is_quantised(tied: bool) -> None:
    model = quantize_weights(export(tie_word_embeddings=tied))
    onnx.checker.check_model(model)
    assert not [node for node in model.graph.node if node.op_type in ("MatMul", "Transpose") and node.input[0] == "embed_tokens"]
    assert not [node for node in model.graph.node if node.op_type == "MatMul"]
    quantized = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(quantized) == 3 * 4 + 1  # qkv, o, gate_up, down per layer; lm_head
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2]
    kept = {tensor.name for tensor in floats if not tensor.name.endswith(".scales")}
    assert kept == {"embed_tokens", "rope.cos", "rope.sin"}
    embedding = next(tensor for tensor in floats if tensor.name == "embed_tokens")
    np.testing.assert_array_equal(numpy_helper.to_array(embedding), random_weights(tiny_config())["model.embed_tokens.weight"])


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}])
def test_quantised_logits_stay_close(overrides: dict[str, object]) -> None:
    model = export(**overrides)
    tokens = np.random.default_rng(0).integers(1, VOCAB_SIZE, (2, 30))
    exact, rounded = (OnnxLlama(graph, rows=2).step(0, tokens, [0, 0]) for graph in (model, quantize_weights(model)))
    error = np.sqrt(np.mean((exact - rounded) ** 2)) / exact.std()
    # Random weights with sharp attention are the hard case; a wrong layout of the blocks gives an error of about 1.4.
    assert 0 < error < 0.1
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.99
