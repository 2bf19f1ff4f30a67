"""A thin layer over `onnx.helper` that names values after the weights they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Dim = int | str

OPSET = 24
IR_VERSION = 11


@dataclass
class GraphBuilder:
    """Collects nodes and initialisers in the order of execution, which is also their order in the file."""

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Adds an initialiser and returns its name."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: int | float) -> str:
        """Adds a node with one output and returns the output's name."""
        node = helper.make_node(op_type, list(inputs), [output], name=output)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return output

    def split(self, source: str, sizes: Sequence[int], outputs: Sequence[str], axis: int) -> None:
        """Cuts `source` along `axis` into pieces of the given sizes."""
        lengths = self.constant(f"{outputs[0]}.split_sizes", np.asarray(sizes, np.int64))
        self.nodes.append(helper.make_node("Split", [source, lengths], list(outputs), name=f"{outputs[0]}.split", axis=axis))

    def transpose(self, source: str, output: str, permutation: Sequence[int]) -> str:
        """Adds a `Transpose` and returns its output's name."""
        self.nodes.append(helper.make_node("Transpose", [source], [output], name=output, perm=list(permutation)))
        return output

    def add_input(self, name: str, element_type: int, shape: Sequence[Dim]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, element_type, list(shape)))
        return name

    def add_output(self, name: str, shape: Sequence[Dim]) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def build(self) -> onnx.ModelProto:
        """The finished model in opset 24."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="drafthouse_build")
