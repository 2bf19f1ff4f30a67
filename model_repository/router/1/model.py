"""Triton loads this file; the model is `drafthouse.triton.router_model.RouterModel`."""

from drafthouse.triton.router_model import RouterModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
