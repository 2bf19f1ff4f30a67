"""Philox4x32-10, a counter-based random generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

A value depends on its key and counter alone, so any token of any request can be drawn at any time, anywhere, in any order.
Words are 32 bits wide but held in uint64 arrays, because numpy has no 32 × 32 → 64 bit product.
"""

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)  # for counter words 0 and 2
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)


def key_schedule(key: int) -> UInt64Array:
    """The ten round keys ``[10, 2, 1]`` of a 64-bit key; its low word is Random123's key word 0."""
    words = (key & 0xFFFFFFFF, key >> 32)
    rounds = [[(word + step * index) & 0xFFFFFFFF for word, step in zip(words, _KEY_STEPS, strict=True)] for index in range(ROUNDS)]
    return np.array(rounds, np.uint64)[:, :, None]


def philox4x32(counters: UInt64Array, schedule: UInt64Array) -> UInt64Array:
    """Encrypts counters ``[4, n]`` with ``schedule [10, 2, 1]`` (one key) or ``[10, 2, n]`` (a key each) into words ``[4, n]``."""
    even, odd = counters[0::2].copy(), counters[1::2].copy()
    product, high = np.empty_like(even), np.empty_like(even)
    for round_key in schedule:
        np.multiply(even, _MULTIPLIERS, out=product)
        np.right_shift(product, _WORD_BITS, out=high)
        np.bitwise_xor(odd, round_key, out=odd)
        np.bitwise_xor(high[::-1], odd, out=even)
        np.bitwise_and(product[::-1], _LOW_WORD, out=odd)
    words = np.empty_like(counters)
    words[0::2], words[1::2] = even, odd
    return words
