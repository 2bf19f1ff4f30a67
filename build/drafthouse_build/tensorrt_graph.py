"""The graph as TensorRT takes it: the same nodes, with a static cache length and the plan's own number type.

A strongly typed network runs in the types that its graph has, so a bf16 plan needs a bf16 graph. And TensorRT's cache-update layer needs
a cache whose length is no variable. Nothing else of the packed layout is in its way: token, row and place counts are free dimensions of
`Gather`, `Reshape` and `MatMul`, and attention sees an ordinary rectangle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from drafthouse.engine.tensorrt.profiles import CallShape, EngineShape, Profile
from drafthouse_build.errors import BuildError
from drafthouse_build.weight_store import WeightStore, read_tensor, spans

_TYPES: dict[str, tuple[int, np.dtype[np.generic]]] = {
    "fp32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
_LENGTH = "S"
_COLUMNS = ".all_columns"  # numbers of all cache rows, from which sliding windows are made
_LOGITS = "logits"


def tensorrt_graph(model: onnx.ModelProto, precision: str, rows: int, folder: Path | None, store: WeightStore) -> onnx.ModelProto:
    """A copy of `model` (float32, as `export_decoder` draws it) in `precision`, with caches of `rows` rows; its weights go to `store`.

    `folder` holds the model's external weights, where it has any. The scores stay float32 from the last product on: soft cap, penalties
    and sampling need the digits.
    """
    element_type, dtype = _TYPES[precision]
    result = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    result.opset_import.extend(model.opset_import)
    result.metadata_props.extend(model.metadata_props)
    result.graph.name = model.graph.name
    result.graph.input.extend(_fixed(value, element_type, rows) for value in model.graph.input)
    result.graph.output.extend(_fixed(value, element_type, rows) for value in model.graph.output)
    result.graph.node.extend(_nodes(model, precision))
    for tensor in model.graph.initializer:
        _copy_weight(result.graph, tensor, dtype, rows, folder, store)
    return result


def check_profiles(model: onnx.ModelProto, shape: EngineShape) -> list[str]:
    """What of the graph's inputs the profiles do not cover, one line each."""
    found: list[str] = []
    for profile in shape.profiles():
        least, best, most = (shape.inputs(size) for size in (profile.least, profile.best, profile.most))
        names = [value.name for value in model.graph.input]
        found += [f"profile {profile.name}: {name} is in one of profile and graph only" for name in sorted(set(names) ^ least.keys())]
        sizes = {"B": ("rows", profile), "T": ("places", profile), "N": ("packed", profile)}
        for value in model.graph.input:
            if value.name not in least:
                continue
            ranges = list(zip(least[value.name], best[value.name], most[value.name], strict=True))
            dims = value.type.tensor_type.shape.dim
            if len(dims) != len(ranges):
                found.append(f"profile {profile.name}: {value.name} has {len(dims)} dimensions, not {len(ranges)}")
                continue
            for place, (dim, (low, middle, high)) in enumerate(zip(dims, ranges, strict=True)):
                allowed = _range(dim, sizes)
                if allowed is None or (low, middle, high) != allowed:
                    spelt = dim.dim_param or dim.dim_value
                    found.append(f"profile {profile.name}: {value.name}[{place}] is {spelt}, the profile has {low}, {middle}, {high}")
    return found


def _range(dim: onnx.TensorShapeProto.Dimension, sizes: dict[str, tuple[str, Profile]]) -> tuple[int, int, int] | None:
    """Least, best and largest size of a dimension under a profile; None for a free dimension that no profile has."""
    if not dim.dim_param:
        return dim.dim_value, dim.dim_value, dim.dim_value
    if dim.dim_param not in sizes:
        return None
    name, profile = sizes[dim.dim_param]
    calls: list[CallShape] = [getattr(profile, part) for part in ("least", "best", "most")]
    low, best, high = (int(getattr(call, name)) for call in calls)
    return (low, best, high) if low <= best <= high else None


def _fixed(value: onnx.ValueInfoProto, element_type: int, rows: int) -> onnx.ValueInfoProto:
    """`value` with a static length, and in the plan's type where it is a cache."""
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    tensor = result.type.tensor_type
    for dim in tensor.shape.dim:
        if dim.dim_param == _LENGTH:
            dim.dim_value = rows
    if tensor.elem_type == TensorProto.FLOAT and value.name != _LOGITS:
        tensor.elem_type = element_type
    return result


def _nodes(model: onnx.ModelProto, precision: str) -> Iterator[onnx.NodeProto]:
    """The nodes, and a cast to float32 behind the product that the scores come from."""
    last = next((node.output[0] for node in model.graph.node if node.op_type == "MatMul" and _is_score(node.output[0])), None)
    if last is None:
        raise BuildError("UNSUPPORTED", "graph", "no product gives the logits", "a graph of this version")
    for node in model.graph.node:
        if precision == "fp32" or node.output[0] != last:
            yield node
            continue
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.name = product.output[0] = f"{last}.unrounded"
        yield product
        yield helper.make_node("Cast", [product.output[0]], [last], name=last, to=TensorProto.FLOAT)


def _is_score(name: str) -> bool:
    return name == _LOGITS or name.startswith(f"{_LOGITS}.")


def _copy_weight(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, dtype: np.dtype[np.generic], rows: int, folder: Path | None, store: WeightStore
) -> None:
    if tensor.name.endswith(_COLUMNS):
        store.add(graph, tensor.name, np.arange(rows))
    elif tensor.data_type != TensorProto.FLOAT or _is_score(tensor.name):
        store.add(graph, tensor.name, np.asarray(read_tensor(tensor, folder)))
    else:
        values = read_tensor(tensor, folder)
        if values.ndim < 2:
            store.add(graph, tensor.name, _converted(values, dtype))
            return
        # As plain numbers: bfloat16 is none of numpy's own types, so its arrays have no buffer.
        parts = (_converted(values[span], dtype).view(f"u{dtype.itemsize}") for span in spans(len(values), max(1, values[:1].nbytes)))
        store.add_blocks(graph, tensor.name, dtype, values.shape, parts)


def _converted(values: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """`values` in the plan's type; what lies outside its range becomes its largest number, not infinity."""
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    numbers = np.asarray(values, np.float32)
    low, high = np.float32(limits.min), np.float32(limits.max)
    return np.where(np.isfinite(numbers), np.clip(numbers, low, high), numbers).astype(dtype)
