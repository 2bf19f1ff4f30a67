"""TensorRT's Python interface over ONNX Runtime: what the builder and the session call, under the real names, with the real rules.

A "plan" is the ONNX graph with its profiles, and a context runs the graph on the memory that its addresses name. What TensorRT refuses,
this refuses too: shapes outside the profile, addresses that are not aligned, a cache that is not updated in place, a capture without a run
before it. `test_tensorrt_bindings` holds every name to NVIDIA's bindings.
"""

from fakes.fake_tensorrt_builder import (
    Builder,
    BuilderFlag,
    IBuilderConfig,
    IHostMemory,
    INetworkDefinition,
    IOptimizationProfile,
    ITimingCache,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    OnnxParser,
    ParserError,
)
from fakes.fake_tensorrt_runtime import (
    COMPUTE_BYTES,
    DataType,
    Dims,
    ExecutionContextAllocationStrategy,
    ICudaEngine,
    IExecutionContext,
    ILogger,
    IProgressMonitor,
    Runtime,
    TensorIOMode,
    recording,
)

__version__ = "10.15.1.29"
__all__ = [
    "COMPUTE_BYTES",
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorIOMode",
    "recording",
]
