"""What the engine needs from a runtime: run the network on a range of cache slots. ONNX Runtime fills it here; TensorRT can."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class BoundStep(Protocol):
    """Inputs, outputs and cache of one network call, bound once and used again: fill the inputs, ``run``, read ``logits``.

    Steps of one session may share buffers: what is written into one is lost when another is filled or run.

    Row b works on cache slot ``first_slot + b``. ``write_indices[b] + T`` must not exceed S, and every mask row must see at least its
    own cache row: the network turns an empty row into NaN.
    """

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """``[B, T]``"""
        ...

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """``[B, T]``, below S"""
        ...

    @property
    def write_indices(self) -> NDArray[np.int64]:
        """``[B]``, cache row of each row's first token"""
        ...

    @property
    def attn_mask(self) -> NDArray[np.bool_]:
        """``[B, 1, T, S]``, which cache rows each token sees"""
        ...

    @property
    def logits(self) -> NDArray[np.float32]:
        """``[B, T, V]``, valid until the session's next ``run``"""
        ...

    def run(self) -> None:
        """Runs the network once, updating the cache in place; raises ``EngineError`` when the runtime fails."""
        ...


class Session(Protocol):
    """A loaded network and the memory of its key/value cache, ``[slots, H_kv, S, D_h]`` per layer and side."""

    @property
    def pool_bytes(self) -> int:
        """Size of the cache; pages that no request has used yet take no memory."""
        ...

    def bind(self, first_slot: int, num_rows: int, num_tokens: int) -> BoundStep:
        """The call on ``num_rows`` slots from ``first_slot`` with ``num_tokens`` tokens each (prepared once, then kept)."""
        ...

    def copy_rows(self, slot: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        """Copies cache rows of one slot, all layers and sides, as if every source were read before any destination is written."""
        ...

    def clear_slot(self, slot: int) -> None:
        """Zeroes one slot's cache: a number that is not finite would reach even the tokens that do not see its row."""
        ...
