"""Virtual time: the loop's clock, cores, and the interpolation of what calls cost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from drafthouse.core.clock import now_ns
from drafthouse.core.errors import ClientError
from drafthouse_load.replay.costs import EngineCosts, HopCost, StageProfile, check_covers, read_profile
from drafthouse_load.replay.virtual_time import BusyMeter, DeadlockError, VirtualCore, run_virtual
from fakes.replay_repository import made_up_costs, made_up_profile


def test_sleeping_takes_virtual_time_only() -> None:
    async def main() -> tuple[list[str], float]:
        order: list[str] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            order.append(name)

        await asyncio.gather(sleeper("second", 7200.0), sleeper("first", 3600.0), sleeper("third", 7200.5))
        return order, asyncio.get_running_loop().time()

    order, elapsed_s = run_virtual(main())  # two hours: the test's own timeout is minutes
    assert order == ["first", "second", "third"]
    assert elapsed_s == pytest.approx(7200.5)


def test_the_stages_clock_is_the_virtual_one() -> None:
    async def main() -> int:
        before = now_ns()
        await asyncio.sleep(1.5)
        return now_ns() - before

    assert run_virtual(main()) == pytest.approx(1_500_000_000)


def test_timeouts_expire_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(100)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(5)


def test_waiting_for_what_cannot_happen_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run_virtual(main())


def test_a_task_that_never_waits_is_an_error() -> None:
    async def spin() -> None:
        await asyncio.sleep(2)
        while True:
            await asyncio.sleep(0)

    with pytest.raises(DeadlockError, match=r"the clock stands at 2\.0+ s"):
        run_virtual(spin())


def test_a_wake_up_from_the_loops_own_thread_is_not_lost() -> None:
    async def main() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_soon_threadsafe(event.set)
        await event.wait()

    run_virtual(main())


def test_a_core_serves_one_after_the_other_and_meters_count_the_union() -> None:
    async def main() -> tuple[list[float], float, float]:
        loop = asyncio.get_running_loop()
        either, second_only = BusyMeter(), BusyMeter()
        first, second = VirtualCore(either), VirtualCore(either, second_only)
        ends: list[float] = []

        async def use(core: VirtualCore, after_s: float) -> None:
            await asyncio.sleep(after_s)
            async with core.held():
                await asyncio.sleep(2)
            ends.append(loop.time())

        await asyncio.gather(use(first, 0), use(first, 0), use(second, 3), use(second, 10))
        return ends, either.busy_s, second_only.busy_s

    ends, either_s, second_s = run_virtual(main())
    assert ends == [2, 4, 5, 12]
    assert either_s == 7, "0 to 5, and 10 to 12"
    assert second_s == 4


def test_a_meter_can_be_read_while_its_core_is_in_use() -> None:
    async def main() -> float:
        meter = BusyMeter()
        async with VirtualCore(meter).held():
            await asyncio.sleep(3)
            return meter.busy_s

    assert run_virtual(main()) == 3


COSTS = EngineCosts(
    num_threads=1,
    session_ms={(1, 1): 5, (1, 2): 10, (1, 4): 12, (3, 1): 9, (3, 2): 14, (3, 4): 24},
    place_ms=0.5,
    call_ms=1.0,
    run_ms=0.1,
    output_ms=0.01,
)


@pytest.mark.parametrize(
    ("rows", "places", "packed", "ms"),
    [
        (1, 2, 2, 10.0),
        (1, 3, 3, 11.0),  # between 2 and 4 tokens
        (2, 2, 4, 12.0),  # between 1 and 3 rows
        (1, 8, 8, 16.0),  # beyond: the last two continued
        (3, 2, 3, 9.0),  # one token per row in two places each: measured so
        (3, 4, 6, 14.0 + 6 * 0.5),  # two tokens per row in rows of four
    ],
)
def test_session_time_of_a_shape(rows: int, places: int, packed: int, ms: float) -> None:
    assert COSTS.session(rows, places, packed) == pytest.approx(ms)


def test_time_around_the_session() -> None:
    assert COSTS.around(num_runs=3, num_outputs=10) == pytest.approx(1.4)
    assert HopCost(0.5, 0.25).ms(4) == 1.5


def test_an_engine_decides_by_the_recorded_times() -> None:
    dear_odd = {(1, length): 10.0 + (5.0 if length % 2 else 0.0) for length in (2, 3, 4, 5, 6, 7, 8, 16)}
    costs = EngineCosts(1, dear_odd, 0.0, 0.0, 0.0, 0.0).call_costs(2, 24, 4)
    assert [costs.padded(length) for length in (2, 3, 5)] == [2, 4, 6]


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = made_up_profile()
    alone, report = tmp_path / "profile.json", tmp_path / "report.json"
    alone.write_text(json.dumps(profile.to_json()))
    report.write_text(json.dumps({"results": [], "replay": {"profile": profile.to_json()}}))
    for file in (alone, report):
        assert read_profile(file) == profile


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"engines": {}, "hops": {}}', '{"replay": {}}'])
def test_a_file_that_is_no_profile_is_refused_by_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_text(text)
    with pytest.raises(ClientError, match=r"^INVALID_ARG field=--profile value=.*some\.json"):
        read_profile(file)
    with pytest.raises(ClientError, match="field=--profile"):
        read_profile(tmp_path / "absent.json")


def test_a_profile_without_a_model_is_refused_by_that_model() -> None:
    with pytest.raises(ClientError, match=r"field=--profile value='code'"):
        check_covers(StageProfile({"target": made_up_costs(1.0)}, made_up_profile().hops, ""), ("code",))
