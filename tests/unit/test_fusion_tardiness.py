"""Drafters that are late: left out where rounds would be theirs, kept where they are only far away or all are slow. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest

from drafthouse.core.clock import now_ns
from drafthouse.engine.contract import RowStatus, StepCall, StepResult
from drafthouse.fusion.contract import DraftCall, DrafterClient
from drafthouse.fusion.fuser import CollaborativeFusion, FusionOptions
from drafthouse.fusion.pacing import Pace
from drafthouse.fusion.tardiness import (
    FIRST_PAUSE_NS,
    LONGEST_PAUSE_NS,
    ROUNDS_BEFORE_LEFT_OUT,
    Rest,
    Tardiness,
    Usual,
    Work,
    judged,
)
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.modes import Mode
from drafthouse_load.replay.virtual_time import run_virtual
from fakes.drafter_scripted import ScriptedDrafter, counts
from fakes.fusion_rounds import num_steps, row
from fakes.pipeline_fusion import DRAFTERS
from fakes.pipeline_harness import make_request, reference_text, running
from fakes.pipeline_model import next_token
from fakes.pipeline_target import FakeTarget

MS = 1_000_000
VERIFY_S = 0.02
OPTIONS = FusionOptions(call_timeout_s=2.0, fuse_every=4)


@dataclass
class Timed(ScriptedDrafter):
    """A call takes ``hop_s`` and ``step_s`` per token, and what ``more_s`` says of the call's number."""

    hop_s: float = 0.001
    step_s: float = 0.0005
    more_s: Callable[[int], float] = field(default=lambda number: 0.0)

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """See `EngineClient.step`."""
        busy_s = self.step_s * max(call.num_steps, 1)
        await asyncio.sleep(self.hop_s + busy_s + self.more_s(len(self.calls)))
        return replace(await super().step(call, release_uids), session_ns=round(busy_s * 1e9))


def named(name: str, **times: float) -> Timed:
    return Timed(name, counts(), **times)


@dataclass
class Rounds:
    """Draft rounds with a verification after each; ``took_ms`` and ``absent`` of every round so far."""

    fusion: CollaborativeFusion
    weights: Sequence[float]
    took_ms: list[float] = field(default_factory=list)
    absent: list[list[int]] = field(default_factory=list)

    async def run(self, count: int, release: Sequence[int] = ()) -> None:
        for _ in range(count):
            started_ns = now_ns()
            (got,) = (await self.fusion.draft(DraftCall([row(self.weights, 4)], release))).rows
            self.took_ms.append((now_ns() - started_ns) / MS)
            self.absent.append(np.flatnonzero(got.drafter_status == RowStatus.ABSENT).tolist())
            await asyncio.sleep(VERIFY_S)


def rounds_of(*drafters: DrafterClient, options: FusionOptions = OPTIONS) -> Rounds:
    return Rounds(CollaborativeFusion(drafters, [64] * len(drafters), options), [1.0] * len(drafters))


@pytest.mark.parametrize("added_ms", [0, 1, 5, 20])
def test_a_constant_distance_is_paced_and_never_left_out(added_ms: int) -> None:
    near, far = named("near"), named("far", hop_s=0.003 + added_ms / 1e3)
    rounds = rounds_of(near, far, options=replace(OPTIONS, pace=True, fuse_every=1))
    run_virtual(rounds.run(30))
    assert not any(rounds.absent)
    assert num_steps(far)[:2] == [1, 3]  # the first call measures, and the rest of the trunk is written by each alone
    assert set(num_steps(far)[2:]) == {4}
    unpaced = rounds_of(named("near"), named("far", hop_s=0.003 + added_ms / 1e3), options=replace(OPTIONS, fuse_every=1))
    run_virtual(unpaced.run(30))
    assert not any(unpaced.absent)


def test_a_drafter_that_became_slow_is_left_out_tried_again_and_taken_back() -> None:
    fine, slow = named("fine"), named("slow")
    rounds = rounds_of(fine, slow)

    async def main() -> None:
        await rounds.run(20)
        slow.more_s = lambda number: 0.06
        await rounds.run(250)
        slow.more_s = lambda number: 0.0
        await rounds.run(250)

    run_virtual(main())
    slow_rounds = [index for index, took_ms in enumerate(rounds.took_ms) if took_ms > 60]
    assert slow_rounds[:ROUNDS_BEFORE_LEFT_OUT] == [20, 21, 22]
    assert [rounds.absent[index] for index in (19, 22, 23, 24)] == [[], [], [1], [1]]
    first, *later = np.diff(slow_rounds[ROUNDS_BEFORE_LEFT_OUT - 1 :]).tolist()
    assert first > 50  # of 23 ms: an attempt of 63 ms is made after 1.26 s,
    assert all(1.7 < pause / before < 2.1 for before, pause in pairwise([first, *later]))  # and then after twice as long
    assert len(later) >= 1
    assert not any(rounds.absent[-50:])


