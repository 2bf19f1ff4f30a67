"""The shape of the loop: its length, its calls, prefill in chunks, what the router hears, configuration, policies."""

import ast
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest

from drafthouse.core.errors import ClientError
from drafthouse.pipeline import book, loop, stage_draft, stage_route, stage_target, turns
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.modes import Mode
from fakes.pipeline_fusion import DRAFTERS
from fakes.pipeline_harness import async_test, make_request, running
from fakes.pipeline_model import next_token

IN_TURN = PipelineConfig(overlap="off", adaptation="off", tetris="off")  # one draft and one verification per round


def test_the_main_loop_and_every_function_are_short() -> None:
    for module in (loop, book, turns, stage_draft, stage_route, stage_target):
        source = inspect.getsource(module)
        assert len(source.splitlines()) <= 300
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 40, f"{module.__name__}.{node.name}"


@async_test
async def test_a_long_prompt_is_prefilled_in_chunks_and_read_by_the_drafters_beside() -> None:
    prompt = [1 + item % 17 for item in range(70)]
    async with running(PipelineConfig()) as rig:
        await rig.generate(make_request(prompt, 1))
        assert [row.num_committed for call in rig.target.calls for row in call.rows] == [32, 32, 6]
        assert [call.num_steps for call in rig.target.calls] == [0, 0, 1]
        assert rig.fusion.calls == []  # of one token nothing can be drafted
        await rig.generate(make_request(prompt, 9, end_ids=()))
        intake = [row for call in rig.fusion.calls for row in call.rows if row.num_draft_tokens == 0]
        assert [len(row.tokens) for row in intake] == [32, 32, 6]
        assert [row.prefix_len for row in intake] == [0, 32, 64]
        assert all((row.weights == 1.0).all() for row in intake)


@async_test
async def test_prefill_of_many_prompts_keeps_within_the_round_s_budget() -> None:
    async with running(PipelineConfig(max_prefill_tokens=40)) as rig:
        await rig.generate(*(make_request([1 + item % 17 for item in range(30)], 3) for _ in range(4)))
        prefills = [call for call in rig.target.calls if call.rows[0].prefix_len == 0]
        assert [len(call.rows) for call in prefills] == [1, 1, 1, 1]


@async_test
async def test_the_router_hears_prompt_scores_first_and_each_verified_round_once() -> None:
    async with running(replace(IN_TURN, route_every=1)) as rig:
        request = make_request((1, 2, 3, 4), 40, end_ids=())
        (sink,) = await rig.generate(request)
        first, *later = (row for rows in rig.router.calls for row in rows)
        assert first.prompt_logprob.tolist() == [-1.0, -2.0, -3.0, -4.0]
        assert not first.state.any()
        assert first.num_rounds == 0
        assert first.proposals.shape == (len(DRAFTERS), 0)
        assert len(later) == sum(stats.num_drafted > 0 for stats in rig.rounds[:-1])  # the last round's news has nobody to serve
        output = [*request.prompt_ids, *sink.output_ids]
        for row in later:
            reached = row.target_tokens[row.target_tokens >= 0].tolist()
            assert reached
            assert row.num_rounds == 1
            assert 0 <= len(reached) - row.accepted_len <= 1
            assert row.drafted_len == len(row.target_tokens)
            starts = [start for start in range(4, len(output)) if output[start : start + len(reached)] == reached]
            assert any(next_token(output[:start], request.sampling) == reached[0] for start in starts)
        # Weights move on with the router's answers: one round old, so each pair works twice at most.
        weights = [tuple(row.weights) for call in rig.fusion.calls for row in call.rows if row.num_draft_tokens > 0]
        assert len(set(weights)) == len(DRAFTERS)
        assert all(sum(weight > 0 for weight in row) == 2 for row in weights)


@async_test
async def test_the_router_hears_of_several_rounds_at_a_time_and_of_each_once() -> None:
    reports = {}
    for route_every in (1, 3):
        async with running(replace(IN_TURN, route_every=route_every)) as rig:
            await rig.generate(make_request((1, 2, 3, 4), 40, end_ids=()))
            _, *reports[route_every] = (row for rows in rig.router.calls for row in rows)
            num_rounds = sum(stats.num_drafted > 0 for stats in rig.rounds[:-1])
        assert len(reports[route_every]) == num_rounds // route_every
    each, joined = reports[1][:3], reports[3][0]
    assert joined.target_tokens.tolist() == np.concatenate([row.target_tokens for row in each]).tolist()
    assert joined.proposals.shape == joined.proposal_probs.shape == (len(DRAFTERS), len(joined.target_tokens))


