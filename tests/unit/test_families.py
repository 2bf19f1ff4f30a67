"""Every family computes what `transformers` computes: its graph in ONNX Runtime, and the project's own engine around it.

The models are random and tiny (`fakes/tiny_families.py`), their windows shorter than the prompts. `transformers` recomputes every sequence
from its beginning; here caches grow, are taken back, and hold rejected branches.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import RowStatus
from drafthouse.engine.engine import ModelEngine, load_engine
from drafthouse.engine.options import EngineOptions as RunOptions
from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.engine import EngineOptions, build_engine
from fakes.engine_driver import step, step_row
from fakes.onnx_llama import FloatArray, OnnxLlama

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("transformers", reason="needs the train extra")
pytestmark = pytest.mark.torch

from fakes.tiny_families import FAMILIES, VOCAB_SIZE, make_model, reference, save_model  # noqa: E402 - imports torch

CONTEXT_LEN = 128
MAX_STEP_TOKENS = 16
NUM_CANDIDATES = 64
OPTIONS = EngineOptions(context_len=CONTEXT_LEN, max_step_tokens=MAX_STEP_TOKENS)
# Logits of these models have a standard deviation of about 2; the largest difference seen is 6e-5.
TOLERANCE = 2e-4
#   0 ─ 1 ─ 3 ─ 6      2 is a sibling of 1, 4 and 5 are children of 2
#   └── 2 ─ 4, 5
TREE = [-1, 0, 0, 1, 2, 2, 3]
PATHS = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 5], [0, 1, 3, 6]]
ACCEPTED = [0, 2, 5]


@dataclass
class Pair:
    """One checkpoint in `transformers` and in an engine folder."""

    folder: Path
    model: Any
    graph: OnnxLlama
    engine: ModelEngine

    def expected(self, tokens: Sequence[int]) -> FloatArray:
        return reference(self.model, tokens)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(request.param)
    save_model(model, folder / "checkpoint")
    assert build_engine(load_checkpoint(folder / "checkpoint"), folder / "engine", OPTIONS, "tiny")
    engine = load_engine(folder / "engine", RunOptions(slots=4, calibration_ms=0))
    return Pair(folder, model, OnnxLlama(folder / "engine" / "model.onnx", rows=3), engine)


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """For models of this size, on machines with other work, several threads are several times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_tokens(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(1, VOCAB_SIZE, length)]


