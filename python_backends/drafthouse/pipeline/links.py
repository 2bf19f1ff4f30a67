"""The ways from the pipeline to the target and to fusion: who was released, who does not answer."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from drafthouse.engine.contract import EngineClient, EngineError, StepCall, StepResult
from drafthouse.engine.releases import Releases
from drafthouse.fusion.contract import DraftCall, DraftPlan, DraftResult, DraftRow, Fusion

logger = logging.getLogger(__name__)
T = TypeVar("T")


class TargetLink:
    """Calls to the target. Counts failures, so that the loop can wait, recover or give up."""

    def __init__(self, client: EngineClient) -> None:
        self.releases = Releases()
        self.num_failures = 0  # failed calls in a row
        self.num_failed_batches = 0  # failed calls with rows in a row: they may fail on a target that is well otherwise
        self.slots_free = 0
        self.slots_total = 0
        self._client = client

    async def step(self, call: StepCall) -> StepResult:
        """One call; raises EngineError when the target does not answer."""
        try:
            result = await self._call(call)
        except EngineError:
            self.num_failures += 1
            self.num_failed_batches += bool(call.rows)
            raise
        if call.rows:
            self.num_failed_batches = 0
        return result

    async def revive(self) -> None:
        """After a failure, see whether the target answers before anything is drafted for it. Raises EngineError."""
        if self.num_failures > 0:
            await self.step(StepCall(rows=()))

    async def flush(self) -> bool:
        """Send pending releases now; False when the target does not answer."""
        if len(self.releases) == 0:
            return True
        try:
            await self._call(StepCall(rows=()))
        except EngineError as error:
            logger.warning("the target did not take releases: %s", error)
            return False
        return True

    async def _call(self, call: StepCall) -> StepResult:
        released = self.releases.owed()
        result = await self._client.step(call, tuple(released))
        self.num_failures = 0
        self.releases.settle(released)
        self.slots_free, self.slots_total = result.slots_free, result.slots_total
        return result


class FusionLink:
    """Calls to fusion. Speculation is an aid: whatever goes wrong here, requests go on without drafts."""

    def __init__(self, fusion: Fusion | None) -> None:
        self.releases = Releases()
        self._fusion = fusion
        self._is_failing = False

    async def draft(self, rows: Sequence[DraftRow], plan: DraftPlan | None = None) -> DraftResult | None:
        """One draft round; None when there is none to be had."""
        if self._fusion is None:
            return None
        released = self.releases.owed()
        try:
            result = await self._fusion.draft(DraftCall(rows, tuple(released), plan or DraftPlan()))
        except Exception:
            if not self._is_failing:  # once per outage, not once per round
                logger.exception("fusion fails; going on without drafts")
            self._is_failing = True
            return None
        if len(result.rows) != len(rows):
            logger.error("fusion answered %d rows of %d", len(result.rows), len(rows))
            return None
        self._is_failing = False
        self.releases.settle(released)
        return result

    async def flush(self) -> bool:
        """Send pending releases now; False when fusion does not answer."""
        if self._fusion is None or len(self.releases) == 0:
            return True
        return await self.draft(()) is not None


async def beside(main: Awaitable[T], side: Awaitable[None]) -> T:
    """Run ``side`` at the same time as ``main``; the result is main's. Returns or raises only when both are done."""
    task = asyncio.ensure_future(side)
    try:
        return await main
    finally:
        await task


async def both(first: Awaitable[None], second: Awaitable[None]) -> None:
    """Run two things at the same time."""
    await beside(first, second)
