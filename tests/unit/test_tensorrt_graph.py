"""What TensorRT documents as supported, held against every graph that the build can write; and that a graph outside it is noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from drafthouse.engine.tensorrt.profiles import CallShape, EngineShape, cache_rows
from drafthouse_build.config import parse_config
from drafthouse_build.decoder import export_decoder
from drafthouse_build.errors import BuildError
from drafthouse_build.quantize import quantize_weights
from drafthouse_build.tensorrt_engine import check_graph, write_graph
from drafthouse_build.tensorrt_graph import check_profiles, tensorrt_graph
from drafthouse_build.tensorrt_operators import problems
from drafthouse_build.vocabulary import Vocabulary
from drafthouse_build.weight_store import WeightStore
from fakes.tiny_llama import random_weights, tiny_config

CONTEXT_LEN = 40
VOCAB_SIZE = 100
ROWS = cache_rows(CONTEXT_LEN)
PRECISIONS = ("fp32", "fp16", "bf16")
FAMILY_NAMES = (
    *("llama-2", "llama-3", "smollm", "smollm3", "mistral", "qwen2", "qwen2-windows", "qwen3"),
    *("gemma-2", "gemma-3", "phi-3", "phi-3-longrope"),
)


def drawn(raw: Mapping[str, Any]) -> tuple[onnx.ModelProto, EngineShape]:
    """A graph with everything that the exporter may add: a vocabulary of another size, ids that are never proposed."""
    config = parse_config(raw)
    model = export_decoder(config, random_weights(raw), CONTEXT_LEN, Vocabulary.of(VOCAB_SIZE, set(range(90))))
    return model, EngineShape(config.num_layers, config.num_kv_heads, config.head_dim, VOCAB_SIZE, ROWS, 4, 16, 32)


def variant(model: onnx.ModelProto, precision: str = "fp32") -> onnx.ModelProto:
    return tensorrt_graph(model, precision, ROWS, None, WeightStore())


@pytest.fixture(scope="module")
def llama() -> tuple[onnx.ModelProto, EngineShape]:
    return drawn(tiny_config())


@pytest.mark.torch
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_familys_graph_keeps_to_the_documented_operators(name: str) -> None:
    model, shape = drawn(family_config(name))
    from fakes.tiny_families import FAMILIES

    assert set(FAMILY_NAMES) == set(FAMILIES), "a family without this check"
    for precision in PRECISIONS:
        graph = variant(model, precision)
        onnx.checker.check_model(graph, full_check=True)
        check_graph(graph, shape)
        types = {tensor.data_type for tensor in graph.graph.initializer if not tensor.name.startswith("logits.")}
        wanted = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
        assert types == {TensorProto.INT64, wanted}


def test_the_shipped_demo_shape_at_its_default_context() -> None:
    config = parse_config(tiny_config(max_position_embeddings=512))
    model = export_decoder(config, random_weights(tiny_config()), 512)
    shape = EngineShape(config.num_layers, config.num_kv_heads, config.head_dim, config.vocab_size, cache_rows(512), 8, 16, 64)
    check_graph(tensorrt_graph(model, "bf16", cache_rows(512), None, WeightStore()), shape)


def test_caches_are_static_and_scores_float32(llama: tuple[onnx.ModelProto, EngineShape]) -> None:
    graph = variant(llama[0], "bf16").graph
    values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
    for name in ("past_k_0", "present_v_2"):
        assert [dim.dim_param or dim.dim_value for dim in values[name].shape.dim] == ["B", 2, ROWS, 16]
        assert values[name].elem_type == TensorProto.BFLOAT16
    assert [dim.dim_param or dim.dim_value for dim in values["attn_mask"].shape.dim] == ["B", 1, "T", ROWS]
    assert values["logits"].elem_type == TensorProto.FLOAT


def family_config(name: str) -> dict[str, Any]:
    """config.json of the family's tiny model, with everything that transformers writes."""
    pytest.importorskip("transformers")
    from fakes.tiny_families import make_model

    reference = make_model(name)
    return {**reference.config.to_dict(), "architectures": [type(reference).__name__]}


