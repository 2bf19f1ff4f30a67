"""Philox4x32-10 against Random123's published known answers, and the noise made of it."""

from __future__ import annotations

import numpy as np
import pytest

from drafthouse.sampling.noise import NoiseCache, gumbel_at, gumbel_from_words
from drafthouse.sampling.philox import key_schedule, philox4x32

# Random123 1.14, tests/kat_vectors: counter, key, result of "philox4x32 10".
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = words(key)
    result = philox4x32(np.array(words(counter), np.uint32)[:, None], key_schedule(low | high << 32))
    assert result[:, 0].tolist() == words(expected)


def test_many_counters_and_keys_at_once_give_the_same_words() -> None:
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS], np.uint32).T.copy()
    keys = [words(key) for _, key, _ in KNOWN_ANSWERS]
    schedule = np.concatenate([key_schedule(low | high << 32) for low, high in keys], axis=2)
    assert philox4x32(counters, schedule).T.tolist() == [words(expected) for _, _, expected in KNOWN_ANSWERS]


def test_the_counter_of_a_token_is_its_position_and_a_quarter_of_its_id() -> None:
    counter = np.array([[77], [1234 // 4], [0], [0]], np.uint32)
    expected = gumbel_from_words(philox4x32(counter, key_schedule(2**63 + 5)))[1234 % 4, 0]
    noise = gumbel_at([2**63 + 5], np.zeros(1, np.int64), np.array([77]), np.array([1234]))
    assert noise.tolist() == [expected]


def test_noise_is_the_same_alone_together_and_from_the_cache() -> None:
    keys = [(5, 10), (5, 11), (2**64 - 1, 10), (5, 10)]
    cache = NoiseCache(301, capacity_bytes=2 * 4 * 301)
    rows = np.empty((4, 301), np.float32)
    for _ in range(2):  # the second time some of it was kept
        cache.write_rows(keys, rows)
        for (seed, position), row in zip(keys, rows, strict=True):
            token_ids = np.array([0, 3, 299, 300, 17])
            alone = gumbel_at([seed], np.zeros(5, np.int64), np.full(5, position), token_ids)
            assert np.array_equal(alone, row[token_ids])
    mixed = gumbel_at([5, 2**64 - 1], np.array([0, 1, 0]), np.array([11, 10, 10]), np.array([2, 2, 300]))
    assert mixed.tolist() == [rows[1, 2], rows[2, 2], rows[0, 300]]
    assert not np.array_equal(rows[0], rows[1])


def test_a_large_vocabulary_is_drawn_row_by_row() -> None:
    cache = NoiseCache(40_000)
    rows = np.empty((2, 40_000), np.float32)
    cache.write_rows([(1, 1), (2, 2)], rows)
    assert rows[1, 39_999] == gumbel_at([2], np.zeros(1, np.int64), np.array([2]), np.array([39_999]))[0]


def test_the_extreme_words_give_finite_noise() -> None:
    noise = gumbel_from_words(np.array([0, 2**32 - 1], np.uint32))
    assert noise == pytest.approx([-np.log(33 * np.log(2)), 33 * np.log(2)], rel=1e-6)


def test_noise_has_the_moments_of_a_standard_gumbel() -> None:
    rows = np.empty((16, 4096), np.float32)
    NoiseCache(4096).write_rows([(seed, 9) for seed in range(16)], rows)
    count = rows.size
    assert rows.mean() == pytest.approx(np.euler_gamma, abs=5 * np.pi / np.sqrt(6 * count))
    assert rows.var() == pytest.approx(np.pi**2 / 6, rel=0.03)
