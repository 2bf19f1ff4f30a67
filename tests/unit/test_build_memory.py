"""A checkpoint of any size is built in the memory of its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from drafthouse_build.config import parse_config
from drafthouse_build.shapes import expected_shapes, num_parameters
from fakes.tiny_llama import tiny_config, tiny_tokenizer, write_checkpoint

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
SIZES = {
    "vocab_size": 24_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": False,
}
# Real shards are a hundred times a block's size, those of this test a dozen times.
BLOCK_BYTES = 1 << 22
BUILD = """
import sys
from pathlib import Path
from drafthouse_build import model_file, weight_store
from drafthouse_build.repository import build_repository

def resident(key):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))

target, drafter, output, templates, precision, block_bytes = sys.argv[1:]
weight_store.BLOCK_BYTES = int(block_bytes)
model_file.MAX_INLINE_BYTES = 10_000_000
before = resident("VmRSS")
build_repository(Path(target), {"small": Path(drafter)}, Path(output), templates=Path(templates), precision=precision)
print(resident("VmHWM") - before)
"""


def write_large_checkpoint(folder: Path) -> int:
    """A bfloat16 checkpoint of 95 million parameters, one shard per layer and table; returns the largest shard's size."""
    config = tiny_config(**SIZES, max_position_embeddings=1024)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()))
    shapes = expected_shapes(parse_config(config))
    assert num_parameters(parse_config(config)) > 90_000_000
    random = np.random.default_rng(0)
    weight_map = {name: f"{name.split('.')[2] if 'layers' in name else name}.safetensors" for name in shapes}
    for file in set(weight_map.values()):
        tensors = {name: shape for name, shape in shapes.items() if weight_map[name] == file}
        # Bits of small numbers; that they are random keeps any layer below from sharing pages.
        save_file(
            {name: (random.integers(0, 128, shape, np.uint16) + 0x3D00).view(ml_dtypes.bfloat16) for name, shape in tensors.items()},
            folder / file,
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
def test_a_build_takes_no_more_memory_than_the_largest_shard_twice(tmp_path: Path) -> None:
    largest = write_large_checkpoint(tmp_path / "target")
    write_checkpoint(tmp_path / "small", tiny_config(num_hidden_layers=1, max_position_embeddings=1024))
    taken = {}
    for precision in ("fp32", "int8"):
        arguments = [tmp_path / "target", tmp_path / "small", tmp_path / precision, TEMPLATES, precision, BLOCK_BYTES]
        command = [sys.executable, "-c", BUILD, *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        taken[precision] = int(done.stdout)
    written = tmp_path / "fp32" / "target" / "1" / "model.onnx.data"
    assert written.stat().st_size > 7 * largest
    assert taken["fp32"] < 2 * largest
    # Rounding reads whole float32 matrices, and works on a few blocks at a time.
    assert taken["int8"] < 2 * largest + 8 * BLOCK_BYTES
    assert not list(tmp_path.glob("*/target/1/*.fp32"))
