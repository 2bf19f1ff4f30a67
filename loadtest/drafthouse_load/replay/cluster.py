"""The processes of a server in virtual time: each has a core of its own, takes one call at a time, and is reached by messages that cost."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from drafthouse.engine.contract import StepCall, StepResult
from drafthouse.fusion.contract import DraftCall, DraftResult, Fusion
from drafthouse.routing.contract import Router, RouteResult, RouteRow
from drafthouse_load.replay.costs import HopCost
from drafthouse_load.replay.engine import ReplayEngine
from drafthouse_load.replay.virtual_time import VirtualCore

T = TypeVar("T")
_S_PER_MS = 1e-3


class Faults:
    """What went wrong inside the replayed processes. The pipeline goes on without a drafter, fusion or a router that fails; in a replay
    none of them may."""

    def __init__(self) -> None:
        self.seen: list[Exception] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an exception of the block on its way out."""
        try:
            yield
        except Exception as error:
            self.seen.append(error)
            raise


class EngineProcess:
    """A `DrafterClient`, or the pipeline's client of the target."""

    def __init__(self, name: str, engine: ReplayEngine, core: VirtualCore, hop: HopCost, before: "CallerWork", faults: Faults) -> None:
        """``before``: what the caller has to do by itself."""
        self._name = name
        self._engine = engine
        self._core = core
        self._hop = hop
        self._before = before
        self._faults = faults

    @property
    def name(self) -> str:
        """The drafter's name."""
        return self._name

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """See `EngineClient.step`. A call that its caller gives up on is still computed, as in a server."""
        return await _to_its_end(self._call(call, release_uids))

    async def _call(self, call: StepCall, release_uids: Sequence[int]) -> StepResult:
        if call.rows:
            await self._before.work(len(call.rows))
        way_s = self._hop.ms(len(call.rows)) * _S_PER_MS / 2
        await asyncio.sleep(way_s)
        async with self._core.held():
            with self._faults.noted():
                self._engine.release(release_uids)
                result = self._engine.step(call)
            await asyncio.sleep(self._engine.busy_s)
        await asyncio.sleep(way_s)
        return result


class CallerWork:
    """What a process does by itself for each call that it makes: it does nothing else meanwhile."""

    def __init__(self, core: VirtualCore, cost: HopCost) -> None:
        self._core = core
        self._cost = cost

    async def work(self, rows: int) -> None:
        """Pass the time that so many rows take."""
        async with self._core.held():
            await asyncio.sleep(self._cost.ms(rows) * _S_PER_MS)


class FusionProcess:
    """A `Fusion` that takes one draft call at a time, as the model's single instance does."""

    def __init__(self, fusion: Fusion, core: VirtualCore, hop: HopCost, faults: Faults) -> None:
        self._fusion = fusion
        self._core = core
        self._hop = hop
        self._faults = faults

    async def draft(self, call: DraftCall) -> DraftResult:
        """See `Fusion.draft`."""
        return await _to_its_end(self._call(call))

    async def _call(self, call: DraftCall) -> DraftResult:
        way_s = self._hop.ms(len(call.rows)) * _S_PER_MS / 2
        await asyncio.sleep(way_s)
        async with self._core.held():
            with self._faults.noted():
                result = await self._fusion.draft(call)
        await asyncio.sleep(way_s)
        return result


class RouterProcess:
    """A `Router` behind a message."""

    def __init__(self, router: Router, core: VirtualCore, hop: HopCost, faults: Faults) -> None:
        self._router = router
        self._core = core
        self._hop = hop
        self._faults = faults

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        """See `Router.route`; the message's cost includes the router's work."""
        async with self._core.held():
            await asyncio.sleep(self._hop.ms(len(rows)) * _S_PER_MS)
            with self._faults.noted():
                return await self._router.route(rows)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """The work's result; a caller that is cancelled does not cancel the work."""
    return await asyncio.shield(asyncio.ensure_future(work))
