"""Growing a model changes what it costs, not what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drafthouse_build.config import LayerConfig, ModelConfig, parse_config
from drafthouse_build.decoder import export_decoder
from drafthouse_build.errors import BuildError
from drafthouse_build.expand import Expansion, expand, expand_to, interleaved_origins, plan_expansion
from drafthouse_build.quantize import quantize_weights
from drafthouse_build.shapes import check_shapes, num_parameters
from fakes.onnx_llama import OnnxLlama
from fakes.tiny_llama import VOCAB_SIZE, random_weights, tiny_config

CONTEXT_LEN = 96
NUM_NEW_TOKENS = 40


@pytest.fixture
def config() -> ModelConfig:
    return parse_config(tiny_config())


def greedy(llama: OnnxLlama, prompt: list[int]) -> tuple[list[int], np.ndarray]:  # type: ignore[type-arg]
    """Greedy continuation and the logits it was chosen from."""
    logits = llama.step(0, [prompt], [0])[0, -1]
    tokens, seen, length = [], [], len(prompt)
    for _ in range(NUM_NEW_TOKENS):
        tokens.append(int(logits.argmax()))
        seen.append(logits)
        logits = llama.step(0, [[tokens[-1], 0]], [length])[0, 0]
        length += 1
    return tokens, np.stack(seen)


@pytest.mark.parametrize("expansion", [Expansion(6, 112), Expansion(3, 512), Expansion(5, 300), Expansion(7, 640)])
def test_grown_model_says_the_same(config: ModelConfig, expansion: Expansion) -> None:
    weights = random_weights(tiny_config())
    grown_config, grown = expand(config, weights, expansion)
    check_shapes(grown_config, {name: tensor.shape for name, tensor in grown.items()}, "LlamaForCausalLM")
    assert num_parameters(grown_config) > num_parameters(config)
    small = OnnxLlama(export_decoder(config, weights, CONTEXT_LEN), rows=1)
    large = OnnxLlama(export_decoder(grown_config, grown, CONTEXT_LEN), rows=1)
    assert large.num_layers == expansion.num_layers
    for seed in range(3):
        prompt = [int(token) for token in np.random.default_rng(seed).integers(1, VOCAB_SIZE, 12)]
        tokens, logits = greedy(small, prompt)
        grown_tokens, grown_logits = greedy(large, prompt)
        assert grown_tokens == tokens
        np.testing.assert_allclose(grown_logits, logits, atol=1e-4, rtol=0)


def test_added_blocks_alone_change_no_bit(config: ModelConfig) -> None:
    """Adding zero is exact; only the longer sums of a wider feed-forward round differently."""
    weights = random_weights(tiny_config())
    grown_config, grown = expand(config, weights, Expansion(6, 112))
    tokens = np.random.default_rng(0).integers(1, VOCAB_SIZE, (1, 50))
    outputs = [
        OnnxLlama(export_decoder(*model, CONTEXT_LEN), rows=1).step(0, tokens, [0]) for model in ((config, weights), (grown_config, grown))
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_grown_model_keeps_its_words_in_8_bits(config: ModelConfig) -> None:
    """New neurons begin in blocks of their own only if the width is a multiple of the block, so logits may move a little."""
    weights = random_weights(tiny_config())
    models = [(config, weights), expand(config, weights, Expansion(6, 640))]
    tokens = np.random.default_rng(0).integers(1, VOCAB_SIZE, (1, 50))
    small, large = (OnnxLlama(quantize_weights(export_decoder(*model, CONTEXT_LEN)), rows=1).step(0, tokens, [0]) for model in models)
    assert np.sqrt(np.mean((small - large) ** 2)) / small.std() < 0.02


def test_new_weights_are_of_ordinary_scale_and_only_outputs_are_zero(config: ModelConfig) -> None:
    _, grown = expand(config, random_weights(tiny_config()), Expansion(6, 200))
    assert interleaved_origins(3, 6) == [None, 0, None, 1, None, 2]
    for name, tensor in grown.items():
        if not name.startswith("model.layers.0.") or "norm" in name:
            continue
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not tensor.any()
        else:
            assert 0.015 < tensor.std() < 0.025
    np.testing.assert_array_equal(grown["model.layers.1.mlp.down_proj.weight"][:, 112:], 0)
    assert grown["model.layers.1.mlp.gate_proj.weight"][112:].std() > 0.015


def test_expansion_is_reproducible(config: ModelConfig) -> None:
    weights = random_weights(tiny_config())
    first, again, other = (expand(config, weights, Expansion(5, 200), seed)[1] for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


@pytest.mark.parametrize(("num_old", "num_new"), [(1, 1), (1, 4), (3, 5), (8, 12), (8, 16), (8, 9)])
def test_old_blocks_keep_their_order(num_old: int, num_new: int) -> None:
    origins = interleaved_origins(num_old, num_new)
    assert len(origins) == num_new
    assert [origin for origin in origins if origin is not None] == list(range(num_old))


@pytest.mark.parametrize("num_params", [90_000_000, 200_000_000])
def test_plan_comes_within_one_step_of_the_wanted_size(config: ModelConfig, num_params: int) -> None:
    target = replace(
        config,
        vocab_size=4096,
        hidden_size=320,
        intermediate_size=896,
        layers=(LayerConfig(),) * 8,
        num_heads=5,
        num_kv_heads=5,
        head_dim=64,
    )
    plan = plan_expansion(target, num_params)
    size = num_parameters(replace(target, layers=target.layers[:1] * plan.num_layers, intermediate_size=plan.intermediate_size))
    assert abs(size - num_params) <= 64 * 3 * 320 * plan.num_layers / 2
    assert plan.num_layers == 16


def test_shrinking_and_biases_are_refused(config: ModelConfig) -> None:
    weights = random_weights(tiny_config())
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=expand_target value=1000 allowed=at least"):
        expand_to(config, weights, 1000)
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=expansion"):
        expand(config, weights, Expansion(2, 112))
    with pytest.raises(BuildError, match=r"^UNSUPPORTED field=mlp_bias value=True allowed=False with expand_target"):
        expand(replace(config, mlp_bias=True), weights, Expansion(6, 112))
