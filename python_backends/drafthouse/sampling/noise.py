"""Gumbel noise that belongs to (seed, position, token id) and to nothing else.

Target and drafters add the same noise to their logits, so they tend to choose the same token; see Maddison et al., "A* sampling"
(NIPS 2014) for the Gumbel-max trick. Noise is drawn over a whole vocabulary (and kept: siblings in a draft tree and the drafters' next
call want it again) or for single tokens, where a filter has left only a few.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drafthouse.sampling.philox import UInt32Array, key_schedule, philox4x32

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

LANES = 4  # words per counter: token id = 4 * block + lane
_UNIT = 2.0**-32
# Counters encrypted at once: enough to hide numpy's cost per call, few enough for the working set to stay in a core's cache.
_COUNTERS_PER_DRAW = 8192

_schedule = lru_cache(maxsize=4096)(key_schedule)


def gumbel_from_words(words: UInt32Array) -> FloatArray:
    """Maps 32-bit words to standard Gumbel variates between -3.2 and 22.9: the half keeps both logarithms finite."""
    uniform = words.astype(np.float64)
    uniform += 0.5
    uniform *= _UNIT
    np.log(uniform, out=uniform)
    np.negative(uniform, out=uniform)
    np.log(uniform, out=uniform)
    return np.negative(uniform).astype(np.float32)


def gumbel_at(seeds: Sequence[int], rows: IntArray, positions: IntArray, token_ids: IntArray) -> FloatArray:
    """Noise ``[n]`` of single tokens: element j belongs to ``seeds[rows[j]]``, ``positions[j]`` and ``token_ids[j]``."""
    schedules = [_schedule(seed) for seed in seeds]
    schedule = schedules[0] if len(set(seeds)) == 1 else np.concatenate(schedules, axis=2)[:, :, rows]
    counters = np.zeros((LANES, len(token_ids)), np.uint32)
    counters[0] = positions
    counters[1] = token_ids // LANES
    words = philox4x32(counters, schedule)
    return gumbel_from_words(words[token_ids % LANES, np.arange(len(token_ids))])


class NoiseCache:
    """Noise over the whole vocabulary by (seed, position), least recently used dropped first."""

    def __init__(self, vocab_size: int, capacity_bytes: int = 8 << 20) -> None:
        self._vocab_size = vocab_size
        self._capacity = max(1, capacity_bytes // (4 * vocab_size))
        self._keys_per_draw = max(1, _COUNTERS_PER_DRAW // -(-vocab_size // LANES))
        self._rows: OrderedDict[tuple[int, int], FloatArray] = OrderedDict()

    def write_rows(self, keys: Sequence[tuple[int, int]], out: FloatArray) -> None:
        """Fills ``out [len(keys), V]`` with the noise of (seed, position) pairs."""
        missing = list(dict.fromkeys(key for key in keys if key not in self._rows))
        drawn: dict[tuple[int, int], FloatArray] = {}
        while missing:
            part, missing = missing[: self._keys_per_draw], missing[self._keys_per_draw :]
            # A draw costs about the same when it is full: the positions that follow will be asked for next.
            seed, position = part[-1]
            part += [(seed, position + step) for step in range(1, 1 + self._keys_per_draw - len(part))]
            drawn |= self._draw(part)
        for index, key in enumerate(keys):
            row = drawn.get(key)
            if row is None:
                row = self._rows[key]
                self._rows.move_to_end(key)
            out[index] = row
        self._rows.update(drawn)
        while len(self._rows) > self._capacity:
            self._rows.popitem(last=False)

    def _draw(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], FloatArray]:
        blocks = -(-self._vocab_size // LANES)
        counters = np.zeros((LANES, len(keys), blocks), np.uint32)
        counters[0] = np.array([position for _, position in keys], np.uint32)[:, None]
        counters[1] = np.arange(blocks, dtype=np.uint32)
        seeds = {seed for seed, _ in keys}
        schedule = np.concatenate([_schedule(seed) for seed, _ in keys[: len(keys) if len(seeds) > 1 else 1]], axis=2)
        if len(seeds) > 1:
            schedule = np.repeat(schedule, blocks, axis=2)
        words = philox4x32(counters.reshape(LANES, -1), schedule)
        noise = gumbel_from_words(words).reshape(LANES, len(keys), blocks)
        by_token = noise.transpose(1, 2, 0).reshape(len(keys), -1)[:, : self._vocab_size]
        return {key: by_token[index].copy() for index, key in enumerate(keys)}
