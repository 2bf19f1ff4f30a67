"""A deterministic "language model": the next token is a hash of the path, so every path has one right continuation."""

from collections.abc import Sequence

from drafthouse.core.sampling_params import SamplingParams

END_ID = 0
# Ids 1..: single letters and pieces, some of them halves of multi-byte characters.
PIECES = [b"", *(bytes([code]) for code in b"abcdefgh \n"), b"ab", b"cab", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"na", b"ing"]
VOCAB_SIZE = len(PIECES)
_MASK = (1 << 64) - 1


def token_bytes(token_id: int) -> bytes:
    return PIECES[token_id]


def path_hash(tokens: Sequence[int], salt: int = 0) -> int:
    value = 0x9E3779B97F4A7C15 ^ salt
    for token in tokens:
        value = ((value ^ (token + 1)) * 0xD6E8FEB86659FD93) & _MASK
        value ^= value >> 29
    return value


def next_token(path: Sequence[int], sampling: SamplingParams) -> int:
    """The target's choice after ``path``; the seed matters when it samples, the end is banned where it must not be."""
    value = path_hash(path, sampling.seed if sampling.temperature > 0 else 0)
    # The end comes with a chance of 1/64, whatever the size of the vocabulary.
    token = END_ID if value % 64 == 0 else 1 + (value >> 8) % (VOCAB_SIZE - 1)
    if token in sampling.end_ids and len(path) < sampling.min_end_position:
        return next(other for other in range(1, VOCAB_SIZE) if other not in sampling.end_ids)
    return int(token)


def log_prob(path: Sequence[int], token: int) -> float:
    return -((path_hash([*path, token]) >> 11) % 1000) / 256.0


def continuation(prompt: Sequence[int], sampling: SamplingParams, num_tokens: int) -> list[int]:
    """What the target alone would generate, without any stop."""
    path = list(prompt)
    for _ in range(num_tokens):
        path.append(next_token(path, sampling))
    return path[len(prompt) :]
