"""The noise of ``drafthouse.sampling`` on the device: same generator, same key, same counter, so the same words bit for bit.

32-bit words live in int64 tensors; products are taken in halves, because one of two whole words does not fit.
"""

from collections.abc import Sequence

import torch

from drafthouse.sampling.noise import LANES
from drafthouse.sampling.philox import KEY_STEPS, MULTIPLIERS, ROUNDS

_WORD = 0xFFFFFFFF
_HALF = 16
_UNIT = 2.0**-32


def philox_words(seeds: Sequence[int], positions: Sequence[int], num_blocks: int, device: torch.device) -> torch.Tensor:
    """Words ``[n, num_blocks, 4]`` (int64) of keys ``seeds`` at counters (position, block, 0, 0); see ``drafthouse.sampling.philox``."""
    keys = torch.tensor([[seed & _WORD, seed >> 32] for seed in seeds], dtype=torch.int64, device=device)
    first = torch.tensor(positions, dtype=torch.int64, device=device)[:, None].expand(-1, num_blocks)
    second = torch.arange(num_blocks, dtype=torch.int64, device=device).expand(len(seeds), -1)
    words = [first, second, torch.zeros_like(first), torch.zeros_like(first)]
    for index in range(ROUNDS):
        low_key, high_key = ((keys[:, side, None] + KEY_STEPS[side] * index) & _WORD for side in (0, 1))
        (high_0, low_0), (high_1, low_1) = _product(words[0], MULTIPLIERS[0]), _product(words[2], MULTIPLIERS[1])
        words = [high_1 ^ words[1] ^ low_key, low_1, high_0 ^ words[3] ^ high_key, low_0]
    return torch.stack(words, dim=-1)


def gumbel_rows(seeds: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Noise ``[n, V]`` (float32) of every token at (seed, position); what ``noise.NoiseCache`` gives up to the last bit of a logarithm."""
    blocks = -(-vocab_size // LANES)
    words = philox_words(seeds, positions, blocks, device).reshape(len(seeds), -1)[:, :vocab_size]
    uniform = (words.to(torch.float64) + 0.5) * _UNIT
    return (-torch.log(-torch.log(uniform))).to(torch.float32)


def _product(word: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a 64-bit product."""
    low_part = word * (factor & 0xFFFF)
    high_part = word * (factor >> _HALF) + (low_part >> _HALF)
    return high_part >> _HALF, ((high_part & 0xFFFF) << _HALF) | (low_part & 0xFFFF)
