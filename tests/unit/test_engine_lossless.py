"""Speculation, batching, padding, preemption and crashes must not change a single token; run on a real network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import StepCall
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.engine import ModelEngine, load_engine
from drafthouse.engine.options import EngineOptions
from fakes.engine_driver import MAX_STEP_TOKENS, VOCAB_SIZE, Draft, Drafter, Stream, generate, same_answer, step_row
from fakes.engine_session import call_times
from fakes.onnx_llama import OnnxLlama

EngineDir = Callable[..., Path]
PROMPTS = [[5, 9, 200, 31], list(range(40, 63)), [299], [7, 7, 7, 8, 9, 10, 11]]
KINDS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=11),
    SamplingParams(temperature=0.8, top_p=0.95, seed=2**63),
    SamplingParams(temperature=1.2, top_k=20, seed=4),
]
NUM_TOKENS = 40


@pytest.fixture(scope="module", params=["fp32", "int8"])
def engine_dir(request: pytest.FixtureRequest, tiny_engine_dir: EngineDir) -> Path:
    return tiny_engine_dir(request.param)


def load(folder: Path, **options: int) -> ModelEngine:
    return load_engine(folder, EngineOptions(**{"calibration_ms": 0, **options}))


def guesses(truth: Sequence[int], prompt_len: int, seed: int, *, branches: bool = False, up_to: int | None = None) -> Drafter:
    """Drafts five of the true next tokens, or 0 to `up_to`, some replaced by wrong ones; with `branches`, wrong siblings come first."""
    random = np.random.default_rng(seed)

    def draft(known: Sequence[int]) -> Draft:
        ahead = truth[len(known) - prompt_len :][: 5 if up_to is None else int(random.integers(up_to + 1))]
        tokens: list[int] = []
        parents: list[int] = []
        tip = -1
        for true in ahead:
            wrong = (true + 1 + int(random.integers(VOCAB_SIZE - 1))) % VOCAB_SIZE
            kind = random.random()
            if branches and kind < 0.6 and len(tokens) < 5:
                tokens += [wrong, true]
                parents += [tip, tip]
            else:
                tokens.append(wrong if kind > 0.85 else true)
                parents.append(tip)
            tip = len(tokens) - 1
        return tokens, parents

    return draft


def alone(folder: Path, prompt: Sequence[int], sampling: SamplingParams) -> Stream:
    """One token per call on an engine of its own: what every other way has to reproduce."""
    stream = Stream(1, prompt, sampling)
    generate(load(folder), [stream], NUM_TOKENS)
    return stream


@pytest.mark.parametrize("sampling", KINDS)
def test_verifying_chains_equals_decoding_one_by_one(engine_dir: Path, sampling: SamplingParams) -> None:
    for index, prompt in enumerate(PROMPTS):
        truth = alone(engine_dir, prompt, sampling)
        drafted = Stream(2, prompt, sampling, guesses(truth.text, len(prompt), index))
        assert generate(load(engine_dir), [drafted], NUM_TOKENS) == [truth.text[:NUM_TOKENS]]
        assert drafted.logprobs[:NUM_TOKENS] == truth.logprobs[:NUM_TOKENS]
        assert drafted.num_rounds < truth.num_rounds / 2


@pytest.mark.parametrize("bridged", [False, True])
def test_company_slot_and_padding_change_nothing(engine_dir: Path, bridged: bool) -> None:
    truths = [alone(engine_dir, prompt, sampling) for prompt, sampling in zip(PROMPTS, KINDS, strict=True)]
    engine = load(engine_dir, slots=6)
    times = call_times({2: 10.0, 3: 30.0, 4: 20.0, 5: 30.0, 6: 30.0, 7: 30.0, 8: 25.0, 16: 30.0}, place_ms=0.1, row_ms=0.2)
    engine.costs = CallCosts(2, MAX_STEP_TOKENS, times if bridged else {})
    assert engine.costs.padded(6) == (8 if bridged else 6)
    engine.step(StepCall([step_row(90, [1, 2])]))  # holds slot 0
    engine.step(StepCall([step_row(91, [1, 2]), step_row(92, [3])]))
    engine.release([91])  # a gap: later requests lie in two runs of slots
    streams = [
        Stream(uid, prompt, sampling, guesses(truth.text, len(prompt), uid) if uid != 2 else None)
        for uid, (prompt, sampling, truth) in enumerate(zip(PROMPTS, KINDS, truths, strict=True))
    ]
    assert generate(engine, streams, NUM_TOKENS) == [truth.text[:NUM_TOKENS] for truth in truths]
    for stream, truth in zip(streams, truths, strict=True):
        assert stream.logprobs[:NUM_TOKENS] == truth.logprobs[:NUM_TOKENS]


def test_rows_of_every_length_beside_prefill_and_trees_change_nothing(engine_dir: Path) -> None:
    """Requests that draft 0 to 5 tokens, join while others decode, and share calls with trees: zero tolerance for chains."""
    truths = [alone(engine_dir, prompt, sampling) for prompt, sampling in zip(PROMPTS, KINDS, strict=True)]
    for seed in range(3):
        random = np.random.default_rng(seed)
        engine = load(engine_dir, slots=6)
        tree = Stream(9, PROMPTS[1], drafter=guesses(truths[1].text, len(PROMPTS[1]), seed, branches=True))
        streams: list[Stream] = []
        while len(streams) < 4 or any(len(stream.text) < NUM_TOKENS for stream in streams):
            if len(streams) < 4 and random.random() < 0.3:
                index = len(streams)
                drafter = guesses(truths[index].text, len(PROMPTS[index]), seed, up_to=5)
                streams.append(Stream(index, PROMPTS[index], KINDS[index], drafter))
            if len(tree.text) > NUM_TOKENS:
                tree.text, tree.cached_len = [], 0
            working = [stream for stream in (*streams, tree) if stream is tree or len(stream.text) < NUM_TOKENS]
            sent = [stream.next_row() for stream in working]
            answers = engine.step(StepCall([row for row, _ in sent])).rows
            for stream, (row, draft), answer in zip(working, sent, answers, strict=True):
                stream.take(row, draft, answer)
        for stream, truth in zip(streams, truths, strict=True):
            assert stream.text[:NUM_TOKENS] == truth.text[:NUM_TOKENS]
            assert stream.logprobs[:NUM_TOKENS] == truth.logprobs[:NUM_TOKENS]


def test_an_engine_that_is_killed_and_reloaded_goes_on_with_the_same_text(engine_dir: Path) -> None:
    prompt, sampling = PROMPTS[1], KINDS[2]
    truth = alone(engine_dir, prompt, sampling)
    stream = Stream(3, prompt, sampling, guesses(truth.text, len(prompt), 1))
    first, second = load(engine_dir), load(engine_dir)
    generate(first, [stream], 17)
    assert generate(second, [stream], NUM_TOKENS) == [truth.text[:NUM_TOKENS]]
    assert first.status().engine_epoch != second.status().engine_epoch


def test_a_released_request_is_prefilled_again_with_the_same_text(engine_dir: Path) -> None:
    prompt, sampling = PROMPTS[0], KINDS[1]
    truth = alone(engine_dir, prompt, sampling)
    stream = Stream(3, prompt, sampling, guesses(truth.text, len(prompt), 1))
    engine = load(engine_dir, slots=1)
    generate(engine, [stream], 12)
    engine.release([3, 3, 77])
    other = Stream(4, PROMPTS[2], KINDS[0])
    generate(engine, [other], 5)
    engine.release([4])
    assert generate(engine, [stream], NUM_TOKENS) == [truth.text[:NUM_TOKENS]]


@pytest.mark.parametrize("sampling", KINDS)
def test_trees_accept_branches_and_keep_the_text(tiny_engine_dir: EngineDir, sampling: SamplingParams) -> None:
    """A branch's logits differ in the last bits (its cache rows lie elsewhere); these seeds meet no near-tie."""
    folder = tiny_engine_dir("fp32")
    for index, prompt in enumerate(PROMPTS):
        truth = alone(folder, prompt, sampling)
        stream = Stream(2, prompt, sampling, guesses(truth.text, len(prompt), index, branches=True))
        assert generate(load(folder), [stream], NUM_TOKENS) == [truth.text[:NUM_TOKENS]]
        assert stream.logprobs[:NUM_TOKENS] == pytest.approx(truth.logprobs[:NUM_TOKENS], abs=1e-4)
        assert stream.num_rounds < truth.num_rounds / 2


