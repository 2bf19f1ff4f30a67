"""Many small arrays in one tensor.

Every tensor of a call between models costs up to 0.1 ms when the caches are cold, as they are after each verification
(measured: six tensors each way 1.3 ms, one tensor 0.8 ms per call). So the sections of a message, whose names, types and
ranks stand in `schema.py`, travel as one INT64 vector: first the dims of every section, then their elements in order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.errors import ClientError, invalid
from drafthouse.triton.schema import TensorSpec

Array = NDArray[Any]
Tensors = dict[str, Array]

ABSENT = -1  # all dims of an optional section that is not there
_DTYPES: Mapping[str, type[np.generic]] = {
    "INT64": np.int64,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "UINT8": np.uint8,
    "FP32": np.float32,
}


Section = tuple[str, str, int, int, tuple[int, ...]]  # name, dtype, begin, end, shape
Layout = tuple[list[Section], int]  # the sections that are there, and the length of the message
_LAYOUTS_KEPT = 1024  # rounds of one batch have the same few; this bounds what a stranger can make us keep


class Envelope:
    """Packs and unpacks messages of one kind."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._num_dims = sum(len(spec.dims) for spec in specs)
        self._layouts: dict[tuple[int, ...], Layout] = {}

    def seal(self, sections: Mapping[str, Array]) -> NDArray[np.int64]:
        """One message [-1] from arrays by name; a section that is not given must be optional (KeyError otherwise)."""
        dims: list[int] = []
        parts: list[tuple[str, Array]] = []
        for spec in self._specs:
            array = sections.get(spec.name) if spec.optional else sections[spec.name]
            if array is None:
                dims += [ABSENT] * len(spec.dims)
            else:
                dims += array.shape
                parts.append((spec.dtype, array))
        message = np.empty(len(dims) + sum(array.size for _, array in parts), np.int64)
        message[: len(dims)] = dims
        begin = len(dims)
        for dtype, array in parts:
            end = begin + array.size
            message[begin:end] = _to_integers(array, dtype).reshape(-1)  # the assignment widens to int64
            begin = end
        return message

    def unseal(self, message: Array) -> Tensors:
        """The inverse of `seal`. Raises ClientError for a vector that is not such a message."""
        if message.dtype != np.int64 or message.ndim != 1:
            raise _no_message(f"{message.dtype} {list(message.shape)}")
        dims = tuple(message[: self._num_dims].tolist())
        layout = self._layouts.get(dims)
        if layout is None:
            layout = _lay_out(self._specs, dims)
            if len(self._layouts) < _LAYOUTS_KEPT:
                self._layouts[dims] = layout
        sections, size = layout
        if size != len(message):
            raise _no_message(f"{len(message)} elements")
        return {name: _from_int64(message[begin:end], dtype).reshape(shape) for name, dtype, begin, end, shape in sections}


def _lay_out(specs: Sequence[TensorSpec], dims: tuple[int, ...]) -> Layout:
    """Where each section lies. Raises ClientError for dims that contradict the schema."""
    sections: list[Section] = []
    begin = len(dims)
    for spec in specs:
        shape, dims = dims[: len(spec.dims)], dims[len(spec.dims) :]
        if spec.optional and shape == (ABSENT,) * len(spec.dims):
            continue
        if len(shape) != len(spec.dims) or not all(map(_fits, shape, spec.dims)):
            raise _no_message(f"{spec.name} {list(shape)}")
        end = begin + math.prod(shape)
        sections.append((spec.name, spec.dtype, begin, end, shape))
        begin = end
    return sections, begin


def _fits(given: int, wanted: int) -> bool:
    return given >= 0 and wanted in (given, -1)


def _no_message(what: str) -> ClientError:
    return invalid("message", what, "a message of this server's own models")


def _to_integers(array: Array, dtype: str) -> Array:
    if array.dtype != _DTYPES[dtype]:
        array = array.astype(_DTYPES[dtype])
    if dtype == "UINT64":
        return array.view(np.int64)
    return np.ascontiguousarray(array).view(np.int32) if dtype == "FP32" else array


def _from_int64(values: Array, dtype: str) -> Array:
    if dtype == "UINT64":
        return values.view(np.uint64)
    if dtype == "FP32":
        return values.astype(np.int32).view(np.float32)
    return values.astype(_DTYPES[dtype], copy=False)
