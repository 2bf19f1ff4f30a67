"""The way from the engine to this package: imports TensorRT and PyTorch, which only a GPU machine has, and says so where they lack."""

from pathlib import Path

from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse.engine.manifest import EngineManifest
from drafthouse.engine.options import EngineOptions
from drafthouse.engine.session import Session


def open_session(folder: Path, manifest: EngineManifest, options: EngineOptions) -> Session:
    """A session over ``model.plan`` in ``folder`` on GPU ``options.device_id``; raises ClientError or ServerError, with the fix."""
    try:
        import tensorrt
        import torch
    except (ImportError, OSError) as error:
        allowed = "TensorRT and PyTorch, as in NVIDIA's Triton image; elsewhere: pip install 'drafthouse[gpu]'"
        raise ServerError(ErrorCode.UNAVAILABLE, "library", str(error), allowed) from error
    from drafthouse.engine.tensorrt.device import CudaDevice
    from drafthouse.engine.tensorrt.session import TensorRtSession

    device = CudaDevice(options.device_id)
    torch.cuda.set_device(device.torch_device)  # TensorRT takes the current one
    return TensorRtSession(folder, manifest, options.slots, device, tensorrt.__version__)
