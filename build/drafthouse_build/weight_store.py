"""Where a graph's weights go while it is drawn: into the graph itself, or block by block into a file beside it.

protobuf stops at 2 GB, and a model that is put together in memory needs several times its own size. So a large model's weights are
written to `model.onnx.data` as they are read, a block of at most `BLOCK_BYTES` at a time, and the graph only says where they lie (ONNX
external data). What a build holds in memory then does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

BLOCK_BYTES = 1 << 25
_ALIGNMENT = 4096  # of a tensor in the file, so that it can be mapped into memory

# Is told how many bytes were written since it was last called.
Advance = Callable[[int], None]


def _ignore(_: int) -> None:
    return None


class WeightStore:
    """Adds tensors to graphs. With a `file`, large ones go there; it is complete when the context ends."""

    def __init__(self, file: Path | None = None, advance: Advance = _ignore) -> None:
        self.file = file
        self._advance = advance
        self._stream = None if file is None else file.open("wb")

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, graph: onnx.GraphProto, name: str, value: NDArray[np.generic]) -> None:
        """Adds a small initialiser, with a single copy of its data, to `graph` itself."""
        tensor = _declare(graph, name, value.dtype, value.shape)
        tensor.raw_data = value.tobytes()
        self._advance(value.nbytes)

    def add_blocks(
        self, graph: onnx.GraphProto, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], blocks: Iterable[NDArray[np.generic]]
    ) -> None:
        """Adds a large initialiser that is given in blocks of whole rows."""
        tensor = _declare(graph, name, dtype, shape)
        if self._stream is None or self.file is None:
            tensor.raw_data = b"".join(self._counted(blocks))
            return
        self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT))
        begin = self._stream.tell()
        for block in self._counted(blocks):
            self._stream.write(block)
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", self.file.name), ("offset", begin), ("length", self._stream.tell() - begin)):
            tensor.external_data.add(key=key, value=str(entry))

    def _counted(self, blocks: Iterable[NDArray[np.generic]]) -> Iterator[memoryview]:
        for block in blocks:
            yield np.ascontiguousarray(block).data
            self._advance(block.nbytes)


def read_tensor(tensor: TensorProto, folder: Path | None) -> NDArray[np.generic]:
    """The values of an initialiser; those in a file of `folder` are mapped, not read."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if folder is None:
        raise ValueError(f"{tensor.name} lies in a file of an unknown folder")
    return np.memmap(folder / entries["location"], dtype, "r", int(entries["offset"]), tuple(tensor.dims))


def spans(count: int, item_bytes: int) -> Iterator[slice]:
    """Cuts 0 … count - 1 into slices of at most `BLOCK_BYTES`, at least one item each."""
    step = max(1, BLOCK_BYTES // max(1, item_bytes))
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def _declare(graph: onnx.GraphProto, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> TensorProto:
    tensor: TensorProto = graph.initializer.add()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor.dims.extend(shape)
    return tensor
