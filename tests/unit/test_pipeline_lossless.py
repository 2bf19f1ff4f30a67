"""The text is the target's own, whoever drafts, joins, leaves or fails meanwhile."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from drafthouse.core.tree import DraftTree
from drafthouse.engine.contract import EngineLimits, RowStatus, StepRow
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.contract import GenerationRequest
from drafthouse.pipeline.modes import Mode, Overlap
from drafthouse.scheduling.policies.registry import POLICIES
from drafthouse.scheduling.policy import Rank, Schedulable
from fakes.pipeline_harness import WAYS, Rig, async_test, expect_reference, make_request, running
from fakes.pipeline_model import END_ID, VOCAB_SIZE
from fakes.pipeline_sink import FakeSink
from fakes.pipeline_target import FakeTarget


def random_requests(rng: random.Random, count: int) -> list[GenerationRequest]:
    requests = []
    for _ in range(count):
        prompt = [rng.randrange(1, 18) for _ in range(rng.choice([1, 2, 5, 31, 32, 33, 80]))]
        changes: dict[str, object] = {
            "stream": rng.random() < 0.5,
            "num_draft_tokens": rng.choice([None, 0, 1, 5, 16]),
            "temperature": rng.choice([0.0, 0.8]),
            "seed": rng.randrange(5),
            "return_log_probs": rng.random() < 0.5,
            "drafters": rng.choice([(), (), ("math",), ("code", "general")]),
            "stop_words": rng.choice([(), ("gh",), ("é", "abc")]),
            "end_ids": rng.choice([(END_ID,), (END_ID, 9), (), ()]),
        }
        max_tokens = rng.choice([1, 2, 7, 40])
        requests.append(make_request(prompt, max_tokens, min_tokens=rng.choice([0, min(5, max_tokens)]), **changes))
    return requests


async def in_random_company(rig: Rig, requests: Sequence[GenerationRequest], rng: random.Random) -> list[FakeSink]:
    """The answers to requests that join at any moment and leave whenever they end."""
    sinks: list[FakeSink] = []
    for request in requests:
        sinks.append(rig.submit(request))
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
    await asyncio.gather(*(sink.done.wait() for sink in sinks))
    return sinks


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_draft_tokens", [0, 5])
@async_test
async def test_random_batches_give_the_reference_text(way: str, num_draft_tokens: int) -> None:
    rng = random.Random(f"{way} {num_draft_tokens}")
    async with running(replace(WAYS[way], num_draft_tokens=num_draft_tokens, max_prefill_tokens=40)) as rig:
        requests = random_requests(rng, 40)
        for request, sink in zip(requests, await in_random_company(rig, requests, rng), strict=True):
            expect_reference(request, sink)
        assert max(len(call.rows) for call in rig.target.calls) == rig.target.limits.slots
        sums = rig.pipeline.snapshot().sums
        assert (sums.num_drafted > 0) == WAYS[way].switches.drafts
        if (overlap := WAYS[way].switches.overlap) is not Overlap.AUTO:  # a run this short may end before auto has tried it
            assert (sums.num_drafted_ahead > 0) == (overlap is Overlap.ON)


@pytest.mark.parametrize("mode", [Mode.COSINE, Mode.VANILLA, Mode.SPECINFER])
@pytest.mark.parametrize("adaptation", ["on", "off"])
@async_test
async def test_both_loops_give_the_same_output(mode: Mode, adaptation: str) -> None:
    requests = random_requests(random.Random(str(mode)), 30)
    answers = []
    for overlap in ("off", "on"):
        config = PipelineConfig(mode=mode, overlap=overlap, adaptation=adaptation, max_prefill_tokens=40)
        async with running(config) as rig:
            answers.append(await in_random_company(rig, requests, random.Random(f"{mode} {overlap}")))
    for in_turn, overlapped in zip(*answers, strict=True):
        assert in_turn.output_ids == overlapped.output_ids
        assert in_turn.text == overlapped.text
        assert in_turn.chunks[-1].finish_reason == overlapped.chunks[-1].finish_reason
        assert [value for chunk in in_turn.chunks for value in chunk.log_probs] == [
            value for chunk in overlapped.chunks for value in chunk.log_probs
        ]


@async_test
async def test_two_interleaved_requests_give_what_two_serial_ones_give() -> None:
    first, second = make_request((1, 2, 3), 30), make_request((4, 5), 30)
    async with running() as rig:
        together = await rig.generate(first, second)
    async with running() as rig:
        alone = [(await rig.generate(request))[0] for request in (first, second)]
    assert [sink.text for sink in together] == [sink.text for sink in alone]


@async_test
async def test_speculation_saves_target_calls_and_the_figures_agree() -> None:
    request = make_request((7, 7, 2), 60, end_ids=(), return_perf_metrics=True)
    async with running(PipelineConfig(num_draft_tokens=0)) as rig:
        await rig.generate(request)
        num_plain_calls = len(rig.target.calls)
        assert rig.fusion.calls == []
    assert num_plain_calls == 60  # one prefill, whose sample is the first token, and one call for each of the others
    async with running(PipelineConfig(adaptation="off")) as rig:
        (sink,) = await rig.generate(request)
        assert len(rig.target.calls) < num_plain_calls / 1.8
        sums = rig.pipeline.snapshot().sums
        num_verifications = len(rig.target.calls) - 1
        assert sums.num_verified_rows == num_verifications
        assert sums.num_prefill_emitted == 1
        assert sums.num_verified_emitted == 59 == sums.num_accepted + num_verifications
        assert (sums.verify_session_ns, sums.prefill_session_ns) == (1000 * num_verifications, 1000)
        assert sums.draft_session_ns + sums.ahead_session_ns == 500 * (len(rig.fusion.calls) - 1)  # one call took in the prompt
        perf = sink.chunks[-1].perf
        assert perf is not None
        assert (perf.total_draft_tokens, perf.total_accepted_draft_tokens) == (sums.num_drafted, sums.num_accepted)
        sources = [source for chunk in sink.chunks for source in chunk.token_sources]
        assert sum(source >= 0 for source in sources) == sums.num_accepted
        assert [stats.num_emitted for stats in rig.rounds] == [len(chunk.output_ids) for chunk in sink.chunks] or not request.stream


@async_test
async def test_nothing_is_drafted_that_could_not_be_emitted() -> None:
    async with running() as rig:
        await rig.generate(make_request(max_tokens=1), make_request(max_tokens=2), make_request(max_tokens=4, end_ids=()))
        longest = [row.num_draft_tokens for call in rig.fusion.calls for row in call.rows]
        assert max(longest) <= 2  # of 4 tokens one comes from prefill, one is the bonus of verification


@async_test
async def test_drafts_fit_the_engine_however_small_its_calls_are() -> None:
    limits = EngineLimits(max_step_tokens=4, usable_context=60, vocab_size=VOCAB_SIZE, slots=2)
    async with running(target=FakeTarget(limits)) as rig:  # the fake refuses what does not fit
        requests = [make_request([1 + item % 17 for item in range(9)], 51, num_draft_tokens=16, end_ids=()) for _ in range(3)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)


@pytest.mark.parametrize("overlap", ["on", "off"])
@async_test
async def test_a_reloaded_target_heals_in_mid_stream(overlap: str) -> None:
    target = FakeTarget()

    def reload_now_and_then(call_number: int) -> None:
        if call_number % 7 == 5:
            target.reload()

    target.before_call = reload_now_and_then
    async with running(PipelineConfig(overlap=overlap), target) as rig:
        requests = [make_request((1, 2, item), 50, end_ids=(), stream=True) for item in range(1, 5)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)


@pytest.mark.parametrize("overlap", ["on", "off"])
@async_test
async def test_a_cache_that_shrinks_at_random_costs_rounds_and_no_text(overlap: str) -> None:
    target, rng = FakeTarget(), random.Random(3)

    def forget_some(row: StepRow) -> RowStatus | None:
        held = target.held.get(row.request_uid)
        if held is not None and rng.random() < 0.2:
            del held[rng.randrange(len(held)) :]
        return None

    target.row_status = forget_some
    async with running(PipelineConfig(overlap=overlap), target) as rig:
        requests = [make_request([1 + item % 17 for item in range(40)], 40) for _ in range(4)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)


class _FewestTokensFirst:
    """A policy that preempts at every arrival and after every round."""

    name = "test-fewest-tokens-first"

    def rank(self, request: Schedulable) -> Rank:
        return request.num_output_tokens, -request.sequence_no

    def may_preempt(self, challenger: Rank, running: Rank) -> bool:
        return True

    def is_worth_evicting(self, challenger: Schedulable, other: Schedulable, num_recomputed: int, num_delayed: int) -> bool:
        return True

    def queue_of(self, request: Schedulable) -> int:
        return request.num_output_tokens // 10


@pytest.mark.parametrize("overlap", ["on", "off"])
@async_test
async def test_preemption_changes_no_text(overlap: str) -> None:
    if _FewestTokensFirst.name not in POLICIES.names:
        POLICIES.register(_FewestTokensFirst.name, lambda estimator: _FewestTokensFirst())
    async with running(PipelineConfig(policy=_FewestTokensFirst.name, slots=2, overlap=overlap)) as rig:
        requests = [make_request([item] * 40, 40, end_ids=(), stream=True) for item in range(1, 7)]
        for request, sink in zip(requests, await rig.generate(*requests), strict=True):
            expect_reference(request, sink)
        figures = rig.pipeline.snapshot().scheduling
        assert figures.num_preemptions > 5
        assert figures.num_evictions > 5


def _broken_trees() -> list[DraftTree]:
    def tree(tokens: list[int], parents: list[int]) -> DraftTree:
        size = len(tokens)
        return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), np.zeros(size, np.float32), np.zeros(size, np.int32))

    return [tree([1, 2], [1, 0]), tree([1, 2], [-1, -2]), tree([1, 99], [-1, 0]), tree([-1], [-1]), tree([1] * 3, [-1, 0, 2])]


@pytest.mark.parametrize("broken", _broken_trees())
@async_test
async def test_a_malformed_draft_is_dropped(broken: DraftTree) -> None:
    request = make_request(max_tokens=12)
    async with running() as rig:
        rig.fusion.edit_tree = lambda tree: broken if len(tree) else tree
        expect_reference(request, (await rig.generate(request))[0])
        assert rig.pipeline.snapshot().sums.num_drafted == 0


async def _trouble(rig: Rig, name: str) -> None:
    if name == "fusion fails":
        rig.fusion.failing = True
    elif name == "router fails":
        rig.router.failing = True
    elif name == "one drafter is gone":
        rig.fusion.alive[0] = False
    elif name == "all drafters are gone":
        rig.fusion.alive[:] = [False] * len(rig.fusion.alive)
    elif name == "drafters forget":
        for held in rig.fusion.held:
            held.clear()


@pytest.mark.parametrize("trouble", ["fusion fails", "router fails", "one drafter is gone", "all drafters are gone", "drafters forget"])
@pytest.mark.parametrize("from_start", [True, False])
@async_test
async def test_trouble_with_speculation_never_shows(trouble: str, from_start: bool) -> None:
    requests = [make_request((1, 2, item), 40, end_ids=(), stream=True) for item in range(1, 7)]
    async with running() as rig:
        if from_start:
            await _trouble(rig, trouble)
        sinks = [rig.submit(request) for request in requests]
        while not sinks[0].chunks:
            await asyncio.sleep(0)
        await _trouble(rig, trouble)
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        for request, sink in zip(requests, sinks, strict=True):
            expect_reference(request, sink)
        rig.fusion.failing = False
