"""Sampling on the device is the CPU's: same words, same noise, same choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.sampling.choose import Ban, Choices, Chooser, Segment
from drafthouse.sampling.noise import NoiseCache
from drafthouse.sampling.philox import key_schedule, philox4x32

torch = pytest.importorskip("torch")
from drafthouse.engine.tensorrt.chooser import TorchChooser  # noqa: E402
from drafthouse.engine.tensorrt.philox import gumbel_rows, philox_words  # noqa: E402

pytestmark = pytest.mark.torch
VOCAB = 1003  # not a multiple of the generator's four words
CPU = torch.device("cpu")


def test_words_are_those_of_the_cpu_generator() -> None:
    seeds, positions = [0, 1, 2**64 - 1, 0x0123_4567_89AB_CDEF], [0, 5, 2**31, 77]
    words = philox_words(seeds, positions, 9, CPU).numpy()
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        counters = np.zeros((4, 9), np.uint32)
        counters[0], counters[1] = position, np.arange(9)
        assert np.array_equal(words[row].T, philox4x32(counters, key_schedule(seed)))


def test_random123_vector() -> None:
    """Random123's known answer for philox4x32-10 with counter and key zero."""
    assert philox_words([0], [0], 1, CPU).flatten().tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_noise_is_the_cpus_to_the_last_bit_of_a_logarithm() -> None:
    keys = [(3, 0), (3, 1), (2**63 + 1, 900)]
    expected = np.empty((len(keys), VOCAB), np.float32)
    NoiseCache(VOCAB).write_rows(keys, expected)
    found = gumbel_rows([seed for seed, _ in keys], [position for _, position in keys], VOCAB, CPU).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-7)


SEGMENTS = [
    Segment(SamplingParams(temperature=0.0), np.arange(10, 13)),
    Segment(SamplingParams(temperature=0.8, seed=5), np.arange(4)),
    Segment(SamplingParams(temperature=1.3, top_k=20, seed=6), np.array([7, 8, 8])),
    Segment(SamplingParams(temperature=0.8, top_p=0.9, seed=7), np.arange(3, 8)),
    Segment(SamplingParams(temperature=0.8, top_p=0.7, top_k=30, seed=2**64 - 1), np.arange(2)),
    Segment(SamplingParams(temperature=0.8, seed=9), np.array([1])),
    Segment(SamplingParams(temperature=1.0, top_k=1, seed=9), np.array([2])),
]
NUM_NODES = sum(len(segment.positions) for segment in SEGMENTS)


def _logits(seed: int, scale: float = 4.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((NUM_NODES, VOCAB)) * scale).astype(np.float32)


def _both(
    logits: NDArray[np.float32], candidates: int = 0, bans: Sequence[Ban] = (), with_logprobs: bool = True
) -> tuple[Choices, Choices]:
    cpu = Chooser(VOCAB).choose(logits, SEGMENTS, candidates, bans, with_logprobs)
    device = TorchChooser(VOCAB, CPU).choose(torch.from_numpy(logits), SEGMENTS, candidates, bans, with_logprobs)
    return cpu, device


def _same(cpu: Choices, device: Choices) -> None:
    for name in ("sampled", "candidate_ids"):
        left, right = getattr(cpu, name), getattr(device, name)
        assert right.dtype == left.dtype
        np.testing.assert_array_equal(right, left)
    np.testing.assert_allclose(device.logprobs, cpu.logprobs, atol=2e-5)
    np.testing.assert_allclose(device.candidate_probs, cpu.candidate_probs, atol=2e-6)


@pytest.mark.parametrize("seed", range(20))
def test_choices_are_those_of_the_cpu(seed: int) -> None:
    for scale in (0.5, 4.0):
        _same(*_both(_logits(seed, scale), candidates=4))


def test_ties_go_to_the_lower_id() -> None:
    logits = np.round(_logits(3, 1.0))
    _same(*_both(logits, candidates=3))


def test_banned_tokens_are_never_chosen() -> None:
    logits = _logits(4)
    first = Chooser(VOCAB).choose(logits, SEGMENTS).sampled
    bans = [Ban(node, np.array(sorted({int(token), 0, 5}))) for node, token in enumerate(first)]
    cpu, device = _both(logits, candidates=4, bans=bans)
    _same(cpu, device)
    assert (device.sampled != first).all()


def test_fewer_survivors_than_candidates() -> None:
    """top_k = 1 leaves one token; the others follow by their logits."""
    cpu, device = _both(_logits(5), candidates=6)
    _same(cpu, device)
    assert len(set(device.candidate_ids[-1].tolist())) == 6


def test_without_log_probabilities_only_what_is_not_finite_shows() -> None:
    logits = _logits(6)
    logits[2] = np.nan
    _, device = _both(logits, with_logprobs=False)
    assert np.isnan(device.logprobs).tolist() == [node == 2 for node in range(NUM_NODES)]


def test_scores_of_given_tokens() -> None:
    logits = _logits(7)
    token_ids = np.arange(NUM_NODES, dtype=np.int64) * 3
    expected = Chooser(VOCAB).log_probs_of(logits, token_ids)
    np.testing.assert_allclose(TorchChooser(VOCAB, CPU).log_probs_of(torch.from_numpy(logits), token_ids), expected, atol=2e-5)


def test_joined_logits() -> None:
    logits = _logits(8)
    parts = [logits[:3], logits[5:9]]
    joined = TorchChooser(VOCAB, CPU).join([torch.from_numpy(part) for part in parts])
    assert np.array_equal(joined.numpy(), Chooser(VOCAB).join(parts))
