"""A `Device` made of host memory, for sessions on machines without a GPU; with `fake_tensorrt` its streams are real calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse.engine.tensorrt.profiles import ALIGNMENT_BYTES
from fakes import fake_tensorrt


@dataclass
class HostDevice:
    """Memory aligned as TensorRT asks for; a captured graph is what the fake's contexts recorded meanwhile."""

    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stream_handle: int = 7
    compute_capability: str = "9.0"
    name: str = "Host GPU"
    memory_bytes: int = 1 << 30
    refuses_capture: bool = False
    used_bytes: int = 0

    def free_bytes(self) -> int:
        return self.memory_bytes - self.used_bytes

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if num_bytes > self.free_bytes():
            raise ServerError(ErrorCode.UNAVAILABLE, "gpu_memory_bytes", num_bytes, f"at most {self.free_bytes()}")
        self.used_bytes += num_bytes
        memory = torch.full((num_bytes + ALIGNMENT_BYTES,), 0xFF, dtype=torch.uint8)  # nobody may rely on zeroes
        start = -memory.data_ptr() % ALIGNMENT_BYTES
        return memory[start : start + num_bytes].view(dtype).view(shape)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def run(self, work: Callable[[], object]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        with fake_tensorrt.recording(refused=self.refuses_capture) as recorded:
            work()

        def replay() -> None:
            for run in recorded:
                run()

        return replay
