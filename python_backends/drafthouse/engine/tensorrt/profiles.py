"""Which shapes a TensorRT engine is built for, and to which of them a call is padded.

TensorRT picks its kernels per *optimisation profile*: decoding rounds are short and wide, prefill chunks long and narrow, so each gets
one of its own. Builder and session both read the profiles from here, and the plan's manifest carries the numbers they follow from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from drafthouse.engine.manifest import EngineManifest

Shape = tuple[int, ...]
INDEX_INPUTS = ("input_ids", "position_ids", "write_indices", "unpack_indices", "pack_indices")
MASK_INPUT = "attn_mask"
LOGITS = "logits"
# An address that TensorRT is given has to be a multiple of this.
ALIGNMENT_BYTES = 256
# Cache rows come in multiples of this, so that every slot begins at such an address: 64 rows of 2 bytes and an even head size.
ROW_MULTIPLE = 64
MAX_DECODE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class CallShape:
    """Rows, places per row and packed tokens of a network call (B, T, N)."""

    rows: int
    places: int
    packed: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimisation profile: every call shape from ``least`` to ``most`` is legal, and kernels are chosen for ``best``."""

    name: str
    least: CallShape
    best: CallShape
    most: CallShape

    def holds(self, shape: CallShape) -> bool:
        """Whether a call of this shape may run under the profile."""
        pairs = ((getattr(self.least, name), getattr(shape, name), getattr(self.most, name)) for name in ("rows", "places", "packed"))
        return all(low <= value <= high for low, value, high in pairs)


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What the shapes of a plan follow from. ``rows`` is the static length S of a slot's cache; see ``cache_rows``."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rows: int
    slots: int
    decode_tokens: int
    max_step_tokens: int

    @staticmethod
    def of(manifest: EngineManifest, slots: int) -> "EngineShape":
        """The shape of a plan for ``slots`` sequences of the model that ``manifest`` describes."""
        return EngineShape(
            num_layers=manifest.num_layers,
            num_kv_heads=manifest.num_kv_heads,
            head_dim=manifest.head_dim,
            vocab_size=manifest.vocab_size,
            rows=cache_rows(manifest.context_len),
            slots=slots,
            decode_tokens=min(MAX_DECODE_TOKENS, manifest.max_step_tokens),
            max_step_tokens=manifest.max_step_tokens,
        )

    @property
    def cache_names(self) -> Iterator[str]:
        """``k_0``, ``v_0``, ``k_1``, …: what follows ``past_`` and ``present_``."""
        return (f"{side}_{layer}" for layer in range(self.num_layers) for side in "kv")

    def inputs(self, shape: CallShape) -> Mapping[str, Shape]:
        """Shape of every network input in a call of this shape."""
        rectangle, packed = (shape.rows, shape.places), (shape.packed,)
        shapes: dict[str, Shape] = {
            "input_ids": packed,
            "position_ids": rectangle,
            "write_indices": (shape.rows,),
            "unpack_indices": rectangle,
            "pack_indices": packed,
            MASK_INPUT: (shape.rows, 1, shape.places, self.rows),
        }
        cache = (shape.rows, self.num_kv_heads, self.rows, self.head_dim)
        return shapes | {f"past_{name}": cache for name in self.cache_names}

    def profiles(self) -> list[Profile]:
        """Decoding, and prefill where a call may be longer than a decoding round."""
        slots, short, long = self.slots, self.decode_tokens, self.max_step_tokens
        half = CallShape(-(-slots // 2), -(-short // 2), -(-slots // 2) * -(-short // 2))
        decode = Profile("decode", CallShape(1, 1, 1), half, CallShape(slots, short, slots * short))
        if long == short:
            return [decode]
        best = CallShape(1, long, long)
        return [decode, Profile("prefill", CallShape(1, short + 1, 1), best, CallShape(slots, long, slots * long))]


def cache_rows(context_len: int) -> int:
    """Static length of a slot's cache: the context, and scratch rows behind it that padding writes into and nobody reads."""
    return -(-(context_len + MAX_DECODE_TOKENS) // ROW_MULTIPLE) * ROW_MULTIPLE


def bucket(value: int, most: int) -> int:
    """The smallest power of two at or above ``value``, or ``most`` where that is less."""
    return min(1 << max(value - 1, 0).bit_length(), most)