def test_whoever_is_left_out_keeps_no_round_from_going_on() -> None:
    """Releases wait for the next attempt, and the whole run takes hardly longer than without the drafter."""
    fine, slow = named("fine"), named("slow", hop_s=0.8)
    rounds = rounds_of(fine, slow)

    async def main() -> float:
        await rounds.run(ROUNDS_BEFORE_LEFT_OUT)
        slow.calls.clear()
        started_ns = now_ns()
        await rounds.run(10, release=[77])
        assert slow.calls == []
        return (now_ns() - started_ns) / MS

    assert run_virtual(main()) < 10 * (1e3 * VERIFY_S + 20)


def test_hiccups_are_forgiven() -> None:
    fine, other = named("fine"), named("other")
    other.more_s = lambda number: 0.5 * (number % 3 == 1)
    rounds = rounds_of(fine, other)
    run_virtual(rounds.run(30))
    assert not any(rounds.absent)


def test_what_slows_everybody_down_is_nobodys_fault() -> None:
    drafters = [named(name) for name in "abc"]
    rounds = rounds_of(*drafters)

    async def main() -> None:
        await rounds.run(20)
        for drafter in drafters:
            drafter.more_s = lambda number: 0.2 + 0.1 * (number % 3)
        await rounds.run(20)

    run_virtual(main())
    assert not any(rounds.absent)


def test_a_larger_drafter_is_kept() -> None:
    rounds = rounds_of(named("small", step_s=0.02), named("large", step_s=0.06))
    run_virtual(rounds.run(20))
    assert not any(rounds.absent)


def test_patience_is_as_configured() -> None:
    rounds = rounds_of(named("fine"), named("slow", hop_s=0.3), options=replace(OPTIONS, patience_s=0.0))
    run_virtual(rounds.run(20))
    assert not any(rounds.absent)
    with pytest.raises(ValueError, match="patience_s"):
        FusionOptions(patience_s=-1.0)


def test_a_drafter_that_works_alone_is_held_to_what_is_usual_until_that_has_changed() -> None:
    alone = named("alone")
    rounds = rounds_of(alone)

    async def main() -> None:
        await rounds.run(30)
        alone.more_s = lambda number: 0.055  # for good: nobody is faster, and so it becomes the usual
        await rounds.run(1200)

    run_virtual(main())
    first = next(index for index, absent in enumerate(rounds.absent) if absent)
    assert 30 + ROUNDS_BEFORE_LEFT_OUT <= first < 40
    assert not any(rounds.absent[-50:])


def test_one_that_works_alone_but_was_always_slow_is_held_to_the_others() -> None:
    drafters = named("fine"), named("slow", hop_s=0.8)
    rounds = rounds_of(*drafters)

    async def main() -> None:
        rounds.weights = [1.0, 0.0]
        await rounds.run(3)
        rounds.weights = [0.0, 1.0]
        await rounds.run(10)

    run_virtual(main())
    assert rounds.absent[3 + ROUNDS_BEFORE_LEFT_OUT + 1] == [0, 1]


def usual(hop_ms: float, step_ms: float) -> Usual:
    pace = Pace()
    pace.hop_ns, pace.step_ns = hop_ms * MS, step_ms * MS
    return Usual(drafting=pace)