def test_a_repeated_call_gives_the_same_answer(engine_dir: Path) -> None:
    engine = load(engine_dir)
    sampling = KINDS[2]
    prefill = StepCall([step_row(1, PROMPTS[1][:12], sampling=sampling), step_row(2, PROMPTS[3])], 1, 3, return_prompt_logprob=True)
    first, again = engine.step(prefill), engine.step(prefill)
    assert all(map(same_answer, first.rows, again.rows))
    assert first.rows[0].num_scored == 11
    tree = step_row(1, [3, 4, 5, 6, 7], prefix_len=12, num_committed=1, parents=[-1, 0, 0, 1, 2], sampling=sampling)
    first, again = engine.step(StepCall([tree], 1, 3)), engine.step(StepCall([tree], 1, 3))
    assert same_answer(first.rows[0], again.rows[0])
    # The second branch was accepted: its rows are moved once, and found in place by the repeated call.
    accepted = step_row(1, [3, 5, 7, 8, 9], prefix_len=12, num_committed=4, sampling=sampling)
    first, again = engine.step(StepCall([accepted], 3, 3)), engine.step(StepCall([accepted], 3, 3))
    assert same_answer(first.rows[0], again.rows[0])
    assert len(first.rows[0].sampled) == 4


def test_self_extension_equals_one_call_per_token(engine_dir: Path) -> None:
    for sampling in KINDS:
        engine = load(engine_dir)
        together = engine.step(StepCall([step_row(1, PROMPTS[0], sampling=sampling), step_row(2, PROMPTS[2], sampling=sampling)], 5, 2))
        for row, prompt in zip(together.rows, (PROMPTS[0], PROMPTS[2]), strict=True):
            single = alone(engine_dir, prompt, sampling)
            assert row.sampled.tolist() == single.text[:5]
            assert row.logprobs.tolist() == single.logprobs[:5]
            assert row.candidate_ids.shape == row.candidate_probs.shape == (5, 2)
            assert row.cached_len == len(prompt)


