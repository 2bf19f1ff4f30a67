"""Reads a Hugging Face checkpoint folder: configuration, safetensors (one file or shards), end-of-sequence ids.

Nothing is read before it is asked for, and a large tensor can be asked for in parts: what a build holds of a checkpoint are the pages of
the parts it is working on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from drafthouse_build.completion import complete_config
from drafthouse_build.errors import BuildError
from drafthouse_build.families import architecture_of

# Importing ml_dtypes is what teaches numpy, and so safetensors, the name "bfloat16".
FLOAT_TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
FloatArray = NDArray[np.float32]
Weights = Mapping[str, FloatArray]

_HASH_CHUNK_BYTES = 1 << 22
_ALL = slice(None)


class SafetensorsWeights(Mapping[str, FloatArray]):
    """All tensors of a set of safetensors files by name, converted to float32 when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            try:
                with safe_open(file, "numpy") as handle:
                    for name in handle.keys():  # noqa: SIM118 - the handle is not a mapping
                        self._file_of[name] = file
                        self.shapes[name] = tuple(handle.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise BuildError("INVALID_ARG", "weights", file, f"a readable safetensors file ({error})") from error

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self._file_of:
            raise KeyError(name)
        with safe_open(self._file_of[name], "numpy") as handle:
            return _as_float32(name, handle.get_tensor(name))

    def block(self, name: str, rows: slice, columns: slice) -> FloatArray:
        """A part of the matrix `name`; the rest of it is not read."""
        with safe_open(self._file_of[name], "numpy") as handle:
            return _as_float32(name, handle.get_slice(name)[rows, columns])

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def block(weights: Weights, name: str, rows: slice = _ALL, columns: slice = _ALL) -> FloatArray:
    """A part of the matrix `name`, read as such where the weights can."""
    if isinstance(weights, SafetensorsWeights):
        return weights.block(name, rows, columns)
    return weights[name][rows, columns]


def _as_float32(name: str, tensor: NDArray[np.generic]) -> FloatArray:
    if tensor.dtype not in FLOAT_TYPES:
        raise BuildError("UNSUPPORTED", f"dtype of {name}", tensor.dtype, "float32, float16, bfloat16")
    return np.asarray(tensor, dtype=np.float32)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that exists and is readable.

    `raw_config` is config.json with what its family leaves to `transformers` filled in; `weights` reads a tensor, or a part of it, at a
    time, as float32.
    """

    folder: Path
    architecture: str
    raw_config: Mapping[str, Any]
    eos_token_ids: tuple[int, ...]
    weights: SafetensorsWeights
    weights_sha256: str


def load_checkpoint(folder: Path) -> Checkpoint:
    """Opens the checkpoint in `folder`; raises `BuildError` naming what is missing."""
    if not folder.is_dir():
        raise BuildError("INVALID_ARG", "checkpoint", folder, "an existing folder with config.json and *.safetensors")
    raw_config = _read_json(folder / "config.json")
    files = _weight_files(folder)
    return Checkpoint(
        folder=folder,
        architecture=architecture_of(raw_config),
        raw_config=complete_config(folder, raw_config),
        eos_token_ids=_eos_token_ids(folder, raw_config),
        weights=SafetensorsWeights(files),
        weights_sha256=sha256_of_files(files),
    )


def sha256_of_files(files: list[Path]) -> str:
    """SHA-256 of the contents of `files`, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map", {})
        files = [folder / name for name in sorted(set(shards.values()))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise BuildError("INVALID_ARG", "weights", file, "model.safetensors, or every shard that model.safetensors.index.json names")
    return files


def _eos_token_ids(folder: Path, raw_config: Mapping[str, Any]) -> tuple[int, ...]:
    """`generation_config.json` wins over `config.json`, as in transformers; either may hold one id or a list."""
    generation = folder / "generation_config.json"
    value = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    value = raw_config.get("eos_token_id") if value is None else value
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise BuildError("INVALID_ARG", "eos_token_id", value, "a token id or a list of token ids")
    return tuple(ids)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BuildError("INVALID_ARG", "checkpoint", file, "an existing file") from error
    except (OSError, ValueError) as error:
        raise BuildError("INVALID_ARG", "checkpoint", file, f"readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise BuildError("INVALID_ARG", "checkpoint", file, "a JSON object")
    return value
