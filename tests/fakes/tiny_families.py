"""A tiny checkpoint of every family, made and saved by `transformers`, and the text of longer ones recomputed by it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fakes.tiny_llama import tiny_tokenizer

VOCAB_SIZE = 96
_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
# Windows are short enough for prompts and trees to leave them.
_SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, **_SLIDING}
_FACTORS = [1.0, 1.1, 1.3, 1.7, 2.5, 4.0]

# name → (model_type, what differs from `_SHAPE`)
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-2": ("llama", {"num_key_value_heads": 6}),
    "llama-3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **_LLAMA3}}),
    "smollm": ("llama", {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "mistral": ("mistral", {"sliding_window": 16, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 16}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma-2": ("gemma2", {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, **_GEMMA}),
    "gemma-3": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            **_GEMMA,
        },
    ),
    "phi-3": ("phi3", {"sliding_window": 16, "hidden_size": 96}),
    "phi-3-longrope": (
        "phi3",
        {
            "hidden_size": 96,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": _FACTORS,
                "long_factor": _FACTORS[::-1],
            },
        },
    ),
}


def make_model(name: str, seed: int = 0) -> Any:  # noqa: ANN401 - transformers has no types here
    """A random model of the family, its weights large enough for attention and logits to be far from uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = FAMILIES[name]
    config = AutoConfig.for_model(model_type, **{**_SHAPE, **options})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    centre = 0.0 if name.startswith("gemma") else 1.0
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
            if "norm" in parameter_name:
                parameter.mul_(0.4).add_(centre)
    return model


def save_model(model: Any, folder: Path, max_shard_size: str = "60KB") -> Path:  # noqa: ANN401
    """Writes the model as `transformers` does, in several shards, with a tokenizer beside it."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "tokenizer.json").write_text(json.dumps({**tiny_tokenizer(), "decoder": {"type": "ByteLevel"}}))
    return folder


def reference(model: Any, tokens: Sequence[int]) -> NDArray[np.float32]:  # noqa: ANN401
    """Logits `[len(tokens), V]` of the whole sequence, without a cache."""
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()
    return logits
