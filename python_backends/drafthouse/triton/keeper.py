"""Brings inner models back: Triton never restarts a Python model whose process died, so we reload it.

A killed stub process answers "not healthy" for ever while the model still counts as ready. Unloading and loading that
one model helps; everything it knew is rebuilt by NEEDS_PREFILL answers, so no text changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import triton_python_backend_utils as pb_utils

# What Triton says when a model's process is dead, and while the model is being exchanged.
_SYMPTOMS = ("not healthy", "is not ready", "not found", "unloaded", "no version is available")
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0


def looks_dead(message: str) -> bool:
    """True when an error message of a call means that the called model needs a reload."""
    return any(symptom in message for symptom in _SYMPTOMS)


class ModelKeeper:
    """Reloads one model in the background, one reload at a time, with growing pauses while it keeps failing."""

    def __init__(
        self,
        model_name: str,
        load: Callable[[str], None] | None = None,
        unload: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model_name = model_name
        self.num_reloads = 0
        self._load = load or pb_utils.load_model
        self._unload = unload or pb_utils.unload_model
        self._clock = clock
        self._lock = threading.Lock()
        self._pause_s = FIRST_PAUSE_S
        self._not_before = 0.0
        self._ever_answered = False

    def saw_answer(self) -> None:
        """The model answers: the next failure is treated as a first one."""
        self._ever_answered = True
        self._pause_s = FIRST_PAUSE_S

    def saw_error(self, message: str) -> None:
        """A call failed with this message: reload in the background if the model looks dead. Never blocks."""
        # Before the first answer the model is still loading for the first time, which is Triton's business.
        if not (self._ever_answered and looks_dead(message)) or self._clock() < self._not_before:
            return
        if self._lock.acquire(blocking=False):
            self._not_before = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            threading.Thread(target=self._reload, name=f"reload-{self.model_name}", daemon=True).start()

    def _reload(self) -> None:
        try:
            pb_utils.Logger.log_warn(f"[drafthouse] {self.model_name} is dead: reloading it")
            self._unload(self.model_name)
            self._load(self.model_name)
            self.num_reloads += 1
            pb_utils.Logger.log_info(f"[drafthouse] {self.model_name} is back")
        except Exception as error:  # noqa: BLE001 - tried again at the next failed call, after the pause
            pb_utils.Logger.log_error(f"[drafthouse] {self.model_name} could not be reloaded: {error}")
        finally:
            self._lock.release()
