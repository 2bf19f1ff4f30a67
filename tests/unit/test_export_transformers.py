"""The exported graph computes what `transformers` computes, also where a cache makes it hard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.config import parse_config
from drafthouse_build.decoder import export_decoder
from fakes.onnx_llama import FloatArray, OnnxLlama
from fakes.tiny_llama import VOCAB_SIZE, tiny_config, write_checkpoint

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.torch

CONTEXT_LEN = 120
# Logits of these models have a standard deviation of about 2; the largest difference seen is 3.3e-5.
TOLERANCE = 1e-4
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
CONFIGS = {
    "grouped-tied": {},
    "untied": {"tie_word_embeddings": False},
    "multi-head": {"num_key_value_heads": 6},
    "one-key-head": {"num_key_value_heads": 1, "head_dim": 8},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5}},
    "llama3-rope": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
    "older-spelling": {"rope_parameters": None, "rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "older-llama3": {"rope_parameters": None, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
}


class Pair:
    """The same checkpoint twice: `reference` recomputes whole sequences, `llama` uses its cache."""

    def __init__(self, folder: Path, num_rows: int = 3) -> None:
        from transformers import LlamaForCausalLM

        checkpoint = load_checkpoint(folder)
        model = export_decoder(parse_config(checkpoint.raw_config), checkpoint.weights, CONTEXT_LEN)
        self.llama = OnnxLlama(model, num_rows)
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def reference(self, tokens: Sequence[int]) -> FloatArray:
        with torch.no_grad():
            logits: FloatArray = self.model(torch.tensor([list(tokens)])).logits[0].numpy()
        return logits


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    return Pair(write_checkpoint(folder, tiny_config(**CONFIGS[request.param]), dtype="bfloat16"))


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


def test_prefill(pair: Pair) -> None:
    tokens = random_tokens(1, 100)
    assert_close(pair.llama.step(0, [tokens], [0])[0], pair.reference(tokens))


def test_ragged_decode_with_one_row_rolled_back(pair: Pair) -> None:
    prompts = [random_tokens(seed, length) for seed, length in ((2, 5), (3, 31), (4, 60))]
    for row, prompt in enumerate(prompts):
        pair.llama.step(row, [prompt], [0])
    # Row 1 takes back its last ten tokens; all rows go on from different places in one call.
    prompts[1] = prompts[1][:21]
    for step in range(3):
        added = [random_tokens(10 * step + row, 2) for row in range(3)]
        found = pair.llama.step(0, added, [len(prompt) for prompt in prompts])
        for row in range(3):
            prompts[row] += added[row]
            assert_close(found[row], pair.reference(prompts[row])[-2:])


def test_draft_tree_with_wrong_siblings_and_what_follows_it(pair: Pair) -> None:
    prompt, nodes = random_tokens(5, 17), random_tokens(6, 7)
    #   0 ─ 1 ─ 3 ─ 6      2 is a sibling of 1, 4 and 5 are children of 2
    #   └── 2 ─ 4, 5
    parents = [-1, 0, 0, 1, 2, 2, 3]
    pair.llama.step(1, [prompt], [0])
    found = pair.llama.step(1, [nodes], [len(prompt)], parents)[0]
    paths = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 5], [0, 1, 3, 6]]
    for node, path in enumerate(paths):
        assert_close(found[node], pair.reference(prompt + [nodes[index] for index in path])[-1])
    # The path 0, 2, 5 is accepted: its rows are moved together, what lies beyond stays as rubbish.
    accepted = [0, 2, 5]
    rows = pair.llama.cache[:, :, 1]
    begin = len(prompt)
    rows[:, :, :, begin : begin + 3] = rows[:, :, :, [begin + index for index in accepted]]
    tokens = prompt + [nodes[index] for index in accepted]
    added = random_tokens(7, 4)
    assert_close(pair.llama.step(1, [added], [len(tokens)])[0], pair.reference(tokens + added)[-4:])
