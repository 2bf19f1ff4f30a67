"""A drafter in this process: for tests, benchmarks and simulations that need no server."""

import asyncio
from collections.abc import Sequence

from drafthouse.engine.contract import Engine, StepCall, StepResult


class LocalDrafter:
    """A `DrafterClient` around an `Engine` object.

    With ``threaded`` a call runs in asyncio's thread pool, so that several drafters compute at once (the runtime lets go
    of the interpreter while it works); calls to one engine still follow each other. Without, everything is deterministic.
    """

    def __init__(self, name: str, engine: Engine, threaded: bool = False) -> None:
        self._name = name
        self._engine = engine
        self._threaded = threaded
        self._lock = asyncio.Lock()

    @property
    def name(self) -> str:
        """The drafter's domain name."""
        return self._name

    @property
    def max_step_tokens(self) -> int:
        """The engine's limit per row and call, as `CollaborativeFusion` wants it."""
        return self._engine.limits.max_step_tokens

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """See `EngineClient.step`."""
        if not self._threaded:
            return self._step(call, release_uids)
        async with self._lock:
            return await asyncio.to_thread(self._step, call, release_uids)

    def _step(self, call: StepCall, release_uids: Sequence[int]) -> StepResult:
        if release_uids:
            self._engine.release(release_uids)
        return self._engine.step(call) if call.rows else self._engine.status()
