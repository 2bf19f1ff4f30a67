"""One draft round for a batch: several small models draft one text together (CoSine, arXiv 2503.10325, token fusion)."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from drafthouse.core.clock import now_ns
from drafthouse.engine.contract import RowStatus
from drafthouse.fusion.contract import DraftCall, DrafterClient, DraftPlan, DraftResult
from drafthouse.fusion.lane import DrafterLane, Standing
from drafthouse.fusion.row_draft import RowDraft
from drafthouse.fusion.tardiness import FIRST_PAUSE_NS, REST_SHARE, Rest, judged

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FusionOptions:
    """How a draft round is run."""

    call_timeout_s: float = 1.0  # a drafter that takes longer for one call is left out of the rest of the round
    fuse_every: int = 1  # tokens that drafters write by themselves between two fusion points; 1 = CoSine's way. A call may say otherwise
    pace: bool = False  # fuse less often than that where the drafters are far away (`pacing`)
    patience_s: float = 0.05  # by which a drafter's calls may exceed the others' without being late (`tardiness`); 0 = all are waited for

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        if self.call_timeout_s <= 0 or self.fuse_every < 1 or self.patience_s < 0:
            raise ValueError(f"call_timeout_s must be > 0, fuse_every >= 1 and patience_s >= 0: {self}")


class CollaborativeFusion:
    """At every trunk position all drafters of a request propose; the best weighted confidence is fed back to all.

    Each fusion point costs every participating drafter one call with all of its requests, all drafters at once. A
    drafter that shares no request with another one drafts to the end in a single call instead. What a drafter does
    wrong (gone, slow, no slot, nonsense) costs its own proposals in this round, and nothing else.
    """

    def __init__(self, drafters: Sequence[DrafterClient], max_step_tokens: Sequence[int], options: FusionOptions | None = None) -> None:
        """Args: drafters in the order of `DraftRow.weights`; max_step_tokens of each, [num_drafters].

        Raises ValueError when the two differ in length.
        """
        if len(drafters) != len(max_step_tokens):
            raise ValueError(f"{len(drafters)} drafters, but {len(max_step_tokens)} limits")
        self._drafters = tuple(drafters)
        self._max_step_tokens = tuple(max_step_tokens)
        self._options = options or FusionOptions()
        self._standings = [Standing() for _ in drafters]
        self._rest = Rest()

    async def draft(self, call: DraftCall) -> DraftResult:
        """See `Fusion.draft`; releases reach every drafter, also those without work, before anything else."""
        started_ns = now_ns()
        self._rest.begin(started_ns)
        rows = [RowDraft(row, self._max_step_tokens, call.plan) for row in call.rows]
        lanes = self._open_lanes(rows, call.plan, started_ns)
        for standing in self._standings:
            standing.releases.add(*call.release_uids)
        # A drafter that did not answer last time must not delay others' work only to be told what is over, and one that is late nobody.
        is_told = [not (rows and one.is_lost) and not one.tardiness.is_out(started_ns) for one in self._standings]
        idle = [lane.release() for lane, told in zip(lanes, is_told, strict=True) if call.release_uids and not lane.seats and told]
        session_ns = await _slowest([self._run(lanes, rows, call.plan.fuse_every or self._options.fuse_every), *idle])
        self._judge(lanes)
        return DraftResult([row.result(len(lanes)) for row in rows], session_ns)

    def _open_lanes(self, rows: Sequence[RowDraft], plan: DraftPlan, at_ns: int) -> list[DrafterLane]:
        lanes = [
            DrafterLane(client, standing, limit, self._options.call_timeout_s, plan)
            for client, standing, limit in zip(self._drafters, self._standings, self._max_step_tokens, strict=True)
        ]
        for row in rows:
            for seat in row.seats:
                lane = lanes[seat.drafter]
                if lane.standing.tardiness.is_out(at_ns):
                    seat.leave(RowStatus.ABSENT)
                else:
                    lane.seats.append(seat)
        return lanes

    def _judge(self, lanes: Sequence[DrafterLane]) -> None:
        """Leave out from now on who was late too often."""
        ended_ns = now_ns()
        self._rest.end(ended_ns)
        works = {index: lane.work for index, lane in enumerate(lanes) if lane.work.num_calls and not lane.standing.is_lost}
        if not self._options.patience_s:
            return
        patience_ns = max(self._options.patience_s * 1e9, REST_SHARE * self._rest.mean_ns)
        for index, is_slow in judged(works, [standing.usual for standing in self._standings], patience_ns).items():
            tardiness = lanes[index].standing.tardiness
            is_new = tardiness.pause_ns == FIRST_PAUSE_NS  # said once, not again after every attempt
            if tardiness.note(is_slow, works[index].wall_ns, ended_ns) and is_new:
                name, ms = self._drafters[index].name, works[index].wall_ns / 1e6
                logger.warning("drafter %s is left out, and tried again later: its part of a round took %.0f ms", name, ms)

    async def _run(self, lanes: Sequence[DrafterLane], rows: Sequence[RowDraft], fuse_every: int) -> int:
        working = [lane for lane in lanes if lane.seats]
        session_ns = await _slowest([lane.take_in() for lane in working])
        alone = [lane for lane in working if all(len(seat.row.active) == 1 for seat in lane.seats)]
        together = [lane for lane in working if lane not in alone]
        # Lanes that wait for nobody do not make the others wait for their long calls either.
        groups = [self._fuse([lane], [seat.row for seat in lane.seats], fuse_every) for lane in alone]
        if together:
            shared = {seat.drafter for lane in together for seat in lane.seats}
            groups.append(self._fuse(together, [row for row in rows if any(seat.drafter in shared for seat in row.seats)], fuse_every))
        return session_ns + await _slowest(groups)

    async def _fuse(self, lanes: Sequence[DrafterLane], rows: Sequence[RowDraft], at_least: int) -> int:
        session_ns = 0
        while True:
            asked = [(lane, seats) for lane in lanes if (seats := lane.waiting)]
            if not asked:
                return session_ns
            fuse_every = at_least
            if self._options.pace:
                fuse_every = max(lane.standing.usual.drafting.interval(at_least) for lane, _ in asked)
            session_ns += await _slowest([lane.propose(seats, fuse_every) for lane, seats in asked])
            for row in rows:
                row.extend()


async def _slowest(parts: Sequence[Coroutine[Any, Any, int]]) -> int:
    """Run all at once; the largest of their session times in ns, 0 when there are none.

    The first one needs no task of its own, which makes two drafters twice as cheap to run as with `asyncio.gather`.
    """
    if not parts:
        return 0
    tasks = [asyncio.ensure_future(part) for part in parts[1:]]
    try:
        longest = await parts[0]
        for task in tasks:
            longest = max(longest, await task)
    finally:
        for task in tasks:
            task.cancel()  # only does something when this round itself was cancelled
    return longest
