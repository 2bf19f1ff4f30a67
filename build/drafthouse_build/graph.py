"""A thin layer over `onnx.helper` that names values after the weights they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from drafthouse_build.weight_store import WeightStore

Dim = int | str

OPSET = 24
IR_VERSION = 11


class GraphBuilder:
    """Adds nodes and initialisers in the order of execution, which is also their order in the file.

    `model` is the finished model at any time. It is filled in place: `onnx.helper` would copy every weight three times.
    """

    def __init__(self, name: str, store: WeightStore) -> None:
        self.model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="drafthouse_build")
        self.model.opset_import.append(helper.make_opsetid("", OPSET))
        self._graph = self.model.graph
        self._graph.name = name
        self._store = store

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Adds a small initialiser and returns its name."""
        self._store.add(self._graph, name, value)
        return name

    def numbers(self, name: str, *values: int) -> str:
        """Adds an int64 vector, such as a shape, and returns its name."""
        return self.constant(name, np.asarray(values, np.int64))

    def number(self, name: str, value: float) -> str:
        """Adds a float32 scalar and returns its name."""
        return self.constant(name, np.asarray(value, np.float32))

    def weight(self, name: str, shape: tuple[int, ...], blocks: Iterable[NDArray[np.float32]]) -> str:
        """Adds a large float32 initialiser, given in blocks of whole rows, and returns its name."""
        self._store.add_blocks(self._graph, name, np.dtype(np.float32), shape, blocks)
        return name

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: int | float | str) -> str:
        """Adds a node with one output and returns the output's name."""
        node = helper.make_node(op_type, list(inputs), [output], name=output)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._graph.node.append(node)
        return output

    def split(self, source: str, sizes: Sequence[int], outputs: Sequence[str], axis: int) -> None:
        """Cuts `source` along `axis` into pieces of the given sizes."""
        lengths = self.numbers(f"{outputs[0]}.split_sizes", *sizes)
        self._graph.node.append(helper.make_node("Split", [source, lengths], list(outputs), name=f"{outputs[0]}.split", axis=axis))

    def reshape(self, source: str, output: str, *shape: int) -> str:
        """Adds a `Reshape` (0 keeps a dimension, -1 takes what is left) and returns its output's name."""
        return self.node("Reshape", [source, self.numbers(f"{output}.shape", *shape)], output)

    def unsqueeze(self, source: str, output: str, *axes: int) -> str:
        """Adds dimensions of size one and returns the output's name."""
        return self.node("Unsqueeze", [source, self.numbers(f"{output}.axes", *axes)], output)

    def transpose(self, source: str, output: str, permutation: Sequence[int]) -> str:
        """Adds a `Transpose` and returns its output's name."""
        self._graph.node.append(helper.make_node("Transpose", [source], [output], name=output, perm=list(permutation)))
        return output

    def add_input(self, name: str, element_type: int, shape: Sequence[Dim]) -> None:
        """Declares an input of the graph; a dimension that is a name is free."""
        self._graph.input.append(helper.make_tensor_value_info(name, element_type, list(shape)))

    def describe(self, key: str, value: str) -> None:
        """Adds an entry to the model's metadata."""
        self.model.metadata_props.add(key=key, value=value)

    def add_output(self, name: str, shape: Sequence[Dim]) -> None:
        """Declares the float32 value `name` an output of the graph."""
        self._graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
