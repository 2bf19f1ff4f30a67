"""Triton loads this file; the model is `drafthouse.triton.cosine_model.CosineModel`."""

from drafthouse.triton.cosine_model import CosineModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
