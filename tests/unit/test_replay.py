"""The replay: recorded answers equal the engines', texts equal the target's, and the same inputs give the same figures."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import GrowthStop, RowStatus, StepCall, StepResult, StepRow
from drafthouse.engine.engine import ModelEngine
from drafthouse.engine.runner import empty_result
from drafthouse.engine.slots import LEASE_S
from drafthouse.fusion.fuser import FusionOptions
from drafthouse.pipeline.config import Mode, PipelineConfig
from drafthouse.pipeline.loop import Pipeline
from drafthouse_load.ablate.replayed import pipeline_config
from drafthouse_load.replay.engine import ReplayEngine
from drafthouse_load.replay.models import ReplayModels
from drafthouse_load.replay.outputs import Answer, Context, ReferenceText, TargetOutputs, stand_in
from drafthouse_load.replay.result import ReplayResult
from drafthouse_load.replay.run import ReplayError, run_replay
from fakes.replay_repository import DRAFTER_MS, HOP, PROMPTS, TARGET_MS, build_replay_repository, made_up_costs, made_up_profile

MAX_TOKENS = 30


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_replay_repository(tmp_path_factory.mktemp("replay"))


@pytest.fixture(scope="module")
def models(repository: Path) -> ReplayModels:
    return ReplayModels(repository)


@pytest.fixture(scope="module")
def texts(models: ReplayModels) -> list[ReferenceText]:
    return models.texts(PROMPTS, MAX_TOKENS)


def config(models: ReplayModels, mode: str, **changes: str) -> PipelineConfig:
    return pipeline_config(models.parameters, {"mode": mode, **changes})


def play(models: ReplayModels, texts: list[ReferenceText], mode: str, concurrency: int = 1, **changes: str) -> ReplayResult:
    return run_replay(made_up_profile(), models, texts, config(models, mode, **changes), concurrency=concurrency)


def test_the_repository_is_read(models: ReplayModels) -> None:
    assert models.drafter_names == ("twin", "stranger")
    assert models.target.slots == 4
    assert models.parameters["mode"] in tuple(Mode)


def test_reference_texts_are_written_once_and_are_the_targets_own(models: ReplayModels, texts: list[ReferenceText]) -> None:
    again = models.texts(PROMPTS[::-1], MAX_TOKENS)
    assert [text.number for text in again] == [text.number for text in texts][::-1]
    engine = models.target.load()
    for text in texts:
        assert 1 <= len(text.output_ids) <= MAX_TOKENS
        draft = text.tokens[text.prompt_len : text.prompt_len + 5]
        for start in range(0, text.prompt_len - 1, 8):
            end = min(start + 8, text.prompt_len - 1)
            engine.step(StepCall([StepRow(text.number, start, text.tokens[start:end], end - start)], 0))
        last = text.tokens[text.prompt_len - 1 : text.prompt_len]
        row = StepRow(text.number, text.prompt_len - 1, np.concatenate((last, draft)), 1)
        (answer,) = engine.step(StepCall([row])).rows
        assert answer.sampled[: len(draft)].tolist() == draft.tolist()


def test_a_context_is_what_it_shares_with_the_text_and_the_rest() -> None:
    text = ReferenceText(1, np.array([5, 6, 7, 8], np.int32), 2, 2)
    assert text.output_ids == (7, 8)
    assert text.context(np.array([5, 6], np.int32)) == (2, ())
    assert text.context(np.array([5, 6, 9, 8], np.int32)) == (2, (9, 8))
    assert text.after((2, ()), 7) == (3, ())
    assert text.after((2, ()), 9) == (2, (9,))
    assert text.after((2, (9,)), 7) == (2, (9, 7))
    assert text.after((4, ()), 7) == (4, (7,))


def test_the_target_follows_its_text_and_elsewhere_chooses_nothing_that_was_drafted() -> None:
    text = ReferenceText(1, np.array([5, 6, 7, 8], np.int32), 2, 2)
    outputs = TargetOutputs()
    assert outputs.answer(text, (3, ()), 0).ids == (8,)
    assert outputs.answer(text, (3, (1,)), 0).ids == outputs.answer(text, (4, ()), 0).ids == (-1,)
    assert (stand_in(()), stand_in((0, 2))) == (0, 1)
    with pytest.raises(ValueError, match="scores no prompts"):
        outputs.prompt_score(text, 0, 2)


def engines(models: ReplayModels, text: ReferenceText) -> tuple[ReplayEngine, ModelEngine]:
    model = models.drafters["stranger"]
    replayed = ReplayEngine(model.shape, made_up_costs(1.0), models.outputs("stranger"), {9: text, 10: text})
    return replayed, model.load()


def test_a_replayed_drafter_answers_what_the_real_one_answers(models: ReplayModels, texts: list[ReferenceText]) -> None:
    text = texts[0]
    replayed, real = engines(models, text)
    prompt, half = text.tokens[: text.prompt_len], text.tokens[: text.prompt_len + 7]
    wrong = np.array([3, 4], np.int32)
    tree = np.array([half[-1], 3, 4, 5], np.int32)
    branches = np.array([-1, 0, 0, 1], np.int32)
    chain = np.array([half[-1], 3], np.int32)
    calls = [
        StepCall([StepRow(9, 2, half[2:], len(half) - 2)]),  # unknown: needs prefill
        StepCall([StepRow(9, 0, prompt, len(prompt))], 0, return_prompt_logprob=True),
        StepCall([StepRow(9, len(prompt) - 1, half[len(prompt) - 1 :], 8)], 5, 2),
        StepCall([StepRow(9, len(half) - 1, np.concatenate((half[-1:], wrong)), 1)], 3, 2),
        StepCall([StepRow(9, len(half) - 1, np.concatenate((half[-1:], wrong)), 3)], 2, 2),  # committed off the text, then taken back
        StepCall([StepRow(9, len(half) - 1, tree, 1, branches)], 1, 3),
        StepCall([StepRow(9, len(half) - 1, chain, 1, chance=0.9)], 4, 2),
        StepCall([StepRow(9, len(half) - 1, chain, 1, chance=0.9)], 6, 2, stop=GrowthStop(1.0, 0.0, 0.1)),
    ]
    for call in calls:
        (mine,), (theirs,) = replayed.step(call).rows, real.step(call).rows
        assert (mine.status, mine.cached_len, mine.num_scored) == (theirs.status, theirs.cached_len, theirs.num_scored)
        assert mine.sampled.tolist() == theirs.sampled.tolist()
        assert mine.prompt_logprob == pytest.approx(theirs.prompt_logprob, abs=1e-4)
        assert mine.candidate_ids.tolist() == theirs.candidate_ids.tolist()
        np.testing.assert_allclose(mine.candidate_probs, theirs.candidate_probs, atol=1e-5)


def test_a_replayed_engine_charges_every_network_call(models: ReplayModels, texts: list[ReferenceText]) -> None:
    replayed, _ = engines(models, texts[0])
    head = texts[0].tokens[:4]
    result = replayed.step(StepCall([StepRow(9, 0, head, 4), StepRow(10, 0, head[:2], 2)], 3, 1))
    costs = made_up_costs(1.0)
    session_ms = costs.session(2, 4, 6) + 2 * costs.session(2, 2, 2)
    assert result.session_ns == pytest.approx(session_ms * 1e6, abs=1)
    assert replayed.busy_s == pytest.approx((session_ms + costs.call_ms) / 1e3)
    assert (result.slots_free, result.slots_total) == (2, 4)
    replayed.release((9, 10))
    assert replayed.step(StepCall([])).slots_free == 4
    assert replayed.busy_s == 0.0


def test_what_recordings_cannot_answer_is_refused(models: ReplayModels, texts: list[ReferenceText]) -> None:
    replayed, _ = engines(models, texts[0])
    head = texts[0].tokens[:2]
    with pytest.raises(ValueError, match="candidates"):
        replayed.step(StepCall([StepRow(9, 0, head, 2)], 1, 9))
    with pytest.raises(ValueError, match="greedy"):
        replayed.step(StepCall([StepRow(9, 0, head, 2, None, SamplingParams(temperature=0.5))]))
    with pytest.raises(ValueError, match="num_committed"):
        replayed.step(StepCall([StepRow(9, 0, head, 3)]))
    assert replayed.step(StepCall([StepRow(9, 1, head, 2)])).rows[0].status is RowStatus.NEEDS_PREFILL


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("concurrency", [1, 3, 6])
def test_every_mode_writes_the_targets_text(models: ReplayModels, texts: list[ReferenceText], mode: str, concurrency: int) -> None:
    result = play(models, texts, mode, concurrency)  # raises when a text differs
    assert [record.num_output_tokens for record in result.records] == [len(text.output_ids) for text in texts]
    assert all(record.arrival_s <= record.first_token_s <= record.end_s <= result.wall_s for record in result.records)
    assert 0 < result.target_busy_s <= result.wall_s
    assert 0 <= result.both_busy_s <= min(result.target_busy_s, result.drafters_busy_s)


def test_target_alone_takes_what_its_calls_cost(models: ReplayModels, texts: list[ReferenceText]) -> None:
    text = texts[2]
    assert text.prompt_len == 1
    result = play(models, [text], "target_only")
    costs, num_tokens = made_up_costs(TARGET_MS), len(text.output_ids)
    calls_ms = num_tokens * (costs.session(1, 2, 2) + costs.call_ms)
    around_ms = num_tokens * (HOP.call_ms + made_up_profile().hops.pipeline.call_ms)
    assert 1e3 * result.wall_s == pytest.approx(calls_ms + around_ms)
    assert result.target_busy_s == pytest.approx(calls_ms / 1e3)
    assert result.verify_idle_share == pytest.approx(around_ms / (calls_ms + around_ms))
    assert (result.draft_idle_share, result.overlap_share) == (1.0, 0.0)
    assert result.tokens_per_s == pytest.approx(num_tokens / result.wall_s)


def test_speculation_pays_in_virtual_time(models: ReplayModels, texts: list[ReferenceText]) -> None:
    alone, speculating = play(models, texts, "target_only"), play(models, texts, "vanilla", single_drafter="twin")
    assert speculating.accepted_len_mean > 3, "the twin is always right"
    assert speculating.tokens_per_s > 2 * alone.tokens_per_s
    assert speculating.draft_idle_share < 1


def test_the_same_inputs_give_the_same_figures(repository: Path, models: ReplayModels, texts: list[ReferenceText]) -> None:
    fresh = ReplayModels(repository)
    for mode in Mode:
        first, second = play(models, texts, mode, 3), play(models, texts, mode, 3)
        third = play(fresh, fresh.texts(PROMPTS, MAX_TOKENS), mode, 3)
        assert first == second == third
        assert first.figures() == third.figures()


def test_warming_up_is_not_counted(models: ReplayModels, texts: list[ReferenceText]) -> None:
    settings = config(models, "target_only")
    cold = run_replay(made_up_profile(), models, texts, settings)
    warm = run_replay(made_up_profile(), models, texts, settings, num_warmup=3)
    assert warm.wall_s == pytest.approx(cold.wall_s, abs=0.002), "the last releases of the warm-up are delivered meanwhile"
    assert len(warm.records) == len(texts)
    assert warm.sums.num_verified_rows == cold.sums.num_verified_rows


def test_a_text_that_the_target_would_not_write_is_noticed(
    models: ReplayModels, texts: list[ReferenceText], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafthouse_load.replay.run.TargetOutputs", _Astray)
    with pytest.raises(ReplayError, match="prompt 0: the text differs"):
        play(models, texts[:1], "target_only")


def test_a_stand_in_that_cannot_answer_fails_the_replay_although_the_pipeline_goes_on_without_it(
    models: ReplayModels, texts: list[ReferenceText], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafthouse_load.replay.engine.RECORDED_CANDIDATES", 0)
    with pytest.raises(ReplayError, match="candidates"):
        play(models, texts[:1], "vanilla", single_drafter="twin")


class _Astray(TargetOutputs):
    """A target that never writes what the reference says."""

    def answer(self, text: ReferenceText, context: Context, num_steps: int) -> Answer:
        return Answer((1 + (super().answer(text, context, num_steps).ids[0] + 1) % 80,), (1.0,))


class _Mute(ReplayEngine):
    """An engine that lost every request, and says so for ever."""

    def step(self, call: StepCall) -> StepResult:
        return replace(super().step(call), rows=[empty_result(RowStatus.NEEDS_PREFILL, 0) for _ in call.rows])


def test_a_replay_in_which_nothing_is_written_any_more_ends(
    models: ReplayModels, texts: list[ReferenceText], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafthouse_load.replay.run.ReplayEngine", _Mute)
    monkeypatch.setattr("drafthouse_load.replay.run.STALLED_AFTER_S", 0.5)
    settings = replace(config(models, "target_only"), max_stalled_rounds=10**9)
    with pytest.raises(ReplayError, match=r"nothing was written for 0\.5 s of virtual time; 2 requests run, 0 wait"):
        run_replay(made_up_profile(), models, texts, settings, concurrency=2)


def test_a_pipeline_that_ends_ends_the_replay(models: ReplayModels, texts: list[ReferenceText], monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(pipeline: Pipeline) -> None:
        await asyncio.sleep(1.0)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Pipeline, "run", fails)
    with pytest.raises(ReplayError, match=r"the pipeline ended: ZeroDivisionError\('a bug'\); 0 requests run, 1 wait"):
        play(models, texts[:1], "target_only")


def test_a_call_times_out_in_virtual_time(models: ReplayModels, texts: list[ReferenceText]) -> None:
    """A drafter whose calls take 3 s is given up after the configured second, and the replay itself takes no seconds."""
    profile = made_up_profile()
    profile = replace(profile, engines={**profile.engines, "twin": made_up_costs(3_000.0)})
    settings = config(models, "vanilla", single_drafter="twin")
    result = run_replay(profile, models, texts[:1], settings, FusionOptions(call_timeout_s=1.0))
    assert result.sums.num_drafted == 0
    assert 1.0 < result.wall_s < 10.0
    patient = run_replay(profile, models, texts[:1], settings, FusionOptions(call_timeout_s=1e6))
    assert patient.sums.num_drafted > 0
    assert patient.wall_s > 10.0


def test_a_slot_is_taken_back_by_the_replays_own_clock(models: ReplayModels, texts: list[ReferenceText]) -> None:
    now_s = 0.0
    model = models.drafters["stranger"]
    held = dict.fromkeys(range(9), texts[0])
    engine = ReplayEngine(model.shape, made_up_costs(1.0), models.outputs("stranger"), held, lambda: now_s)
    head = texts[0].tokens[:2]

    def statuses(*uids: int) -> list[RowStatus]:
        return [row.status for row in engine.step(StepCall([StepRow(uid, 0, head, 2) for uid in uids], 0)).rows]

    assert statuses(0, 1, 2, 3) == [RowStatus.OK] * 4
    assert statuses(4) == [RowStatus.NO_SLOT]
    now_s = LEASE_S + 1
    assert statuses(3, 4, 5) == [RowStatus.OK] * 3


def test_a_drafter_costs_what_it_is_asked(models: ReplayModels, texts: list[ReferenceText]) -> None:
    result = play(models, [texts[2]], "vanilla", single_drafter="twin", num_draft_tokens="1")
    sessions = [stats.draft_session_ns for stats in result.rounds if stats.num_drafted == 1]
    one = made_up_costs(DRAFTER_MS).session(1, 2, 2) * 1e6
    assert sessions
    assert min(sessions) == pytest.approx(one, abs=1)
