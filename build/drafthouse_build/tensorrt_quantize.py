"""4-bit weights for TensorRT, by NVIDIA's Model Optimizer: constant matrices become INT4 blocks behind a `DequantizeLinear`.

Rounding to nearest, which needs no calibration data. The scores' own matrix stays as it is. Activations and caches are not touched, so a
token's logits do not depend on its neighbours.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from drafthouse_build.errors import BuildError

_BLOCK_SIZES = (128, 64, 32)
_METHOD = "rtn_dq"
_KEPT = "logits"


def quantize_weights(file: Path) -> None:
    """Replaces the graph in `file`, which is fp16, by one with 4-bit weights; raises `BuildError` where Model Optimizer cannot."""
    try:
        from modelopt.onnx.quantization import int4
    except ImportError as error:
        allowed = "fp16, bf16, or NVIDIA's Model Optimizer: pip install 'nvidia-modelopt[onnx]'"
        raise BuildError("UNSUPPORTED", "precision", f"int4: {error}", allowed) from error
    model = onnx.load_model(str(file))
    result = int4.quantize(
        model,
        calibration_method=_METHOD,
        block_size=block_size(model),
        nodes_to_exclude=[_KEPT],
        use_external_data_format=False,
    )
    data = file.with_name(f"{file.name}.data")
    data.unlink(missing_ok=True)
    onnx.save_model(result, str(file), save_as_external_data=True, location=data.name)


def block_size(model: onnx.ModelProto) -> int:
    """Inputs that share a scale: as many as divide the height of every matrix that is rounded; raises `BuildError` where none does."""
    constants = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMul" and not node.name.startswith(_KEPT)]
    heights = {constants[node.input[1]][0] for node in nodes if node.input[1] in constants}
    for size in _BLOCK_SIZES:
        if all(height % size == 0 for height in heights):
            return size
    raise BuildError("UNSUPPORTED", "precision", f"int4 with matrices of {sorted(heights)} rows", "fp16 or bf16")