def assert_close(found: FloatArray, expected: FloatArray) -> None:
    assert expected.std() > 1
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_graph_is_standard_onnx(pair: Pair) -> None:
    model = onnx.load(pair.folder / "engine" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(attribute.name == "softcap" for node in model.graph.node for attribute in node.attribute)


def test_a_second_build_finds_it_current(pair: Pair, tmp_path: Path) -> None:
    moved = shutil.copytree(pair.folder / "checkpoint", tmp_path / "elsewhere")
    assert not build_engine(load_checkpoint(moved), pair.folder / "engine", OPTIONS, "tiny")


def test_prefill(pair: Pair) -> None:
    tokens = random_tokens(1, 100)
    assert_close(pair.graph.step(0, [tokens], [0])[0], pair.expected(tokens))


def test_ragged_decode_with_one_row_rolled_back(pair: Pair) -> None:
    prompts = [random_tokens(seed, length) for seed, length in ((2, 5), (3, 41), (4, 60))]
    for row, prompt in enumerate(prompts):
        pair.graph.step(row, [prompt], [0])
    # Row 1 takes back its last ten tokens; all rows go on from different places, by different lengths, in one call.
    prompts[1] = prompts[1][:31]
    for call in range(3):
        added = [random_tokens(10 * call + row, 1 + (row + call) % 3) for row in range(3)]
        found = pair.graph.step_ragged(0, added, [len(prompt) for prompt in prompts])
        for row in range(3):
            prompts[row] += added[row]
            assert_close(found[row], pair.expected(prompts[row])[-len(added[row]) :])


@pytest.mark.parametrize("length", [7, 40])
def test_draft_tree_with_wrong_siblings_and_what_follows_it(pair: Pair, length: int) -> None:
    prompt, nodes = random_tokens(5, length), random_tokens(6, len(TREE))
    pair.graph.step(1, [prompt], [0])
    found = pair.graph.step(1, [nodes], [length], TREE)[0]
    for node, path in enumerate(PATHS):
        assert_close(found[node], pair.expected(prompt + [nodes[index] for index in path])[-1])
    # The path 0, 2, 5 is accepted: its rows are moved together, what lies beyond stays as rubbish.
    rows = pair.graph.cache[:, :, 1]
    rows[:, :, :, length : length + 3] = rows[:, :, :, [length + index for index in ACCEPTED]]
    tokens = prompt + [nodes[index] for index in ACCEPTED]
    added = random_tokens(7, 4)
    assert_close(pair.graph.step(1, [added], [len(tokens)])[0], pair.expected(tokens + added)[-4:])


def prefill(engine: ModelEngine, uid: int, tokens: Sequence[int]) -> None:
    for start in range(0, len(tokens), MAX_STEP_TOKENS):
        chunk = tokens[start : start + MAX_STEP_TOKENS]
        assert step(engine, step_row(uid, chunk, prefix_len=start), num_steps=0)[0].status is RowStatus.OK


def test_engine_verifies_ragged_rows_and_a_tree(pair: Pair) -> None:
    """One call with a request that goes on, one that is rolled back, and one with a tree: every node's probabilities are right."""
    pair.engine.release([1, 2, 3])
    prompts = {1: random_tokens(11, 20), 2: random_tokens(12, 45), 3: random_tokens(13, 33)}
    for uid, prompt in prompts.items():
        prefill(pair.engine, uid, prompt)
    prompts[2] = prompts[2][:38]
    drafts = {uid: random_tokens(20 + uid, length) for uid, length in ((1, 1), (2, 5), (3, 7))}
    drafts[3] = [prompts[3][-1], *drafts[3]]
    drafts[1], drafts[2] = [prompts[1][-1], *drafts[1]], [prompts[2][-1], *drafts[2]]
    tree = [-1, *(parent + 1 for parent in TREE)]
    rows = [
        step_row(
            uid,
            tokens,
            prefix_len=len(prompts[uid]) - 1,
            num_committed=1,
            parents=tree if uid == 3 else None,
            sampling=SamplingParams(temperature=1.0),
        )
        for uid, tokens in drafts.items()
    ]
    answers = step(pair.engine, *rows, num_candidates=NUM_CANDIDATES)
    for (uid, tokens), answer in zip(drafts.items(), answers, strict=True):
        assert answer.status is RowStatus.OK, answer.error
        paths = [[], *PATHS] if uid == 3 else [list(range(node)) for node in range(len(tokens))]
        for node, path in enumerate(paths):
            text = prompts[uid] + [tokens[1 + index] for index in path]
            scores = log_softmax(pair.expected(text)[-1])
            np.testing.assert_allclose(np.log(answer.candidate_probs[node]), scores[answer.candidate_ids[node]], atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(answer.logprobs[node], scores[answer.sampled[node]], atol=TOLERANCE, rtol=0)


def test_engine_goes_on_from_an_accepted_branch(pair: Pair) -> None:
    """The accepted branch is found in the cache and moved; the next call computes only what comes after it."""
    pair.engine.release([1, 2, 3, 4])
    prompt, nodes = random_tokens(31, 37), random_tokens(32, len(TREE))
    prefill(pair.engine, 4, prompt)
    tree = [-1, *(parent + 1 for parent in TREE)]
    step(pair.engine, step_row(4, [prompt[-1], *nodes], prefix_len=36, num_committed=1, parents=tree))
    accepted = [nodes[index] for index in ACCEPTED]
    added = random_tokens(33, 3)
    row = step_row(4, [*accepted, *added], prefix_len=37, num_committed=3, sampling=SamplingParams(temperature=1.0))
    answer = step(pair.engine, row, num_candidates=NUM_CANDIDATES)[0]
    expected = pair.expected(prompt + accepted + added)[-4:]
    for node in range(4):
        scores = log_softmax(expected[node])
        np.testing.assert_allclose(np.log(answer.candidate_probs[node]), scores[answer.candidate_ids[node]], atol=TOLERANCE, rtol=0)


def test_logits_do_not_depend_on_what_is_computed_beside_them(pair: Pair) -> None:
    """What losslessness rests on, for the operators that only some families have: the same bits in every packing and cache size."""
    tokens = [random_tokens(41 + row, 60) for row in range(3)]
    graph = pair.graph
    graph.cache[:] = 0
    graph.step(0, [row[:30] for row in tokens], [0] * 3)
    start = graph.cache.copy()
    expected = np.concatenate([graph.step(1, [tokens[1][place : place + 2]], [place]) for place in range(30, 42, 2)], axis=1)[0]
    for sizes, padding in (([12], 0), ([3, 9], 1), ([1, 1, 4, 6], 2)):
        graph.cache[:] = start
        found, place = [], 30
        for size in sizes:
            added = [tokens[0][30:35], tokens[1][place : place + size], tokens[2][30:31]]
            found.append(graph.step_ragged(0, added, [30, place, 30], padding=padding)[1])
            place += size
        np.testing.assert_array_equal(np.concatenate(found), expected)
    whole = graph.cache
    try:
        graph.context_len, graph.cache = 77, np.ascontiguousarray(start[:, :, :, :, :77])
        np.testing.assert_array_equal(graph.step(1, [tokens[1][30:42]], [30])[0], expected)
    finally:
        graph.context_len, graph.cache = whole.shape[4], whole


def log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max()
    scores: FloatArray = shifted - np.log(np.exp(shifted).sum())
    return scores
