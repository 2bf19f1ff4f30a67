"""Triton loads this file; the model is `drafthouse.triton.fusion_model.FusionModel`."""

from drafthouse.triton.fusion_model import FusionModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
