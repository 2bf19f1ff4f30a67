"""How far TensorRT is with a build: its phases, which lie inside one another, as one number from 0 to 1."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import SupportsInt

import tensorrt as trt

from drafthouse_build.model_file import Progress

_SHOWN_STEPS = 1000


@dataclass
class _Phase:
    num_steps: int
    parent: str | None
    done: int = 0
    children: list[str] = field(default_factory=list)


class BuildMonitor(trt.IProgressMonitor):
    """Tells `progress` again and again how many thousandths of the build are done. Called by TensorRT, on several threads."""

    def __init__(self, progress: Progress | None) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._shown = 0
        self.is_cancelled = False

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
        """A phase of `num_steps` steps begins, as a step of its parent."""
        with self._lock:
            self._phases[phase_name] = _Phase(max(int(num_steps), 1), parent_phase)
            if parent_phase in self._phases:
                self._phases[parent_phase].children.append(phase_name)

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """Whether to go on."""
        with self._lock:
            if phase_name in self._phases:
                self._phases[phase_name].done = int(step) + 1
            self._show()
            return not self.is_cancelled

    def phase_finish(self, phase_name: str) -> None:
        """A phase has ended, maybe before all its steps were done."""
        with self._lock:
            phase = self._phases.pop(phase_name, None)
            if phase is not None and phase.parent in self._phases:
                self._phases[phase.parent].children.remove(phase_name)
            self._show()

    def _show(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        share = sum(self._share(name) for name in roots) / len(roots) if roots else 1.0
        self._shown = max(self._shown, round(_SHOWN_STEPS * share))  # a phase that ends early does not turn the bar back
        if self._progress is not None:
            self._progress(self._shown, _SHOWN_STEPS)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inside = sum(self._share(child) for child in phase.children) / len(phase.children) if phase.children else 0.0
        return min((phase.done + inside) / phase.num_steps, 1.0)
