"""Brings the front door back: nobody inside the server can reload the model that every request goes through.

`cosine` reloads its engines when their processes die, but Triton restarts no process, so a dead `cosine` would answer "not
healthy" for ever. Its open requests are lost with it, and Triton never ends their streams: their clients hang until their own deadline
or until they disconnect. New requests are served again, and at once: the engines hold slots for requests that nobody will go on
with, so they are loaded anew before `cosine` is.

On a node that serves drafters to other servers there is no `cosine`, and nobody else in it who would reload them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from drafthouse.launcher import processes
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.server import TritonServer

FRONT_DOOR = "cosine"
_TARGET, _DRAFTER_PREFIX = "target", "drafter_"
CHECK_S = 1.0


def watches_of(server: TritonServer, announce: Callable[[str], None]) -> list[FrontDoorWatch]:
    """What a running server needs: one for its front door, or one for each drafter of a node without any."""
    names = server.config.model_names()
    doors = [FRONT_DOOR] if FRONT_DOOR in names else [name for name in names if name.startswith(_DRAFTER_PREFIX)]
    return [FrontDoorWatch(server, announce, door) for door in doors]


class FrontDoorWatch:
    """Looks after one model of a running server. `check` is called often and acts at most once per `CHECK_S`."""

    def __init__(self, server: TritonServer, announce: Callable[[str], None], model: str = FRONT_DOOR) -> None:
        self._server = server
        self._announce = announce
        self._model = model
        names = server.config.model_names()
        self._is_served = model in names
        self._engines = [name for name in names if name == _TARGET or name.startswith(_DRAFTER_PREFIX)] if model == FRONT_DOOR else []
        self._next_check_s = 0.0
        self._was_missing = False

    def check(self) -> None:
        """Reload the model when its process was missing twice in a row; a reload by somebody else shows as missing once."""
        if not self._is_served or time.monotonic() < self._next_check_s:
            return
        self._next_check_s = time.monotonic() + CHECK_S
        missing = processes.model_process(self._server.pid, self._model) is None
        if missing and self._was_missing:
            self._reload()
        self._was_missing = missing

    def _reload(self) -> None:
        self._announce(f"The process of {self._model} is gone: reloading it{' and its engines' if self._engines else ''}.")
        try:
            if self._engines:
                # Together, because each mostly waits: for its process to start, then for its share of the processor.
                with ThreadPoolExecutor(len(self._engines)) as threads:
                    list(threads.map(self._server.load_model, self._engines))
            self._server.load_model(self._model)
            self._announce(f"{self._model} is back.")
        except LaunchError as error:
            self._announce(f"{self._model} could not be reloaded, trying again: {error}")
