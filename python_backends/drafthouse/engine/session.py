"""What the engine needs from a runtime: run the network on a range of cache slots. ONNX Runtime fills it, and TensorRT."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drafthouse.sampling.choose import Ban, Choices, FloatArray, IntArray, Segment

# ``[N, V]``, float32: an array of the runtime's own kind, on its own device. It can be cut into rows; all else is the chooser's.
Logits = Any


class TokenChooser(Protocol):
    """Chooses tokens where the logits are; see ``sampling.choose.Chooser``, whose rules all of them keep."""

    def choose(
        self, logits: Logits, segments: Sequence[Segment], num_candidates: int = 0, bans: Sequence[Ban] = (), with_logprobs: bool = True
    ) -> Choices:
        """Chooses at every node of ``logits``; the segments' nodes come in the order of the rows."""
        ...

    def log_probs_of(self, logits: Logits, token_ids: IntArray) -> FloatArray:
        """Natural log-softmax ``[n]`` at one token id per row."""
        ...

    def join(self, parts: Sequence[Logits]) -> Logits:
        """The rows of all ``parts``, one after the other."""
        ...


class BoundStep(Protocol):
    """Inputs, outputs and cache of one network call, bound once and used again: fill the inputs, ``run``, read ``logits``.

    Steps of one session may share buffers: what is written into one is lost when another is bound, filled or run.

    Row b works on cache slot ``first_slot + b``. The N tokens of all rows are packed; attention has them in a rectangle of B rows and T
    places. ``write_indices[b] + T`` must not exceed S', and every mask row must see at least its own cache row: the network turns an
    empty row into NaN. A place without a token computes with the one that ``unpack_indices`` names, and writes that into the cache.
    """

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """``[N]``"""
        ...

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """``[B, T]``, below S'"""
        ...

    @property
    def write_indices(self) -> NDArray[np.int64]:
        """``[B]``, cache row of each row's first token"""
        ...

    @property
    def attn_mask(self) -> NDArray[np.bool_]:
        """``[B, 1, T, S']``, which cache rows each token sees: S' of S, see ``Session.resize``"""
        ...

    @property
    def unpack_indices(self) -> NDArray[np.int64]:
        """``[B, T]``, the packed token at each place, below N"""
        ...

    @property
    def pack_indices(self) -> NDArray[np.int64]:
        """``[N]``, the place ``b * T + t`` of each packed token"""
        ...

    @property
    def logits(self) -> Logits:
        """``[N, V]``, for the session's chooser, valid until the session's next ``run``"""
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

    def make_chooser(self) -> TokenChooser:
        """Chooses from this session's logits."""
        ...

    def resize(self, num_rows: int) -> None:
        """Calls bound from now on work with the first ``num_rows`` (S') cache rows of every slot; what lies behind them is lost.

        For a runtime that reads all of S' whatever the mask says. One that does not may ignore this, and keep S' = S.
        """
        ...

    def bind(self, first_slot: int, num_rows: int, num_tokens: int, num_packed: int) -> BoundStep:
        """The call on ``num_rows`` slots from ``first_slot``, ``num_tokens`` places each, for ``num_packed`` tokens in all."""
        ...

    def copy_rows(self, slot: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        """Copies cache rows of one slot, all layers and sides, as if every source were read before any destination is written."""
        ...

    def clear_slot(self, slot: int, first_row: int = 0) -> None:
        """Zeroes one slot's cache from ``first_row`` on: one that is not finite would reach even tokens that do not see its row."""
        ...
