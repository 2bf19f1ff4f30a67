"""What the pipeline tells the estimator: every round, every prompt, every end, and the time that each request was served."""

import asyncio

import pytest

from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import FinishReason
from drafthouse.scheduling.estimates.registry import LENGTH_PREDICTORS
from drafthouse.scheduling.estimates.service import Estimator
from drafthouse.scheduling.policy import Schedulable
from drafthouse_load.replay.virtual_time import run_virtual
from fakes.pipeline_crowd import a_crowd
from fakes.pipeline_harness import async_test, expect_reference, make_request, running


class _Recorder(Estimator):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(LENGTH_PREDICTORS.create("histogram"))
        self.rounds: list[tuple[int, int, float]] = []
        self.prefilled_tokens = 0
        self.ends: list[tuple[int, bool, int]] = []

    def saw_round(
        self, request: Schedulable, num_drafted: int, num_accepted: int, draft_ns: float, verify_ns: float, num_rows: int = 1
    ) -> None:
        super().saw_round(request, num_drafted, num_accepted, draft_ns, verify_ns, num_rows)
        self.rounds.append((num_drafted, num_accepted, draft_ns + verify_ns))

    def saw_prefill(self, num_tokens: int, prefill_ns: float) -> None:
        super().saw_prefill(num_tokens, prefill_ns)
        self.prefilled_tokens += num_tokens

    def saw_end(self, request: Schedulable, finished: bool) -> None:
        super().saw_end(request, finished)
        self.ends.append((request.request_uid, finished, request.attained_ns))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> _Recorder:
    recorder = _Recorder()
    monkeypatch.setattr("drafthouse.pipeline.loop.new_estimator", lambda config: recorder)
    return recorder


def test_the_estimator_hears_of_every_round_and_every_end_once(recorder: _Recorder) -> None:
    requests = [*a_crowd(20), make_request((1, 2), 9, end_ids=())]

    async def main() -> None:
        async with running(PipelineConfig(policy="las", slots=2, overlap="off")) as rig:
            rig.target.step_s = lambda call: 0.02
            leaver = rig.submit(make_request((5, 6)))
            leaver.cancelled = True
            sinks = await rig.generate(*requests)
            assert leaver.error is not None
            sums = rig.pipeline.snapshot().sums
            assert len(recorder.rounds) == sums.num_verified_rows
            assert sum(drafted for drafted, _, _ in recorder.rounds) == sums.num_drafted
            assert sum(accepted for _, accepted, _ in recorder.rounds) == sums.num_accepted
            assert recorder.prefilled_tokens == sums.num_prefill_tokens
            assert len({uid for uid, _, _ in recorder.ends}) == len(recorder.ends) == len(requests) + 1
            natural = {uid for uid, finished, _ in recorder.ends if finished}
            ends = {request.request_uid: sink.chunks[-1].finish_reason for request, sink in zip(requests, sinks, strict=True)}
            stopped = {uid for uid, reason in ends.items() if reason is FinishReason.STOP}
            assert natural == stopped
            assert len(recorder) == 0

    run_virtual(main())


def test_service_attained_is_the_time_of_the_rounds_it_took_part_in(recorder: _Recorder) -> None:
    async def main() -> None:
        async with running(PipelineConfig(slots=1, overlap="off")) as rig:
            rig.target.step_s, rig.fusion.draft_s = lambda call: 0.02, lambda call: 0.005
            requests = [make_request([item] * 70, 12, end_ids=()) for item in (1, 2, 3)]
            began_s = asyncio.get_running_loop().time()
            sinks = [rig.submit(request) for request in requests]
            ends_s = []
            for sink in sinks:
                await sink.done.wait()
                ends_s.append(asyncio.get_running_loop().time())
            served_ns = [round((end - begin) * 1e9) for begin, end in zip((began_s, *ends_s), ends_s, strict=False)]
            assert [attained for _, _, attained in recorder.ends] == pytest.approx(served_ns, rel=1e-6)
            assert all(20e6 <= took <= 30e6 for _, _, took in recorder.rounds)

    run_virtual(main())


def test_an_estimator_that_fails_harms_nobody(recorder: _Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("made up")

    for name in ("saw_arrival", "saw_round", "saw_prefill", "saw_end"):
        monkeypatch.setattr(recorder, name, fail)

    @async_test
    async def body() -> None:
        async with running(PipelineConfig(policy="las")) as rig:
            requests = a_crowd(8)
            for request, sink in zip(requests, await rig.generate(*requests), strict=True):
                expect_reference(request, sink)

    body()