@pytest.mark.parametrize(
    ("mode", "pinned", "expected"),
    [
        (Mode.VANILLA, (), {"general"}),
        (Mode.COSINE, ("math",), {"math"}),
        (Mode.COSINE, ("code", "math"), {"code", "math"}),
        (Mode.TARGET_ONLY, (), set()),
    ],
)
@async_test
async def test_who_drafts(mode: Mode, pinned: tuple[str, ...], expected: set[str]) -> None:
    async with running(PipelineConfig(mode=mode)) as rig:
        await rig.generate(make_request(max_tokens=30, end_ids=(), drafters=pinned))
        workers = {DRAFTERS[index] for call in rig.fusion.calls for row in call.rows for index in np.flatnonzero(row.weights).tolist()}
        assert workers == expected
        assert bool(rig.router.calls) == (len(expected) > 1)
        assert rig.pipeline.snapshot().mode == mode


@async_test
async def test_without_a_router_two_drafters_share_the_work() -> None:
    async with running(IN_TURN, router=None) as rig:
        await rig.generate(make_request(max_tokens=10, end_ids=()))
        weights = {tuple(row.weights) for call in rig.fusion.calls for row in call.rows if row.num_draft_tokens > 0}
        assert weights == {(1.0, 1.0, 0.0, 0.0)}


def test_configuration_is_parsed_strictly() -> None:
    config = PipelineConfig.parse({"mode": "vanilla", "single_drafter": "math", "num_draft_tokens": "3", "max_queue_size": "0"})
    assert (config.mode, config.single_drafter, config.num_draft_tokens, config.max_queue_size) == (Mode.VANILLA, "math", 3, 0)
    assert PipelineConfig.parse({}) == PipelineConfig()
    assert config.usable_drafters(DRAFTERS) == ("math",)
    assert PipelineConfig(slots=9).max_active(4) == 4
    assert PipelineConfig(slots=3).max_active(4) == 3
    assert PipelineConfig().max_active(4) == 4


@pytest.mark.parametrize(
    ("parameters", "field", "named"),
    [
        ({"num_draft_token": "3"}, "num_draft_token", "max_num_draft_tokens, max_prefill_tokens"),
        ({"mode": "cosin"}, "mode", "cosine, vanilla, specinfer, pipeline_only, target_only"),
        ({"num_draft_tokens": "${k}"}, "num_draft_tokens", "an integer"),
        ({"num_draft_tokens": "-1"}, "num_draft_tokens", "at least 0"),
        ({"num_draft_tokens": "17"}, "num_draft_tokens", "max_num_draft_tokens (16)"),
        ({"max_num_draft_tokens": "65"}, "max_num_draft_tokens", "at most 64"),
        ({"default_deadline_ms": "0"}, "default_deadline_ms", "at least 1"),
        ({"policy": "fifo"}, "policy", "fcfs"),
        ({"length_predictor": "oracle"}, "length_predictor", "histogram"),
        ({"max_batch": "-1"}, "max_batch", "at least 0"),
        ({"starvation_limit_ms": "0"}, "starvation_limit_ms", "at least 1"),
    ],
)
def test_configuration_refuses(parameters: dict[str, str], field: str, named: str) -> None:
    with pytest.raises(ClientError) as caught:
        PipelineConfig.parse(parameters)
    assert caught.value.field == field
    assert named in str(caught.value)


def test_collaborators_are_all_drafters_or_those_named() -> None:
    assert PipelineConfig().usable_drafters(DRAFTERS) == DRAFTERS
    assert PipelineConfig(collaborators="math, code").usable_drafters(DRAFTERS) == ("math", "code")
    with pytest.raises(ClientError, match="field=collaborators value='tao'"):
        PipelineConfig(collaborators="code,tao").usable_drafters(DRAFTERS)


def test_a_single_drafter_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ClientError, match=r"field=single_drafter value='tao' allowed=one of code, math"):
        PipelineConfig(mode=Mode.VANILLA, single_drafter="tao").usable_drafters(DRAFTERS)


@async_test
async def test_the_log_has_one_summary_line_per_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="drafthouse.pipeline.book"):
        async with running() as rig:
            await rig.generate(*(make_request((1, item), 5) for item in range(1, 4)))
    assert len([record for record in caplog.records if "draft tokens accepted" in record.getMessage()]) == 3
    assert math.isfinite(rig.pipeline.snapshot().sums.wall_ns)