def work(wall_ms: int, num_steps: int = 4, num_rows: int = 1, num_calls: int = 1) -> Work:
    done = Work()
    for _ in range(num_calls):
        done.drafted(wall_ms * MS // num_calls, num_steps, num_rows)
    return done


def intake(wall_ms: int, num_tokens: int) -> Work:
    done = Work()
    done.took_in(wall_ms * MS, num_tokens)
    return done


@pytest.mark.parametrize(
    ("works", "verdicts"),
    [
        ({0: work(5), 1: work(80)}, {0: False, 1: True}),
        ({0: work(5), 1: work(54)}, {0: False, 1: False}),  # within the patience
        ({0: work(25), 1: work(80)}, {0: False, 1: False}),  # less than four times as long
        ({0: work(5), 1: work(80, 16, 8)}, {0: False, 1: False}),  # it had more to do
        ({0: work(5), 1: work(180, num_calls=4)}, {0: False, 1: False}),  # in four calls, each of which may be late
        ({0: work(5), 1: work(90), 2: work(90)}, {0: False, 1: True, 2: True}),
        ({0: work(5, 1, 8), 1: work(75, 16)}, {0: False, 1: False}),  # token by token, which takes longer than many rows at once
        ({1: work(80)}, {1: True}),
        ({1: work(80, 60)}, {1: False}),  # as long as it usually takes
        ({0: intake(5, 100), 1: intake(80, 100)}, {0: False, 1: True}),
        ({0: intake(2, 100), 1: work(62, 60)}, {0: False, 1: False}),  # reading is no measure of writing
        ({}, {}),
    ],
)
def test_who_is_slow(works: dict[int, Work], verdicts: dict[int, bool]) -> None:
    assert judged(works, [usual(1, 1), usual(2, 1), Usual()], 50 * MS) == verdicts


def test_of_a_drafter_that_nobody_knows_nothing_is_said() -> None:
    assert judged({0: work(900)}, [Usual(), Usual()], 50 * MS) == {}


def test_who_has_only_taken_in_so_far_tells_what_the_way_takes() -> None:
    reads = Usual()
    reads.intake.saw(3 * MS, 1 * MS, 10)
    assert judged({0: work(90)}, [usual(80, 1), reads], 50 * MS) == {0: True}
    assert judged({0: work(90)}, [usual(8, 20), reads], 50 * MS) == {0: False}  # it may be the larger one


def test_reading_a_long_prompt_is_no_delay() -> None:
    reader = Usual()
    reader.intake.saw(101 * MS, 100 * MS, 500)
    assert judged({0: intake(401, 2000)}, [reader], 50 * MS) == {0: False}
    assert judged({0: intake(401, 20)}, [reader], 50 * MS) == {0: True}


def test_pauses_double_up_to_a_limit_and_as_many_normal_rounds_clear_the_record() -> None:
    record, at_ns, pauses = Tardiness(), 0, []
    for _ in range(ROUNDS_BEFORE_LEFT_OUT - 1):
        assert not record.note(True, 5 * MS, at_ns)
    for _ in range(9):
        assert record.note(True, 5 * MS, at_ns)
        assert record.is_out(record.back_at_ns - 1)
        assert not record.is_out(record.back_at_ns)
        pauses.append(record.back_at_ns - at_ns)
        at_ns = record.back_at_ns
    assert pauses == [min(FIRST_PAUSE_NS << count, LONGEST_PAUSE_NS) for count in range(9)]
    assert not record.note(False, 5 * MS, at_ns)
    assert record.note(True, 5 * MS, at_ns)  # one normal round is no recovery
    for _ in range(ROUNDS_BEFORE_LEFT_OUT):
        record.note(False, 5 * MS, at_ns)
    assert not record.note(True, 5 * MS, at_ns)
    assert record.pause_ns == FIRST_PAUSE_NS


def test_an_attempt_costs_a_small_share_of_the_time_between_attempts() -> None:
    record = Tardiness(num_slow=ROUNDS_BEFORE_LEFT_OUT)
    assert record.note(True, 400 * MS, 0)
    assert (record.back_at_ns, record.pause_ns) == (8_000 * MS, 16_000 * MS)
    assert record.note(True, 2_000 * MS, 0)
    assert record.back_at_ns == LONGEST_PAUSE_NS


def test_the_rest_of_a_round_is_learned_and_idle_times_are_not() -> None:
    rest, at_ns = Rest(), 0
    for _ in range(40):
        rest.begin(at_ns + 300 * MS)
        rest.end(at_ns + 310 * MS)
        at_ns += 310 * MS
    rest.begin(at_ns + 5_000 * MS)
    assert rest.mean_ns == pytest.approx(300 * MS, rel=0.01)


def test_behind_long_verifications_more_patience_pays() -> None:
    near, far = named("near"), named("far", hop_s=0.1)
    rounds = rounds_of(near, far)

    async def main() -> None:
        for _ in range(30):
            await rounds.run(1)
            await asyncio.sleep(0.4)

    run_virtual(main())
    assert not any(rounds.absent[-20:])


def generated_in_s(hop_s: float, mode: Mode) -> float:
    """Virtual seconds for two batches of requests, when the first of four drafters has this hop, and the others a millisecond."""

    def script(context: Sequence[int]) -> list[tuple[int, float]]:
        return [(next_token(list(context), make_request().sampling), 0.9)]

    drafters = [Timed(name, script, hop_s=0.001 if index else hop_s) for index, name in enumerate(DRAFTERS)]
    target = FakeTarget()
    target.step_s = lambda call: VERIFY_S

    async def main() -> float:
        fusion = CollaborativeFusion(drafters, [64] * len(drafters), OPTIONS)
        async with running(PipelineConfig(mode=mode), target, fusion=fusion) as rig:
            started_ns = now_ns()
            for batch in range(2):
                requests = [make_request((1, batch, index), 150, end_ids=()) for index in range(2)]
                sinks = await rig.generate(*requests)
                assert [sink.text for sink in sinks] == [reference_text(request) for request in requests]
            return (now_ns() - started_ns) / 1e9

    return run_virtual(main())


@pytest.mark.parametrize("mode", [Mode.COSINE, Mode.SPECINFER])
def test_requests_are_served_nearly_as_fast_as_without_the_late_one(mode: Mode) -> None:
    assert generated_in_s(0.4, mode) < generated_in_s(0.001, mode) + (ROUNDS_BEFORE_LEFT_OUT + 1) * 0.45
