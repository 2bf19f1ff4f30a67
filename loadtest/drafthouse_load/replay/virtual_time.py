"""An event loop whose clock jumps to the next timer instead of waiting for it, and what occupies a core on that clock."""

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")
MAX_TURNS = 200_000  # of the loop while its clock stands: a replay's busiest moment takes a few hundred


class DeadlockError(RuntimeError):
    """Every task waits for something that no timer will bring about, or some task keeps the clock from moving."""


class _Clock:
    """Seconds since the loop was made; only the selector moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0


class _JumpingSelector(selectors.DefaultSelector):
    """Where a loop would wait for its next timer, the clock is set to that timer."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock
        self._num_turns = 0  # since the clock last moved

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing, at once; the loop's own wake-up pipe is all that could ever be ready, and it is asked only where no timer is left."""
        if timeout is None:
            ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
            if not ready:
                raise DeadlockError("every task waits and no timer is set")
            return ready
        self._num_turns = 0 if timeout > 0 else self._num_turns + 1
        if self._num_turns > MAX_TURNS:
            self._num_turns = 0  # what the loop has to do to end is not counted
            raise DeadlockError(f"the clock stands at {self._clock.now_s:.6f} s and some task never waits")
        self._clock.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs timers in their order, at once. Nothing on it may wait for another thread, a process or a socket: their time does not pass."""

    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(_JumpingSelector(self._virtual))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a virtual loop of its own. Raises DeadlockError when it waits for something that cannot happen."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class BusyMeter:
    """For how long at least one of several cores was in use."""

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._in_use = 0
        self._since_s = 0.0

    def enter(self) -> None:
        """One more core is in use."""
        if self._in_use == 0:
            self._since_s = asyncio.get_running_loop().time()
        self._in_use += 1

    def leave(self) -> None:
        """One core less is in use."""
        self._in_use -= 1
        if self._in_use == 0:
            self._busy_s += asyncio.get_running_loop().time() - self._since_s

    @property
    def busy_s(self) -> float:
        """Seconds up to this moment."""
        running_s = asyncio.get_running_loop().time() - self._since_s if self._in_use else 0.0
        return self._busy_s + running_s


class VirtualCore:
    """A core that one stage has to itself: who wants it while it is held waits in line."""

    def __init__(self, *meters: BusyMeter) -> None:
        """``meters`` are told whenever the core is in use."""
        self._lock = asyncio.Lock()
        self._meters = meters

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the core for the length of the block."""
        async with self._lock:
            for meter in self._meters:
                meter.enter()
            try:
                yield
            finally:
                for meter in self._meters:
                    meter.leave()
