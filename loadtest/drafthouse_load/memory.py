"""Resident memory of the server's processes, and when it counts as flat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from drafthouse.launcher.processes import group_members

_KIB = 1024
_PROC = Path("/proc")
DECILES = 10


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Resident bytes of one process after so many finished requests."""

    finished: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Growth:
    """How a process's memory went after the first tenth of the run.

    Each tenth is represented by its median sample: one reading says little while a call is in flight.
    """

    tenths_bytes: tuple[int, ...]  # from the second tenth on, without tenths that have no sample

    @property
    def fraction(self) -> float:
        """Growth of the largest later tenth over the second one; negative when it shrank."""
        return max(self.tenths_bytes[1:]) / self.tenths_bytes[0] - 1.0


def growth(samples: Sequence[MemorySample], total: int) -> Growth | None:
    """Growth over a run of ``total`` requests; None for a process seen in fewer than two tenths after the first."""
    tenths: dict[int, list[int]] = {}
    for sample in samples:
        tenths.setdefault(min(sample.finished * DECILES // total, DECILES - 1), []).append(sample.rss_bytes)
    medians = tuple(int(median(tenths[tenth])) for tenth in sorted(tenths) if tenth > 0)
    return Growth(medians) if len(medians) > 1 else None


@dataclass
class MemoryLog:
    """Samples of every process of a server's process group, by pid and name."""

    process_group: int
    samples: dict[str, list[MemorySample]] = field(default_factory=dict)

    def sample(self, finished: int) -> None:
        """Read every process once. A process that ends meanwhile is left out."""
        for pid in group_members(self.process_group):
            rss_bytes = rss_of(pid)
            if rss_bytes:
                self.samples.setdefault(f"{process_name(pid)} (pid {pid})", []).append(MemorySample(finished, rss_bytes))

    def growths(self, total: int) -> Mapping[str, Growth]:
        """Growth per process, of those that lived through the run."""
        found = {name: growth(samples, total) for name, samples in self.samples.items()}
        return {name: value for name, value in found.items() if value is not None}


def rss_of(pid: int) -> int:
    """Resident bytes of a process; 0 when it is gone."""
    try:
        lines = (_PROC / str(pid) / "status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("VmRSS:")), 0)


def process_name(pid: int) -> str:
    """The Triton model a stub process serves, else the name of the executable; "gone" when it is."""
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return name_of_command([argument.decode(errors="replace") for argument in arguments])


def name_of_command(arguments: Sequence[str]) -> str:
    """`.../MODEL/VERSION/model.py` among the arguments names the model."""
    for argument in arguments:
        path = Path(argument)
        if path.name == "model.py" and len(path.parts) > 2:
            return path.parts[-3]
    return Path(arguments[0]).name if arguments and arguments[0] else "unknown"
