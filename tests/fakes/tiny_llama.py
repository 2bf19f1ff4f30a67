"""Random Llama checkpoints of a few thousand numbers, in the folder layout of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from drafthouse_build.config import parse_config
from drafthouse_build.shapes import expected_shapes

VOCAB_SIZE = 96
MAX_POSITIONS = 128


def tiny_config(**overrides: object) -> dict[str, Any]:
    """A `config.json`: three layers, six query heads on two key/value heads, tied embeddings."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    config.update(overrides)
    return {key: value for key, value in config.items() if value is not None}


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights large enough for attention and logits to be far from uniform."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(parse_config(config)).items():
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
        weights[name] = 1 + values / 3 if "norm" in name else values
    return weights


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    num_shards: int = 1,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Writes config.json, safetensors and tokenizer.json into `folder` and returns it."""
    config = tiny_config() if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer() if tokenizer is None else tokenizer))
    tensors = random_weights(config, seed) if weights is None else weights
    stored = {name: tensor.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for name, tensor in tensors.items()}
    if num_shards == 1:
        save_file(stored, folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{index % num_shards + 1:05d}-of-{num_shards:05d}.safetensors" for index, name in enumerate(stored)}
    for file in set(weight_map.values()):
        save_file({name: stored[name] for name in stored if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def tiny_tokenizer() -> dict[str, Any]:
    """A byte-level BPE tokenizer.json with one special token and two merges."""
    letters = [chr(code) for code in range(ord("!"), ord("!") + 80)]
    vocabulary = {"<eos>": 0, **{letter: index + 1 for index, letter in enumerate(letters)}, "ab": 81, "abc": 82}
    added = {"id": 0, "content": "<eos>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [added],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], ["ab", "c"]]},
    }
