"""How an engine is run, as opposed to what it is (``engine.json``)."""

from dataclasses import dataclass

from drafthouse.core.errors import invalid

_RANGES = (
    ("slots", 1, 4096),
    ("num_threads", 1, 1024),
    ("min_step_tokens", 1, 2),
    ("device_id", 0, 1023),
    ("calibration_ms", 0, 60_000),
)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Run-time options of one engine; raises ClientError for values outside their range."""

    slots: int = 8  # sequences whose cache is held at a time
    num_threads: int = 1  # of the runtime: 1 for a drafter, 2 for the target on a small machine
    min_step_tokens: int = 2  # 1 only to measure: a call of one token takes other kernels, so its numbers differ
    device_id: int = 0  # the GPU, where the engine runs on one
    calibration_ms: int = 300  # at most so long at load to find cheap call shapes; 0 = none, every call keeps its own length

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise invalid(name, value, f"{low} to {high}")
