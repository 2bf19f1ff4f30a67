"""The GPU as the session sees it: one stream, memory, captured graphs. PyTorch does the work, so that memory has one owner."""

from collections.abc import Callable
from typing import Protocol

import torch

from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse.engine.contract import EngineError


class Device(Protocol):
    """What a session needs of a GPU. Tests run the same session on host memory."""

    @property
    def torch_device(self) -> torch.device:
        """Where tensors live."""
        ...

    @property
    def stream_handle(self) -> int:
        """The CUDA stream that everything runs on."""
        ...

    @property
    def compute_capability(self) -> str:
        """Such as "9.0"."""
        ...

    @property
    def name(self) -> str:
        """As NVIDIA calls it."""
        ...

    def free_bytes(self) -> int:
        """Memory that nothing holds now."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory on the device; raises ServerError when there is too little."""
        ...

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeroed memory of the host that the device copies from without waiting."""
        ...

    def run(self, work: Callable[[], None]) -> None:
        """Does ``work`` on the stream and waits for it; raises EngineError when the device failed."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records what ``work`` starts on the stream, which does not happen yet; the result starts all of it at once.

        Raises EngineError when the device recorded nothing.
        """
        ...


class CudaDevice:
    """A ``Device`` over PyTorch's CUDA interface."""

    def __init__(self, index: int) -> None:
        """Raises ServerError where there is no such GPU."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= count:
            raise ServerError(ErrorCode.UNAVAILABLE, "device_id", index, f"0 to {count - 1}" if count else "a GPU: PyTorch sees none")
        self._device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self._device)

    @property
    def torch_device(self) -> torch.device:
        return self._device

    @property
    def stream_handle(self) -> int:
        handle: int = self._stream.cuda_stream
        return handle

    @property
    def compute_capability(self) -> str:
        major, minor = torch.cuda.get_device_capability(self._device)
        return f"{major}.{minor}"

    @property
    def name(self) -> str:
        name: str = torch.cuda.get_device_name(self._device)
        return name

    def free_bytes(self) -> int:
        free: int = torch.cuda.mem_get_info(self._device)[0]
        return free

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        try:
            return torch.empty(shape, dtype=dtype, device=self._device)
        except torch.cuda.OutOfMemoryError as error:
            wanted = torch.Size(shape).numel() * dtype.itemsize
            allowed = f"at most {self.free_bytes()}: fewer slots, a shorter context, or another GPU (`drafthouse size` computes it)"
            raise ServerError(ErrorCode.UNAVAILABLE, "gpu_memory_bytes", wanted, allowed) from error

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def run(self, work: Callable[[], None]) -> None:
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                work()
            self._stream.synchronize()
        except RuntimeError as error:  # what PyTorch makes of every CUDA error
            raise EngineError(f"the GPU failed: {error}") from error

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            raise EngineError(f"the GPU recorded no graph: {error}") from error
        replay: Callable[[], None] = graph.replay
        return replay