def check_same_scores(model: onnx.ModelProto, shape: EngineShape) -> None:
    """Same inputs, a longer cache: the same scores and the same rows written."""
    random = np.random.default_rng(0)
    feeds = {
        "input_ids": random.integers(1, 90, 5),
        "position_ids": np.array([[23, 24, 25], [7, 8, 9]]),
        "write_indices": np.array([23, 7]),
        "unpack_indices": np.array([[0, 1, 2], [3, 4, 4]]),
        "pack_indices": np.array([0, 1, 2, 3, 4]),
    }
    mask = np.arange(ROWS) <= feeds["position_ids"][:, :, None]
    size = 2, shape.num_kv_heads, ROWS, shape.head_dim
    caches = {f"past_{name}": random.standard_normal(size).astype(np.float32) for name in shape.cache_names}
    results = []
    for graph, rows in ((model, CONTEXT_LEN), (variant(model), ROWS)):
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        cut = {name: value[:, :, :rows] for name, value in caches.items()}
        results.append(session.run(["logits", "present_k_0"], {**feeds, **cut, "attn_mask": mask[:, None, :, :rows]}))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1][:, :, :CONTEXT_LEN], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("overrides", [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}])
def test_the_variant_computes_what_the_graph_computes(overrides: dict[str, Any]) -> None:
    check_same_scores(*drawn(tiny_config(**overrides)))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["mistral", "gemma-2", "gemma-3", "phi-3-longrope"])
def test_windows_soft_caps_and_scaled_rotation_survive_the_longer_cache(name: str) -> None:
    check_same_scores(*drawn(family_config(name)))


def test_half_precision_is_close_and_keeps_what_is_masked(llama: tuple[onnx.ModelProto, EngineShape]) -> None:
    """fp16 on ONNX Runtime's CPU: the conversion is right up to rounding, and no id that may not be proposed can be."""
    model, shape = llama
    feeds: dict[str, Any] = {
        "input_ids": np.array([5, 9]),
        "position_ids": np.array([[0, 1]]),
        "write_indices": np.array([0]),
        "unpack_indices": np.array([[0, 1]]),
        "pack_indices": np.array([0, 1]),
        "attn_mask": (np.arange(ROWS) <= np.array([0, 1])[:, None])[None, None],
    }
    scores = {}
    for precision, dtype in (("fp32", np.float32), ("fp16", np.float16)):
        session = ort.InferenceSession(variant(model, precision).SerializeToString(), providers=["CPUExecutionProvider"])
        caches = {f"past_{name}": np.zeros((1, 2, ROWS, 16), dtype) for name in shape.cache_names}
        scores[precision] = session.run(["logits"], feeds | caches)[0]
    assert scores["fp16"].dtype == np.float32
    np.testing.assert_allclose(scores["fp16"][:, :90], scores["fp32"][:, :90], atol=0.05)
    assert (scores["fp16"][:, 90:] < -1e29).all()


def test_weights_beside_the_graph_are_converted_block_by_block(llama: tuple[onnx.ModelProto, EngineShape], tmp_path: Path) -> None:
    shape, model = llama[1], onnx.ModelProto()
    model.CopyFrom(llama[0])  # saving moves the weights out of it
    onnx.save_model(model, str(tmp_path / "drawn.onnx"), save_as_external_data=True, location="drawn.onnx.data", size_threshold=64)
    write_graph(tmp_path / "drawn.onnx", tmp_path / "graph.onnx", "fp16", shape, is_large=True)
    assert (tmp_path / "graph.onnx.data").stat().st_size > 10_000
    loaded = onnx.load_model(str(tmp_path / "graph.onnx"))
    inside = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in variant(llama[0], "fp16").graph.initializer}
    for tensor in loaded.graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), inside[tensor.name]), tensor.name


def _node(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def _unknown_operator(model: onnx.ModelProto) -> None:
    _node(model, "Sigmoid").op_type = "HardSigmoid"


def _soft_cap(model: onnx.ModelProto) -> None:
    _node(model, "Attention").attribute.append(helper.make_attribute("softcap", 30.0))


def _past(model: onnx.ModelProto) -> None:
    _node(model, "Attention").input.extend(["past_k_0", "past_v_0"])


def _axis(model: onnx.ModelProto) -> None:
    node = _node(model, "TensorScatter")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 2))


