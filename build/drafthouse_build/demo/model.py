"""A compact Llama for training and batched generation on a CPU, stored as a Hugging Face folder."""

# torch is an extra: where it is missing, its classes have no known type.
# mypy: allow-subclassing-any

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drafthouse_build.demo.config import EOS_ID, ModelShape

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_once(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one new token: query [rows, heads, 1, dim] over [rows, heads, length, dim].

    Written with products and sums, because Inductor turns that into one pass over the cache, four times as
    fast in bfloat16 as the CPU kernel of ``scaled_dot_product_attention`` at this shape.
    """
    scores = (query.float() * keys.float()).sum(dim=-1) * query.shape[-1] ** -0.5
    mixed = (torch.softmax(scores, dim=-1).unsqueeze(-1) * values.float()).sum(dim=-2)
    return mixed.to(query.dtype).unsqueeze(2)


class KeyValueCache:
    """Keys and values of every layer, filled to ``length`` positions in all rows at once.

    ``attend`` computes the attention of single new tokens; it may be a compiled :func:`attend_once`.
    """

    def __init__(self, shape: ModelShape, rows: int, capacity: int, dtype: torch.dtype, attend: Attend | None = None) -> None:
        self.attend: Attend = attend or F.scaled_dot_product_attention
        size = (shape.num_layers, rows, shape.num_heads, capacity, shape.head_dim)
        self.keys = torch.zeros(size, dtype=dtype)
        self.values = torch.zeros(size, dtype=dtype)
        self.length = 0

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but those with the given indices (int64, shape [kept])."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]


class Norm(nn.Module):
    """RMSNorm in the input's precision with a float32 mean, as Llama has it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(hidden, (hidden.shape[-1],), self.weight.to(hidden.dtype), self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions (Su et al. 2021), with or without a cache."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads, self.head_dim = layer, shape.num_heads, shape.head_dim
        size = shape.num_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, size, bias=False)
        self.o_proj = nn.Linear(size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: KeyValueCache | None) -> Tensor:
        """Map [rows, tokens, hidden] to the same shape; a cache must have room for ``tokens`` more."""
        rows, tokens, _ = hidden.shape
        heads = (rows, tokens, self.num_heads, self.head_dim)
        query = rotate(self.q_proj(hidden).view(heads).transpose(1, 2), rotation)
        key = rotate(self.k_proj(hidden).view(heads).transpose(1, 2), rotation)
        value = self.v_proj(hidden).view(heads).transpose(1, 2)
        mask = None
        if cache is not None:
            end = cache.length + tokens
            cache.keys[self.layer, :, :, cache.length : end] = key
            cache.values[self.layer, :, :, cache.length : end] = value
            key, value = cache.keys[self.layer, :, :, :end], cache.values[self.layer, :, :, :end]
            if cache.length and tokens > 1:
                mask = torch.ones(tokens, end, dtype=torch.bool).tril(cache.length)
        if cache is not None and tokens == 1:
            mixed = cache.attend(query, key, value)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))


class Mlp(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [rows, tokens, hidden] to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: KeyValueCache | None) -> Tensor:
        """Map [rows, tokens, hidden] to the same shape."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Llama(nn.Module):
    """The language model; parameter names under ``model.`` are those of ``LlamaForCausalLM``."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, index) for index in range(shape.num_layers))
        self.norm = Norm(shape.hidden_size, shape.norm_eps)
        cos, sin = rotation_table(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        residual_std = 0.02 / (2 * self.shape.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and name.startswith("layers."):
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual_std if into_residual else 0.02)

    def hidden_states(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Final hidden states [rows, tokens, hidden] of int64 token ids [rows, tokens]."""
        start = cache.length if cache is not None else 0
        rotation = (self.cos[start : start + tokens.shape[1]], self.sin[start : start + tokens.shape[1]])
        hidden = self.embed_tokens(tokens)
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
        rotation = (rotation[0].to(hidden.dtype), rotation[1].to(hidden.dtype))
        for layer in self.layers:
            hidden = layer(hidden, rotation, cache)
        if cache is not None:
            cache.length = start + tokens.shape[1]
        out: Tensor = self.norm(hidden)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] of hidden states [..., hidden]."""
        return F.linear(hidden, self.embed_tokens.weight)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Next-token logits [rows, tokens, vocabulary]."""
        return self.logits(self.hidden_states(tokens, cache))


def rotation_table(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each [max_positions, head_dim]."""
    exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    angles = torch.outer(torch.arange(shape.max_positions).float(), shape.rope_theta**-exponents)
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos(), doubled.sin()


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to [rows, heads, tokens, head_dim], halves layout."""
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation[0] + torch.cat((-second, first), dim=-1) * rotation[1]


def save_pretrained(model: Llama, folder: Path) -> None:
    """Write ``model.safetensors`` (bfloat16), ``config.json`` and ``generation_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": value.detach().to(torch.bfloat16).contiguous() for name, value in model.named_parameters()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    shape = model.shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": EOS_ID,
        "dtype": "bfloat16",
        "eos_token_id": EOS_ID,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": EOS_ID, "eos_token_id": EOS_ID})


def load_pretrained(folder: Path) -> Llama:
    """Read a folder written by :func:`save_pretrained`; the weights become float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Llama(
        ModelShape(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            head_dim=config["head_dim"],
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            rope_theta=config["rope_parameters"]["rope_theta"],
            norm_eps=config["rms_norm_eps"],
        )
    )
    weights = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    return model


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
