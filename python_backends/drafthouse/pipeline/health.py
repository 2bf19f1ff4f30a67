"""Which drafters answer. One that does not is left out of routing for a while, then tried again."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drafthouse.engine.contract import RowStatus
from drafthouse.fusion.contract import DraftRow, DraftRowResult

logger = logging.getLogger(__name__)
ROUNDS_BEFORE_LEFT_OUT = 2  # once is a hiccup, such as a reload that is already under way
FIRST_PAUSE_NS = 500_000_000
LONGEST_PAUSE_NS = 30_000_000_000  # a drafter that hangs costs one call timeout per pause


@dataclass(slots=True)
class _Record:
    num_absent: int = 0  # rounds in a row in which it was asked and answered for no request
    back_at_ns: int = 0  # left out until then
    pause_ns: int = FIRST_PAUSE_NS


class DrafterHealth:
    """Counts, per drafter, the rounds in a row in which it was asked and did not answer (`RowStatus.ABSENT`).

    From `ROUNDS_BEFORE_LEFT_OUT` on it is left out for a pause that doubles with every failed attempt. Afterwards it may be
    chosen again: the first round in which it answers clears its record, the first in which it does not starts the next pause.
    An answer that says it has no slot, or has forgotten the request, is an answer.
    """

    def __init__(self) -> None:
        self._absent: dict[int, _Record] = {}  # by drafter; those that answer have none

    def note(self, rows: Sequence[DraftRow], answers: Sequence[DraftRowResult], now_ns: int) -> None:
        """Hear of a draft round. ``now_ns`` is the clock that `available` is asked with."""
        if not rows:
            return
        asked = np.stack([row.weights > 0 for row in rows])
        absent = np.stack([answer.drafter_status == RowStatus.ABSENT for answer in answers])
        has_answered = (asked & ~absent).any(axis=0)
        for drafter in np.flatnonzero(asked.any(axis=0)).tolist():
            if not has_answered[drafter]:
                self._was_absent(drafter, now_ns)
            elif drafter in self._absent:
                self._answered(drafter)

    def available(self, num_drafters: int, now_ns: int) -> NDArray[np.bool_]:
        """Which drafters may be asked now: [D]."""
        available = np.ones(num_drafters, np.bool_)
        for drafter, record in self._absent.items():
            available[drafter] = record.back_at_ns <= now_ns
        return available

    def _answered(self, drafter: int) -> None:
        if self._absent.pop(drafter).num_absent >= ROUNDS_BEFORE_LEFT_OUT:
            logger.info("drafter %d answers again", drafter)

    def _was_absent(self, drafter: int, now_ns: int) -> None:
        record = self._absent.setdefault(drafter, _Record())
        record.num_absent += 1
        if record.num_absent < ROUNDS_BEFORE_LEFT_OUT:
            return
        if record.num_absent == ROUNDS_BEFORE_LEFT_OUT:  # once per outage
            logger.warning("drafter %d does not answer; it is left out until it does", drafter)
        record.back_at_ns = now_ns + record.pause_ns
        record.pause_ns = min(2 * record.pause_ns, LONGEST_PAUSE_NS)
