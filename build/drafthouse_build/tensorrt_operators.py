"""What TensorRT says it can import, and whether a graph keeps to it: the build refuses by name what the builder would refuse in its way.

The table is taken from onnx-tensorrt's `docs/operators.md` for TensorRT 10.15 ("Supported ONNX Operators", opset 9 to 24), read on
2026-11-20 and compared with the table for 11.2, which supports the same of what is listed here; for the cache also from
the page "KVCacheUpdate" of NVIDIA's operator documentation (10.16), for the rotation from "RotaryEmbedding", for the mask from
"Attention". Only operators that a graph of this project can have are listed: an operator that is not here is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

OPSETS = range(9, 25)
_LARGEST_KEPT = 64  # elements of an initialiser that shape inference needs: shapes, axes, sizes
_RANK = 4

_NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.INT8: "INT8",
    TensorProto.INT4: "INT4",
    TensorProto.UINT8: "UINT8",
    TensorProto.FLOAT8E4M3FN: "FP8",
}
_FLOATS = ("FP32", "FP16", "BF16")
_NUMBERS = (*_FLOATS, "INT32", "INT64")
_ANY = (*_NUMBERS, "BOOL")
_NO_PAST = ("past_key", "past_value", "nonpad_kv_seqlen")


@dataclass(frozen=True)
class Operator:
    """What is supported of one operator: the types of its data, and what may not be there."""

    types: tuple[str, ...]
    forbidden_inputs: tuple[str, ...] = ()
    forbidden_attributes: tuple[str, ...] = ()  # with another value than their default
    most_outputs: int = 1


OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(_NUMBERS),
    "And": Operator(("BOOL",)),
    "Attention": Operator((*_FLOATS, "INT8", "FP8"), forbidden_inputs=_NO_PAST, forbidden_attributes=("qk_matmul_output_mode", "softcap")),
    "Cast": Operator((*_ANY, "UINT8")),
    "Concat": Operator(_ANY),
    "Constant": Operator((*_ANY, "FP8", "INT4")),
    "DequantizeLinear": Operator(("INT8", "FP8", "INT4", *_FLOATS)),
    "Div": Operator(_NUMBERS),
    "Equal": Operator(_NUMBERS),
    "Expand": Operator(_ANY),
    "Gather": Operator(_ANY),
    "Gelu": Operator((*_FLOATS, "INT8", "INT32", "INT64")),
    "Gemm": Operator(_FLOATS),
    "Greater": Operator(_NUMBERS),
    "GreaterOrEqual": Operator(_NUMBERS),
    "Identity": Operator(_ANY),
    "Less": Operator(_NUMBERS),
    "LessOrEqual": Operator(_NUMBERS),
    "MatMul": Operator(_FLOATS),
    "Max": Operator(_NUMBERS),
    "Min": Operator(_NUMBERS),
    "Mul": Operator(_NUMBERS),
    "Neg": Operator(_NUMBERS),
    "Not": Operator(("BOOL",)),
    "Or": Operator(("BOOL",)),
    "Pow": Operator(_NUMBERS),
    "QuantizeLinear": Operator((*_FLOATS, "INT8", "FP8", "INT4")),
    "RMSNormalization": Operator(_FLOATS),
    "Range": Operator(_NUMBERS),
    "Reshape": Operator(_ANY),
    "RotaryEmbedding": Operator(_FLOATS),
    "Shape": Operator(_ANY),
    "Sigmoid": Operator(_FLOATS),
    "Slice": Operator(_ANY),
    "Softmax": Operator(_FLOATS),
    "Split": Operator(_ANY, most_outputs=1 << 16),
    "Sqrt": Operator(_FLOATS),
    "Squeeze": Operator(_ANY),
    "Sub": Operator(_NUMBERS),
    "Tanh": Operator(_FLOATS),
    "TensorScatter": Operator((*_FLOATS, "INT32")),
    "Transpose": Operator(_ANY),
    "Unsqueeze": Operator(_ANY),
    "Where": Operator(_ANY),
}
# Inputs that say where, not what: always integers, whatever the data.
_INDEX_INPUTS = {
    "Gather": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "TensorScatter": (2,),
    "Unsqueeze": (1,),
    "Expand": (1,),
}
# Outputs or inputs of other types than the table means: masks, conditions, shapes, zero points.
_OTHER_INPUTS = {"Attention": (3,), "RotaryEmbedding": (3,), "Where": (0,)}
_OTHER_OUTPUTS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Shape")


def problems(model: onnx.ModelProto) -> list[str]:
    """What TensorRT does not document as supported in `model`, one line each, naming node, operator and reason."""
    found = [f"opset {opset.version}: TensorRT imports 9 to 24" for opset in model.opset_import if opset.version not in OPSETS]
    try:
        types, ranks = _inferred(model)
    except onnx.shape_inference.InferenceError as error:
        return [*found, f"types do not fit: {error}"]
    for node in model.graph.node:
        found += [f"{node.name or node.output[0]}: {node.op_type}: {reason}" for reason in _node_problems(node, types, ranks)]
    return found + [f"{name}: {reason}" for name, reason in _cache_problems(model)]


def _node_problems(node: onnx.NodeProto, types: Mapping[str, int], ranks: Mapping[str, int]) -> Iterator[str]:
    operator = OPERATORS.get(node.op_type)
    if node.domain not in ("", "ai.onnx") or operator is None:
        yield "not an operator of TensorRT's importer"
        return
    schema = onnx.defs.get_schema(node.op_type, OPSETS[-1])
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    for attribute in node.attribute:
        if attribute.name not in defaults:
            yield f"{attribute.name} is not an attribute of opset {OPSETS[-1]}"
        elif attribute.name in operator.forbidden_attributes and helper.get_attribute_value(attribute) != _value(defaults[attribute.name]):
            yield f"the attribute {attribute.name} is not supported"
    for place, name in enumerate(node.input):
        if name and place < len(schema.inputs) and schema.inputs[place].name in operator.forbidden_inputs:
            yield f"the input {schema.inputs[place].name} is not supported"
    if sum(map(bool, node.output)) > operator.most_outputs:
        yield f"only {operator.most_outputs} output(s) are supported"
    yield from _type_problems(node, operator, types)
    yield from _rank_problems(node, ranks)


def _type_problems(node: onnx.NodeProto, operator: Operator, types: Mapping[str, int]) -> Iterator[str]:
    ignored = (*_INDEX_INPUTS.get(node.op_type, ()), *_OTHER_INPUTS.get(node.op_type, ()))
    values = [name for place, name in enumerate(node.input) if name and place not in ignored]
    values += [] if node.op_type in _OTHER_OUTPUTS else [name for name in node.output if name]
    for name in values:
        if name not in types:
            yield f"the type of {name} cannot be inferred"
        elif _NAMES.get(types[name], "") not in operator.types:
            yield f"{name} has the type {_NAMES.get(types[name], types[name])}, supported are {', '.join(operator.types)}"
    if node.op_type == "RotaryEmbedding" and len(node.input) > 3 and types.get(node.input[3]) != TensorProto.INT64:
        yield "position_ids must be INT64"


def _rank_problems(node: onnx.NodeProto, ranks: Mapping[str, int]) -> Iterator[str]:
    must_be_4d = {"Attention": node.input[:4], "TensorScatter": node.input[:2], "RotaryEmbedding": node.input[:1]}
    for name in must_be_4d.get(node.op_type, ()):
        if name and ranks.get(name) != _RANK:
            yield f"{name} must be 4D"


def _cache_problems(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """A cache is an input of the network with static heads, length and head size; what is written is an output of the network."""
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "TensorScatter":
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("axis", -2) != -2 or attributes.get("mode", b"linear") != b"linear":
            yield node.name, "TensorScatter: axis must be -2 and mode linear"
        if node.input[0] not in inputs or node.output[0] not in outputs:
            yield node.name, "TensorScatter: the cache must be an input, and the updated cache an output, of the network"
            continue
        dims = inputs[node.input[0]].type.tensor_type.shape.dim
        if any(dim.dim_value < 1 for dim in dims[1:]):
            yield node.name, f"TensorScatter: {node.input[0]} must have static heads, length and head size"


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, int]]:
    """Type and rank of every value, from the graph alone: weights are declared, not carried along."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(_without_weights(model))
    inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=False, data_prop=True)
    types, ranks = {}, {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        types[value.name] = value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    for tensor in skeleton.graph.initializer:
        types[tensor.name], ranks[tensor.name] = tensor.data_type, len(tensor.dims)
    return types, ranks


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto(ir_version=model.ir_version)
    result.opset_import.extend(model.opset_import)
    result.graph.name = model.graph.name
    result.graph.node.extend(model.graph.node)
    result.graph.input.extend(model.graph.input)
    result.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        num_elements = 1
        for dim in tensor.dims:
            num_elements *= dim
        if num_elements <= _LARGEST_KEPT and tensor.data_location != TensorProto.EXTERNAL:
            result.graph.initializer.append(tensor)
        else:
            result.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return result


def _value(attribute: onnx.AttributeProto) -> object:
    return helper.get_attribute_value(attribute) if attribute.type else 0
