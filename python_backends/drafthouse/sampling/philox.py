"""Philox4x32-10, a counter-based random generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

A value depends on its key and counter alone, so any token of any request can be drawn at any time, anywhere, in any order.
"""

import sys

import numpy as np
from numpy.typing import NDArray

UInt32Array = NDArray[np.uint32]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # for counter words 0 and 2
_FACTORS = np.array(MULTIPLIERS, np.uint64)[:, None]
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of a 64-bit product in memory


def key_schedule(key: int) -> UInt32Array:
    """The ten round keys ``[10, 2, 1]`` of a 64-bit key; its low word is Random123's key word 0."""
    words = (key & 0xFFFFFFFF, key >> 32)
    rounds = [[(word + step * index) & 0xFFFFFFFF for word, step in zip(words, KEY_STEPS, strict=True)] for index in range(ROUNDS)]
    return np.array(rounds, np.uint32)[:, :, None]


def philox4x32(counters: UInt32Array, schedule: UInt32Array) -> UInt32Array:
    """Encrypts counters ``[4, n]`` with ``schedule [10, 2, 1]`` (one key) or ``[10, 2, n]`` (a key each) into words ``[4, n]``."""
    even, odd = counters[0::2].copy(), counters[1::2]
    # The halves of a product are read in place. There are two products, because the last one's low half is still in use.
    products = [np.empty(even.shape, np.uint64) for _ in range(2)]
    halves = [product.view(np.uint32)[::-1] for product in products]
    for index, round_key in enumerate(schedule):
        np.multiply(even, _FACTORS, out=products[index % 2])
        np.bitwise_xor(halves[index % 2][:, _HIGH::2], odd, out=even)
        np.bitwise_xor(even, round_key, out=even)
        odd = halves[index % 2][:, _LOW::2]
    words = np.empty_like(counters)
    words[0::2], words[1::2] = even, odd
    return words
