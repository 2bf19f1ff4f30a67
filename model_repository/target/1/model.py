"""Triton loads this file; the model is `drafthouse.triton.engine_model.EngineModel`."""

from drafthouse.triton.engine_model import EngineModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