def _circular(model: onnx.ModelProto) -> None:
    _node(model, "TensorScatter").attribute.append(helper.make_attribute("mode", "circular"))


def _free_length(model: onnx.ModelProto) -> None:
    next(value for value in model.graph.input if value.name == "past_k_1").type.tensor_type.shape.dim[2].dim_param = "S"


def _hidden_cache(model: onnx.ModelProto) -> None:
    kept = [value for value in model.graph.output if value.name != "present_v_1"]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 25


def _integers(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "final_norm.scale")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(tensor.dims, np.float64), tensor.name))


def _foreign_attribute(model: onnx.ModelProto) -> None:
    _node(model, "RotaryEmbedding").attribute.append(helper.make_attribute("scale", 2.0))


MUTATIONS: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (_unknown_operator, "HardSigmoid: not an operator of TensorRT's importer"),
    (_soft_cap, "Attention: the attribute softcap is not supported"),
    (_past, "Attention: the input past_key is not supported"),
    (_axis, "TensorScatter: axis must be -2"),
    (_circular, "mode linear"),
    (_free_length, "past_k_1 must have static heads, length and head size"),
    (_hidden_cache, "the updated cache an output, of the network"),
    (_opset, "opset 25"),
    (_integers, "types do not fit"),
    (_foreign_attribute, "scale is not an attribute of opset 24"),
]


@pytest.mark.parametrize(("mutate", "message"), MUTATIONS, ids=[mutate.__name__ for mutate, _ in MUTATIONS])
def test_a_graph_outside_the_table_is_refused_by_name(
    llama: tuple[onnx.ModelProto, EngineShape], mutate: Callable[[onnx.ModelProto], None], message: str
) -> None:
    graph = variant(llama[0])
    assert problems(graph) == []
    mutate(graph)
    assert any(message in problem for problem in problems(graph)), problems(graph)
    with pytest.raises(BuildError, match="UNSUPPORTED field=graph"):
        check_graph(graph, llama[1])


def test_eight_bit_weights_of_the_cpu_are_refused(llama: tuple[onnx.ModelProto, EngineShape]) -> None:
    assert any("MatMulNBits" in problem for problem in problems(quantize_weights(variant(llama[0]))))


def test_a_profile_that_misses_the_graph_is_refused(llama: tuple[onnx.ModelProto, EngineShape]) -> None:
    graph, shape = variant(llama[0]), llama[1]
    assert check_profiles(graph, shape) == []
    for wrong in (
        replace(shape, rows=ROWS + 64),
        replace(shape, head_dim=32),
        replace(shape, num_layers=2),
        replace(shape, num_kv_heads=3),
    ):
        assert check_profiles(graph, wrong)
        with pytest.raises(BuildError, match="UNSUPPORTED field=profiles"):
            check_graph(graph, wrong)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "M"
    assert "input_ids[0] is M" in check_profiles(graph, shape)[0]


def test_profiles_hold_a_decoding_round_and_a_prefill_chunk(llama: tuple[onnx.ModelProto, EngineShape]) -> None:
    decode, prefill = llama[1].profiles()
    assert (decode.least, decode.most) == (CallShape(1, 1, 1), CallShape(4, 16, 64))
    assert (prefill.least, prefill.most) == (CallShape(1, 17, 1), CallShape(4, 32, 128))


def test_four_bit_weights_need_model_optimizer_and_keep_to_the_table(tmp_path: Path) -> None:
    pytest.importorskip("modelopt.onnx", reason="NVIDIA's Model Optimizer is not installed", exc_type=ImportError)
    from drafthouse_build import tensorrt_quantize

    raw = tiny_config(hidden_size=64, intermediate_size=128, num_attention_heads=4)
    model, shape = drawn(raw)
    file = tmp_path / "graph.onnx"
    onnx.save_model(variant(model, "fp16"), str(file))
    tensorrt_quantize.quantize_weights(file)
    result = onnx.load_model(str(file))
    check_graph(result, shape)
    assert sum(tensor.data_type == TensorProto.INT4 for tensor in result.graph.initializer) == 4 * 3