def test_a_drafter_goes_on_from_its_accepted_tokens_and_rolls_back_the_others(engine_dir: Path) -> None:
    """What the target accepted is not computed again, and what it rejected leaves no trace."""
    truth = alone(engine_dir, PROMPTS[0], SamplingParams()).text
    prompt_len = len(PROMPTS[0])
    for accepted in range(5):
        engine = load(engine_dir)
        drafted = engine.step(StepCall([step_row(1, PROMPTS[0])], 5)).rows[0].sampled.tolist()
        assert drafted == truth[:5]
        known = [*drafted[:accepted], (drafted[accepted] + 1) % VOCAB_SIZE]
        answer = engine.step(StepCall([step_row(1, known, prefix_len=prompt_len)], 3)).rows[0]
        fresh = load(engine_dir).step(StepCall([step_row(1, [*PROMPTS[0], *known])], 3)).rows[0]
        assert same_answer(answer, fresh)
        sat_out = engine.step(StepCall([step_row(1, truth[:3], prefix_len=prompt_len)])).rows[0]
        assert sat_out.sampled.tolist() == [truth[3]]


def test_the_prompt_score_is_that_of_its_tokens(engine_dir: Path) -> None:
    prompt = PROMPTS[1][:14]
    engine = load(engine_dir)
    whole = engine.step(StepCall([step_row(1, prompt)], 0, return_prompt_logprob=True)).rows[0]
    assert (whole.num_scored, len(whole.sampled), whole.cached_len) == (13, 0, 14)
    logits = OnnxLlama(engine_dir / "model.onnx", rows=1).step(0, [prompt], [0])[0].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert whole.prompt_logprob == pytest.approx(log_probs[np.arange(13), prompt[1:]].sum(), rel=1e-5)
    parts = [step_row(3, prompt[:6]), step_row(3, prompt[5:], prefix_len=5)]  # the second begins with a token that is cached
    chunks = [engine.step(StepCall([part], 0, return_prompt_logprob=True)).rows[0] for part in parts]
    assert sum(chunk.prompt_logprob for chunk in chunks) == pytest.approx(whole.prompt_logprob, rel=1e-6)
    assert sum(chunk.num_scored for chunk in chunks) == 13


def test_bad_words_and_the_end_tokens_never_appear(tiny_engine_dir: EngineDir) -> None:
    folder = tiny_engine_dir("fp32")
    for kind in KINDS:
        free = alone(folder, PROMPTS[0], kind)
        ends = (free.text[3], free.text[5])
        engine = load(folder)
        vocabulary = engine.token_bytes
        spelled = b"".join(vocabulary[token] for token in free.text)
        words = (spelled[4:6], spelled[9:10])
        ended = len(PROMPTS[0]) + 20
        banned = SamplingParams(kind.temperature, kind.top_k, kind.top_p, kind.seed, ends, ended, words)
        truth = Stream(1, PROMPTS[0], banned)
        generate(engine, [truth], NUM_TOKENS)
        text = b"".join(vocabulary[token] for token in [*PROMPTS[0], *truth.text])
        start = len(b"".join(vocabulary[token] for token in PROMPTS[0]))
        assert not any(word in text[max(0, start - len(word) + 1) :] for word in words)
        assert not set(ends) & set(truth.text[:20])
        drafted = Stream(2, PROMPTS[0], banned, guesses(truth.text, len(PROMPTS[0]), 5, branches=True))
        assert generate(engine, [drafted], NUM_TOKENS) == [truth.text[:NUM_TOKENS]]
        extended = engine.step(StepCall([step_row(3, PROMPTS[0], sampling=banned)], 6)).rows[0]
        assert extended.sampled.tolist() == truth.text[:6]
