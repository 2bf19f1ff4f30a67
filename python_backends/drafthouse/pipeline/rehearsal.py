"""While nothing else is to do: a few calls of typical shapes, so that adaptation knows from the start what the stages take."""

import asyncio
import logging
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.clock import now_ns
from drafthouse.engine.contract import EngineLimits, RowStatus, StepCall, StepRow
from drafthouse.fusion.contract import DraftPlan, DraftRow
from drafthouse.pipeline.links import FusionLink, TargetLink
from drafthouse.pipeline.speculation import Speculation

logger = logging.getLogger(__name__)
REPEATS = 3  # the first time pays for memory
PROMPT_TOKENS = 8
_TOKENS_PER_ROW = (1, 2, 3, 5, 8, 12)
_DEPTHS = (2, 8)
_FIRST_UID = 2**64 - 2**16  # request uids are random, and these always the same: see `made_up_uids`


def verified_shapes(limits: EngineLimits) -> Iterator[tuple[int, int]]:
    """(rows, tokens per row) of the verifications worth knowing: one request, and as many as there are slots."""
    for rows in sorted({1, max(limits.slots // 2, 1), limits.slots}):
        for tokens in _TOKENS_PER_ROW:
            if tokens <= limits.max_step_tokens:
                yield rows, tokens


def drafted_shapes(limits: EngineLimits) -> Iterator[tuple[int, int]]:
    """(rows, depth) of the drafts worth knowing."""
    for rows in sorted({1, limits.slots}):
        for depth in _DEPTHS:
            yield rows, depth


def made_up_uids(limits: EngineLimits) -> range:
    """Requests of rehearsals. A front door that is unloaded in the middle of one cannot release them; the next one does, first of all."""
    return range(_FIRST_UID, _FIRST_UID + limits.slots)


class Rehearsal:
    """Times made-up requests and forgets them again."""

    def __init__(
        self,
        target: TargetLink,
        fusion: FusionLink,
        speculation: Speculation,
        limits: EngineLimits,
        usable: NDArray[np.bool_],
        is_over: Callable[[], bool],
    ) -> None:
        """Args: usable: [D], drafters that may work; is_over: asked between calls whether to break off, as others want the slots."""
        self._target = target
        self._fusion = fusion
        self._speculation = speculation
        self._limits = limits
        self._num_drafters = len(usable)
        self._drafter = int(np.flatnonzero(usable)[-1])
        self._is_over = is_over
        self._prompt = np.arange(1, 1 + PROMPT_TOKENS, dtype=np.int32) % limits.vocab_size

    async def run(self) -> bool:
        """Rehearse; False when it was broken off. Does without when the target fails: all of this is learned while serving, too."""
        try:
            return await self._rehearse()
        except Exception:
            logger.warning("no rehearsal", exc_info=True)
            return True

    async def _rehearse(self) -> bool:
        uids = made_up_uids(self._limits)
        try:
            await self._target.step(StepCall([StepRow(uid, 0, self._prompt, PROMPT_TOKENS) for uid in uids], num_steps=0))
            for _ in range(REPEATS):
                for rows, tokens in verified_shapes(self._limits):
                    if self._is_over():
                        return False
                    await self._verify(rows, tokens)
            for _ in range(REPEATS):
                for rows, depth in drafted_shapes(self._limits):
                    if self._is_over():
                        return False
                    await self._draft(rows, depth)
        finally:
            for uid in uids:
                self._target.releases.add(uid)
                self._fusion.releases.add(uid)
        await asyncio.gather(self._target.flush(), self._fusion.flush())  # it is over when its slots are free again
        return True

    async def _verify(self, rows: int, tokens_per_row: int) -> None:
        tokens = np.resize(self._prompt, tokens_per_row).astype(np.int32)
        tokens[0] = self._prompt[-1]
        parents = np.arange(-1, tokens_per_row - 1, dtype=np.int32)
        call = StepCall([StepRow(_FIRST_UID + row, PROMPT_TOKENS - 1, tokens, 1, parents) for row in range(rows)], return_logprobs=False)
        started_ns = now_ns()
        result = await self._target.step(call)
        if any(answer.status is not RowStatus.OK for answer in result.rows):
            return  # an answer without work says nothing about its price
        self._speculation.saw_verification(rows, rows * tokens_per_row, now_ns() - started_ns)

    async def _draft(self, rows: int, depth: int) -> None:
        weights = np.zeros(self._num_drafters, np.float32)
        weights[self._drafter] = 1.0
        wanted = [DraftRow(_FIRST_UID + row, 0, self._prompt, depth, weights) for row in range(rows)]
        started_ns = now_ns()
        result = await self._fusion.draft(wanted, DraftPlan())
        if result is not None and all(len(answer.tree) for answer in result.rows):
            self._speculation.saw_drafting(rows, depth, now_ns() - started_ns)
