"""A drafter speaks in the target's token ids, whatever the sizes that the two checkpoints' vocabularies were padded to."""

from __future__ import annotations

import hashlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from drafthouse_build.checkpoint import FloatArray

# Below every logit that a network computes, finite in float32 and after division by any temperature in use.
_NEVER = np.float32(-1e30)


@dataclass(frozen=True)
class Vocabulary:
    """The ids that an engine takes and gives.

    `size` is the target's vocabulary size. Ids from the checkpoint's own size up to it are taken (as a token of all zeros: it says
    nothing) and never given; so are those that are not in `proposable`, which the two tokenizers do not share or which only pad.
    """

    size: int
    proposable: frozenset[int]

    @staticmethod
    def of(size: int, shared: AbstractSet[int]) -> Vocabulary:
        """The vocabulary of a drafter whose tokenizer shares these ids with that of a target of `size` ids."""
        return Vocabulary(size, frozenset(token for token in shared if token < size))

    def penalties(self, num_known: int) -> FloatArray | None:
        """`[size]`, what is added to the logits of a checkpoint that has `num_known` ids; None where nothing is to be kept away."""
        penalties = np.full(self.size, _NEVER, np.float32)
        penalties[[token for token in self.proposable if token < num_known]] = 0
        return penalties if penalties.any() else None

    def digest(self) -> str:
        """Hexadecimal digits that differ where vocabularies differ."""
        ids = np.asarray(sorted(self.proposable), np.int64)
        return hashlib.sha256(np.int64(self.size).tobytes() + ids.tobytes()).hexdigest()
