"""One drafter during one draft round: the calls it gets, and how it drops out without anyone noticing."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drafthouse.core.clock import now_ns
from drafthouse.engine.contract import EngineError, GrowthStop, RowResult, RowStatus, StepCall, StepResult
from drafthouse.engine.releases import Releases
from drafthouse.fusion.contract import DrafterClient, DraftPlan
from drafthouse.fusion.row_draft import Seat
from drafthouse.fusion.tardiness import Tardiness, Usual, Work


@dataclass(slots=True)
class Standing:
    """What is known about one drafter from round to round."""

    releases: Releases = field(default_factory=Releases)
    usual: Usual = field(default_factory=Usual)
    tardiness: Tardiness = field(default_factory=Tardiness)
    is_lost: bool = False  # it did not answer the last call


class DrafterLane:
    """Makes one drafter's calls for all requests (``seats``) that it takes part in. Never raises for its fault."""

    def __init__(self, client: DrafterClient, standing: Standing, max_step_tokens: int, timeout_s: float, plan: DraftPlan) -> None:
        self.seats: list[Seat] = []
        self.standing = standing
        self.work = Work()
        self._client = client
        self._max_step_tokens = max_step_tokens
        self._timeout_s = timeout_s
        self._num_candidates = 1 + plan.num_siblings
        self._min_chance = plan.min_chance

    @property
    def waiting(self) -> list[Seat]:
        """The seats whose request wants more trunk tokens from this drafter."""
        return [seat for seat in self.seats if seat in seat.row.active and seat.row.num_missing > 0 and not seat.row.has_stopped]

    async def release(self) -> int:
        """Only tell the drafter which requests are over. Returns session time in ns."""
        return await self._call((), StepCall(rows=()), lambda seat, answer: None)

    async def take_in(self) -> int:
        """Send whatever does not belong into a drafting call, chunk by chunk. Returns session time in ns."""
        session_ns = 0
        while True:
            chunks = [(seat, num) for seat in self.seats if seat in seat.row.active and (num := self._chunk_len(seat)) > 0]
            if not chunks:
                return session_ns
            call = StepCall(
                rows=[seat.row.chunk(seat.position, num) for seat, num in chunks],
                num_steps=0,
                return_logprobs=False,
                return_prompt_logprob=any(seat.row.num_draft_tokens == 0 for seat, _ in chunks),
            )
            started_ns, num_tokens = now_ns(), sum(num for _, num in chunks)
            call_ns = await self._call([seat for seat, _ in chunks], call, self._took_in)
            wall_ns = now_ns() - started_ns
            self.work.took_in(wall_ns, num_tokens)
            self.standing.usual.intake.saw(wall_ns, call_ns, num_tokens)
            session_ns += call_ns

    async def propose(self, seats: list[Seat], fuse_every: int) -> int:
        """Ask for the next tokens of these seats' trunks. Returns session time in ns.

        A lane whose requests all depend on it alone extends them to their end in this one call; rows that want less
        than the longest simply ignore the rest. Otherwise as many tokens as lie between two fusion points (``fuse_every``).
        """
        is_alone = all(len(seat.row.active) == 1 for seat in seats)
        num_missing = max(seat.row.num_missing for seat in seats)
        num_steps = num_missing if is_alone else min(num_missing, fuse_every)
        session_ns = await self._ask(seats, num_steps)
        behind = [seat for seat in seats if seat in seat.row.active and not seat.fresh]
        if behind:  # they answered NEEDS_PREFILL and can be brought up to date with what this round carries
            session_ns += await self.take_in()
            behind = [seat for seat in behind if seat in seat.row.active]
            session_ns += await self._ask(behind, num_steps) if behind else 0
        return session_ns

    async def _ask(self, seats: list[Seat], num_steps: int) -> int:
        for seat in seats:
            seat.fresh = []
        rows = [seat.row.step_row(seat.position) for seat in seats]
        call = StepCall(rows, num_steps, self._num_candidates, return_logprobs=False, stop=self._stop(seats))
        started_ns = now_ns()
        session_ns = await self._call(seats, call, lambda seat, answer: seat.accept(answer, num_steps))
        wall_ns = now_ns() - started_ns
        self.work.drafted(wall_ns, num_steps, len(seats))
        self.standing.usual.drafting.saw(wall_ns, session_ns, num_steps)
        return session_ns

    def _stop(self, seats: Sequence[Seat]) -> GrowthStop | None:
        """Where the drafter stops by itself. Its requests' scores differ a little; one line has to do for all of them."""
        if self._min_chance == 0.0:
            return None
        intercepts, slopes = zip(*(seat.judge.own_line for seat in seats), strict=True)
        return GrowthStop(slopes[0], sum(intercepts) / len(intercepts), self._min_chance)

    def _chunk_len(self, seat: Seat) -> int:
        """Tokens to take in before this seat may draft; a seat that only takes in gets everything this way."""
        num_left = seat.row.end_position - seat.position
        if seat.row.num_draft_tokens == 0:
            return min(self._max_step_tokens, num_left)
        # A drafting call carries the tail, the path to the leaf, and either the trunk so far or what the engine appends to it by itself.
        num_drafted = max(other.row.num_draft_tokens for other in self.seats) - 1 + seat.row.leaf_depth
        return min(self._max_step_tokens, num_left - 1) if num_left + num_drafted > self._max_step_tokens else 0

    def _took_in(self, seat: Seat, answer: RowResult) -> None:
        seat.status = RowStatus.OK
        seat.position += self._chunk_len(seat)  # unchanged since the call was made
        if seat.row.num_draft_tokens == 0:
            seat.score += answer.prompt_logprob
            seat.num_scored += answer.num_scored

    async def _call(self, seats: Sequence[Seat], call: StepCall, on_ok: Callable[[Seat, RowResult], None]) -> int:
        releases = self.standing.releases
        carried = releases.owed()
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await self._client.step(call, tuple(carried))
        except (EngineError, TimeoutError):
            self._drop_out()
            return 0
        releases.settle(carried)
        self.standing.is_lost = False
        if len(result.rows) != len(seats):
            self._drop_out()
            return result.session_ns
        return self._hand_out(seats, result, on_ok)

    def _hand_out(self, seats: Sequence[Seat], result: StepResult, on_ok: Callable[[Seat, RowResult], None]) -> int:
        for seat, answer in zip(seats, result.rows, strict=True):
            seat.cached_len = answer.cached_len
            if answer.status == RowStatus.OK:
                on_ok(seat, answer)
            elif answer.status == RowStatus.NEEDS_PREFILL and answer.cached_len >= seat.row.row.prefix_len and not seat.has_healed:
                seat.has_healed = True
                seat.position = min(answer.cached_len, seat.row.end_position - 1)
            else:
                seat.leave(answer.status)
        return result.session_ns

    def _drop_out(self) -> None:
        self.standing.is_lost = True
        for seat in self.seats:
            if seat in seat.row.active:
                seat.leave(RowStatus.ABSENT)
