"""With N ≥ 2 and T ≥ 2 a token's logits are the same bits whatever is computed beside it: what losslessness rests on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from drafthouse_build.config import parse_config
from drafthouse_build.decoder import export_decoder
from drafthouse_build.quantize import quantize_weights
from fakes.onnx_llama import FloatArray, OnnxLlama
from fakes.tiny_llama import VOCAB_SIZE, random_weights, tiny_config

NUM_ROWS = 8
PROMPT_LEN = 21
CHAIN_LEN = 24
# 192 is not a multiple of the 64-value quantisation block times two, 80 not even of the block.
SHAPES = {"grouped": {}, "wide": {"hidden_size": 192, "intermediate_size": 80}}


@pytest.fixture(scope="module", params=[(shape, precision) for shape in SHAPES for precision in ("fp32", "int8")], ids="-".join)
def llama(request: pytest.FixtureRequest) -> OnnxLlama:
    shape, precision = request.param
    config = tiny_config(**SHAPES[shape])
    model: onnx.ModelProto = export_decoder(parse_config(config), random_weights(config), 80)
    return OnnxLlama(quantize_weights(model) if precision == "int8" else model, NUM_ROWS)


def tokens() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(3).integers(1, VOCAB_SIZE, (NUM_ROWS, PROMPT_LEN + CHAIN_LEN))


def run_chain(llama: OnnxLlama, row: int, batch: int, sizes: Sequence[int]) -> FloatArray:
    """Prefills rows `row … row + batch`, then feeds the rest in steps of the given sizes; returns logits `[batch, sum(sizes), V]`."""
    llama.cache[:] = 0
    ids = tokens()[row : row + batch]
    llama.step(row, ids[:, :PROMPT_LEN], [0] * batch)
    outputs, start = [], PROMPT_LEN
    for size in sizes:
        outputs.append(llama.step(row, ids[:, start : start + size], [start] * batch))
        start += size
    return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize("size", [3, 4, 6, 8, 12, 24])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_chain_logits_do_not_depend_on_batch_and_step_size(llama: OnnxLlama, batch: int, size: int) -> None:
    pairs = [2] * (CHAIN_LEN // 2)
    found = run_chain(llama, 0, batch, [size] * (CHAIN_LEN // size))
    for row in range(batch):
        np.testing.assert_array_equal(found[row], run_chain(llama, row, 1, pairs)[0])


def test_chain_logits_do_not_depend_on_the_cache_position_of_the_row(llama: OnnxLlama) -> None:
    expected = run_chain(llama, 0, 8, [2] * 12)
    found = np.concatenate([run_chain(llama, row, 1, [5, 7, 12]) for row in range(NUM_ROWS)])
    np.testing.assert_array_equal(found, expected)


def test_chunked_prefill_gives_the_same_bits(llama: OnnxLlama) -> None:
    ids = tokens()[:1]
    llama.cache[:] = 0
    whole = llama.step(0, ids, [0])
    cache = llama.cache.copy()
    llama.cache[:] = 0
    edges = [0, 16, 18, 34, ids.shape[1]]
    chunks = [llama.step(0, ids[:, begin:end], [begin]) for begin, end in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), whole)
    np.testing.assert_array_equal(llama.cache, cache)


def test_neighbours_and_garbage_beyond_the_committed_length_do_not_matter(llama: OnnxLlama) -> None:
    expected = run_chain(llama, 2, 1, [6, 6, 6, 6])
    llama.cache[:] = 0
    ids = tokens()
    llama.step(2, ids[2:3, :PROMPT_LEN], [0])
    llama.cache[:, :, 2, :, PROMPT_LEN:] = 1e3
    llama.cache[:, :, [1, 3]] = -7
    outputs = []
    for start in range(PROMPT_LEN, PROMPT_LEN + CHAIN_LEN, 6):
        # The row's neighbours are somewhere else in texts of their own.
        batch = np.stack([ids[5, :6], ids[2, start : start + 6], ids[6, :6]])
        outputs.append(llama.step(1, batch, [3, start, 40])[1])
    np.testing.assert_array_equal(np.concatenate(outputs), expected[0])


def test_a_padding_token_does_not_change_the_token_before_it(llama: OnnxLlama) -> None:
    """The engine pads calls of one token to two."""
    expected = run_chain(llama, 0, 1, [12, 12])[0]
    llama.cache[:] = 0
    ids = tokens()[0]
    llama.step(0, [ids[:PROMPT_LEN]], [0])
    found = [llama.step(0, [[ids[start], 0]], [start])[0, 0] for start in range(PROMPT_LEN, PROMPT_LEN + CHAIN_LEN)]
    np.testing.assert_array_equal(np.stack(found), expected)


def test_rows_of_any_length_share_a_call_bit_by_bit(llama: OnnxLlama) -> None:
    """Random mixes: chains of 1 to 24 tokens, places and packed tokens that only pad, rows without tokens, trees as neighbours."""
    ids = tokens()
    expected = [run_chain(llama, row, 1, [2] * (CHAIN_LEN // 2))[0] for row in range(NUM_ROWS)]
    llama.cache[:] = 0
    llama.step(0, ids[:, :PROMPT_LEN], [0] * NUM_ROWS)
    random = np.random.default_rng(8)
    done = np.zeros(NUM_ROWS, np.int64)
    lengths_seen: set[int] = set()
    while (done < CHAIN_LEN).any():
        lengths = np.minimum(random.choice([0, 1, 1, 2, 6, 12, 24], NUM_ROWS), CHAIN_LEN - done)
        tree_at = int(random.integers(NUM_ROWS))  # this row verifies a tree that nobody accepts
        chunks, parents = [], []
        for row, (start, length) in enumerate(zip(PROMPT_LEN + done, lengths, strict=True)):
            is_tree = row == tree_at
            chunks.append(random.integers(1, VOCAB_SIZE, 5).tolist() if is_tree else ids[row, start : start + length].tolist())
            parents.append([-1, 0, 0, 1, 2] if is_tree else None)
        if not any(chunks):
            continue
        padding = max(2 - sum(map(len, chunks)), int(random.integers(4)))
        found = llama.step_ragged(
            0, chunks, (PROMPT_LEN + done).tolist(), parents, places=int(random.choice([2, 2, 3, 7])), padding=padding
        )
        for row, length in enumerate(lengths.tolist()):
            if row != tree_at:
                np.testing.assert_array_equal(found[row], expected[row][done[row] : done[row] + length])
                lengths_seen.add(length)
                done[row] += length
    assert {1, 2, 6, 12} <= lengths_seen


@pytest.mark.parametrize("window", [48, 50, 64, 77])
def test_the_number_of_cache_rows_given_to_the_network_does_not_matter(llama: OnnxLlama, window: int) -> None:
    expected = run_chain(llama, 0, 3, [2, 6, 4, 12])
    whole = llama.cache
    llama.context_len, llama.cache = window, np.ascontiguousarray(whole[:, :, :, :, :window])
    found = run_chain(llama, 0, 3, [2, 6, 4, 12])
    llama.context_len, llama.cache = whole.shape[4], whole
    np.testing.assert_array_equal(found, expected)
