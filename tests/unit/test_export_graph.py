"""The exported graph: standard operators only, the documented inputs and outputs, and a cache that is written in place."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from drafthouse_build.config import parse_config
from drafthouse_build.decoder import export_decoder
from drafthouse_build.model_file import Precision, write_model
from drafthouse_build.shapes import expected_shapes, num_parameters
from fakes.onnx_llama import OnnxLlama
from fakes.tiny_llama import random_weights, tiny_config

CONTEXT_LEN = 40


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    config = tiny_config()
    return export_decoder(parse_config(config), random_weights(config), CONTEXT_LEN)


def test_graph_is_valid_and_has_standard_operators_only(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    operators = {node.op_type for node in model.graph.node}
    assert {"RMSNormalization", "RotaryEmbedding", "TensorScatter", "Attention"} <= operators
    assert {node.domain for node in model.graph.node} == {""}


def test_inputs_and_outputs_are_the_documented_ones(model: onnx.ModelProto) -> None:
    def described(values: object) -> dict[str, tuple[object, ...]]:
        return {
            value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)  # type: ignore[attr-defined]
            for value in values  # type: ignore[attr-defined]
        }

    cache = ("B", 2, "S", 16)
    sides = [f"{side}_{layer}" for layer in range(3) for side in "kv"]
    assert described(model.graph.input) == {
        "input_ids": ("N",),
        "position_ids": ("B", "T"),
        "write_indices": ("B",),
        "attn_mask": ("B", 1, "T", "S"),
        "unpack_indices": ("B", "T"),
        "pack_indices": ("N",),
        **{f"past_{side}": cache for side in sides},
    }
    assert described(model.graph.output) == {"logits": ("N", 96), **{f"present_{side}": cache for side in sides}}


def test_tied_embeddings_are_stored_once(model: onnx.ModelProto) -> None:
    config = tiny_config()
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    tables = 2 * CONTEXT_LEN * 8
    assert stored == num_parameters(parse_config(config)) + tables
    untied = parse_config(tiny_config(tie_word_embeddings=False))
    assert set(expected_shapes(untied)) - set(expected_shapes(parse_config(config))) == {"lm_head.weight"}


def test_cache_bound_in_place_changes_only_the_rows_written(model: onnx.ModelProto, capfd: pytest.CaptureFixture[str]) -> None:
    llama = OnnxLlama(model, rows=4)
    llama.cache[:] = np.random.default_rng(1).standard_normal(llama.cache.shape, dtype=np.float32)
    before = llama.cache.copy()
    # Rows 1 and 2 only, at different places; rows 0 and 3 belong to nobody in this call.
    llama.step(1, [[5, 6, 7], [8, 9, 10]], starts=[4, 37])
    changed = np.argwhere((llama.cache != before).any(axis=(0, 1, 3, 5)))
    assert changed.tolist() == [[1, 4], [1, 5], [1, 6], [2, 37], [2, 38], [2, 39]]
    assert "in-place optimization not activated" not in capfd.readouterr().err


def test_copying_instead_of_in_place_would_be_noticed(model: onnx.ModelProto, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards the test above: the runtime's warning exists and reaches us."""
    llama = OnnxLlama(model, rows=1)
    feeds = {
        "input_ids": np.asarray([1, 2]),
        "unpack_indices": np.asarray([[0, 1]]),
        "pack_indices": np.asarray([0, 1]),
        "position_ids": np.asarray([[0, 1]]),
        "write_indices": np.asarray([0]),
        "attn_mask": np.tri(2, CONTEXT_LEN, dtype=np.bool_)[None, None],
    }
    past = {f"past_{side}_{layer}": np.zeros((1, 2, CONTEXT_LEN, 16), np.float32) for layer in range(3) for side in "kv"}
    llama.session.run(None, {**feeds, **past})
    assert "in-place optimization not activated" in capfd.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_model_that_outgrows_one_protobuf_is_written_with_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    config = tiny_config(tie_word_embeddings=False)
    draw = partial(export_decoder, parse_config(config), random_weights(config), CONTEXT_LEN)
    inline, external = tmp_path / "inline" / "model.onnx", tmp_path / "external" / "model.onnx"
    for file in (inline, external):
        file.parent.mkdir()
    write_model(draw, inline, 1000, precision)
    monkeypatch.setattr("drafthouse_build.model_file.MAX_INLINE_BYTES", 999)
    monkeypatch.setattr("drafthouse_build.weight_store.BLOCK_BYTES", 5000)  # several blocks per matrix
    seen: list[tuple[int, int]] = []
    write_model(draw, external, 1000, precision, lambda done, total: seen.append((done, total)))
    assert {file.name for file in inline.parent.iterdir()} == {"model.onnx"}
    assert {file.name for file in external.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (external.parent / "model.onnx.data").stat().st_size > external.stat().st_size
    onnx.checker.check_model(str(external))
    expected, found = (OnnxLlama(file, rows=1).step(0, [[3, 1, 4]], [0]) for file in (inline, external))
    np.testing.assert_array_equal(found, expected)
    assert seen == sorted(seen)
    assert len(seen) > 20
