"""Rows that the engine extends with its own samples: chains, early stops, and what is reused of it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import GrowthStop, RowResult, RowStatus, StepCall, StepRow
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.engine import ModelEngine, load_engine
from drafthouse.engine.options import EngineOptions
from fakes.drafter_scripted import ScriptedDrafter
from fakes.engine_driver import same_answer, step, step_row
from fakes.engine_session import FakeSession, call_times, fake_engine, fake_manifest, predicted

EngineDir = Callable[..., Path]
USABLE = 24  # of the fake engine: context 32, steps of up to 8 tokens
KINDS = [SamplingParams(), SamplingParams(temperature=0.8, seed=11), SamplingParams(temperature=1.2, top_k=20, top_p=0.9, seed=4)]
ALWAYS = GrowthStop(1.0, 0.0, 0.0)


def output_paths(row: StepRow, answer: RowResult) -> list[list[int]]:
    """The tokens from the row's first to each output node's, by what the row sent (a chain) and the answer says."""
    tokens, first = row.tokens.tolist(), row.num_committed
    text = [*tokens, *answer.sampled[len(tokens) - first : -1].tolist()]
    return [text[: first + node] for node in range(len(answer.sampled))]


def test_rows_grow_at_their_ends_in_one_call_per_step_and_what_was_accepted_is_cached() -> None:
    engine, session = fake_engine(slots=3)
    rows = [step_row(1, [10, 11, 12], num_committed=1), step_row(2, [7, 8]), step_row(3, [5], num_committed=1)]
    answers = step(engine, *rows, num_steps=3)
    assert session.calls == [(0, 3, 3, 6), (0, 3, 2, 3), (0, 3, 2, 3)]
    assert [len(answer.sampled) for answer in answers] == [5, 3, 3]
    for row, answer in zip(rows, answers, strict=True):
        assert answer.sampled.tolist() == list(map(predicted, output_paths(row, answer)))
    grown = output_paths(rows[0], answers[0])[-1]
    (after,) = step(engine, step_row(1, [*grown[1:], 9], prefix_len=1))
    assert session.calls[-1] == (0, 1, 2, 2)  # one token
    assert after.sampled.tolist() == [predicted([*grown, 9])]


def test_a_tree_does_not_grow() -> None:
    engine, _ = fake_engine()
    tree = step_row(1, [10, 20, 30], num_committed=1, parents=[-1, 0, 0])
    (refused,) = step(engine, tree, num_steps=2)
    assert (refused.status, refused.error) == (RowStatus.ERROR, "INVALID_ARG field=parents value='0 of token 2' allowed=1 to 1")
    assert step(engine, tree)[0].status is RowStatus.OK


def random_row(random: np.random.Generator, uid: int, known: Sequence[int], num_steps: int) -> StepRow:
    """One or two tokens behind ``known``, and a random tree below them; a chain with as much room as the steps ask for, where it grows."""
    committed = random.integers(50, size=random.integers(1, 3)).tolist()
    parents = list(range(-1, len(committed) - 1))
    tokens, count = list(committed), int(random.integers(0, 4))
    for _ in range(count):
        first = len(committed) - 1 if num_steps == 1 else len(tokens) - 1
        parent, token = int(random.integers(first, len(tokens))), int(random.integers(50))
        if (parent, token) not in zip(parents, tokens, strict=True):
            parents.append(parent)
            tokens.append(token)
    return step_row(uid, tokens, prefix_len=len(known), num_committed=len(committed), parents=parents)


def paths_of(row: StepRow, answer: RowResult) -> list[list[int]]:
    """As `output_paths`, of a row that may be a tree where it does not grow."""
    if len(answer.sampled) > len(row.tokens) - row.num_committed + 1 or row.parents is None:
        return output_paths(row, answer)
    paths = [row.tokens[: row.num_committed].tolist()]
    for token, parent in zip(row.tokens[row.num_committed :].tolist(), row.parents[row.num_committed :].tolist(), strict=True):
        paths.append([*paths[parent - row.num_committed + 1], token])
    return paths


def test_any_mixture_of_trees_and_growing_chains_answers_from_the_paths_alone() -> None:
    """Random trees, steps and batches against the definition; accepted paths run through grown nodes."""
    random = np.random.default_rng(6)
    session = FakeSession(fake_manifest(), 5)
    engine = ModelEngine(session, session.manifest, EngineOptions(slots=5, calibration_ms=0))
    held: dict[int, list[int]] = {}
    num_reused = 0
    for trial in range(300):
        costs = call_times({2: 9.0, 8: 10.0}, place_ms=float(random.choice([0.05, 3.0])), row_ms=0.5)
        engine.costs = CallCosts(2, 8, costs if trial % 3 else {})
        num_steps = int(random.integers(1, 5))
        uids = random.permutation(5)[: random.integers(1, 5)].tolist()
        rows = [random_row(random, uid, held.get(uid, []), num_steps) for uid in uids]
        for row in rows:
            if row.prefix_len + row.num_committed > USABLE - 8:
                engine.release([row.request_uid])
                held.pop(row.request_uid)
        rows = [row for row in rows if row.prefix_len == len(held.get(row.request_uid, []))]
        for row, answer in zip(rows, step(engine, *rows, num_steps=num_steps, stop=ALWAYS), strict=True):
            assert answer.status is RowStatus.OK, answer.error
            assert len(answer.sampled) == len(row.tokens) - row.num_committed + num_steps
            known = held.get(row.request_uid, [])
            paths = [[*known, *path] for path in paths_of(row, answer)]
            assert answer.sampled.tolist() == list(map(predicted, paths))
            held[row.request_uid] = paths[0]
            accepted = paths[int(random.integers(len(paths)))][len(paths[0]) :]
            if accepted:
                session.calls.clear()
                (after,) = step(engine, step_row(row.request_uid, [*accepted, 1], prefix_len=len(paths[0])))
                assert session.calls == [(session.calls[0][0], 1, 2, 2)]
                assert after.sampled.tolist() == [predicted([*paths[0], *accepted, 1])]
                held[row.request_uid] = [*paths[0], *accepted, 1]
                num_reused += len(accepted)
    assert num_reused > 200


def test_rows_at_the_end_of_their_slots_grow_beside_wide_ones() -> None:
    session = FakeSession(fake_manifest(context_len=32), 3)
    engine = ModelEngine(session, session.manifest, EngineOptions(slots=3, calibration_ms=0))
    tokens = [(3 * place) % 50 for place in range(USABLE)]
    for start in range(0, USABLE, 8):
        step(engine, step_row(1, tokens[start : start + 8], prefix_len=start), num_steps=0)
    session.calls.clear()
    tight = step_row(1, tokens[-1:], prefix_len=USABLE - 1)  # its seventh and last own token lies in cache row 30 of 32
    wide = step_row(2, [5], num_committed=1)
    answers = step(engine, tight, wide, num_steps=8)
    for known, answer in ((tokens, answers[0]), ([5], answers[1])):
        assert answer.sampled.tolist() == [predicted([*known, *answer.sampled[:count].tolist()]) for count in range(8)]


def test_end_tokens_and_small_chances_stop_a_row_and_the_call_with_the_last() -> None:
    engine, session = fake_engine(slots=3)
    second = predicted([10, 11, predicted([10, 11])])
    ending = step_row(1, [10, 11], sampling=SamplingParams(end_ids=(second,)))
    (answer,) = step(engine, ending, num_steps=6, stop=ALWAYS)
    assert answer.sampled.tolist() == [predicted([10, 11]), second]
    assert len(session.calls) == 2
    (answer,) = step(engine, ending, num_steps=6)
    assert len(answer.sampled) == 6  # whoever says nothing of stopping gets what was asked for
    # Of probability 0.994, and three quarters as likely as that says: 0.75, 0.56, 0.42, 0.32.
    stop = GrowthStop(0.0, float(np.log(3)), 0.4)
    rows = [step_row(2, [5, 6]), replace(step_row(3, [7]), chance=0.5)]
    session.calls.clear()
    answers = step(engine, *rows, num_steps=6, stop=stop)
    assert [call[:2] for call in session.calls] == [(1, 2), (1, 1), (1, 1), (1, 1)]
    assert [answer.candidate_ids.shape for answer in answers] == [(4, 0), (1, 0)]


def test_a_failing_call_costs_the_rows_that_grew_in_it() -> None:
    engine, session = fake_engine(slots=3)
    step(engine, *(step_row(uid, [uid]) for uid in range(3)))
    engine.release([1])
    session.fail_at = {2}
    session.fail_after = 2
    fine, broken = step(engine, step_row(0, [5], prefix_len=1), step_row(2, [6], prefix_len=1), num_steps=4)
    assert (broken.status, broken.cached_len, len(broken.sampled)) == (RowStatus.ERROR, 2, 0)
    assert len(fine.sampled) == 4
    (after,) = step(engine, step_row(2, [7], prefix_len=2))
    assert after.sampled.tolist() == [predicted([2, 6, 7])]


def test_growth_obeys_bad_words() -> None:
    token_bytes = tuple(bytes([97 + token % 26]) for token in range(50))
    engine, _ = fake_engine(token_bytes=token_bytes)
    first = predicted([10, 20, 21])
    words = (b"ab", token_bytes[predicted([10, 20, 21, first])])
    row = step_row(1, [10, 20, 21], num_committed=1, sampling=SamplingParams(bad_words=words))
    (answer,) = step(engine, row, num_steps=4)
    for path, token in zip(output_paths(row, answer), answer.sampled.tolist(), strict=True):
        text = b"".join(token_bytes[part] for part in [*path, token])
        assert not any(text.endswith(word) for word in words)
    assert answer.sampled[3] != predicted([10, 20, 21, first])


@pytest.fixture(scope="module")
def engine(tiny_engine_dir: EngineDir) -> ModelEngine:
    return load_engine(tiny_engine_dir("fp32"), EngineOptions(calibration_ms=0))


@pytest.mark.parametrize("sampling", KINDS)
def test_growing_equals_one_call_per_node(engine: ModelEngine, sampling: SamplingParams) -> None:
    """On a real network: the grown tree sent as a draft gives the same samples, and candidates, at every node."""
    rows = [
        step_row(1, [5, 9, 200, 31, 40], num_committed=3, sampling=sampling),
        step_row(2, [299, 7], num_committed=1, sampling=sampling),
    ]
    grown = step(engine, *rows, num_steps=4, num_candidates=3)
    for row, answer in zip(rows, grown, strict=True):
        path = output_paths(row, answer)[-1]
        (whole,) = step(engine, step_row(row.request_uid + 10, path, num_committed=row.num_committed, sampling=sampling), num_candidates=3)
        assert same_answer(whole, answer)  # a chain, to the last bit
    alone = step(engine, replace(rows[1], request_uid=30), num_steps=4, num_candidates=3)[0]
    assert same_answer(alone, grown[1])  # whatever grows beside it
    engine.release(range(40))


@pytest.mark.parametrize("sampling", KINDS)
def test_an_early_stop_gives_a_prefix(engine: ModelEngine, sampling: SamplingParams) -> None:
    row = replace(step_row(1, [5, 9, 200, 31], num_committed=3, sampling=sampling), chance=0.9)
    (full,) = step(engine, row, num_steps=6, num_candidates=1)
    lengths = []
    for least in (0.0, 0.05, 0.3, 0.8, 1.0):
        stop = GrowthStop(0.7, 1.5, least)
        (short,) = step(engine, replace(row, request_uid=2), num_steps=6, stop=stop)
        chance, expected = row.chance, 2
        for prob in full.candidate_probs[1:-1, 0].tolist():
            chance *= stop.chance(prob)
            if chance < least:
                break
            expected += 1
        assert len(short.sampled) == expected
        assert short.sampled.tolist() == full.sampled[:expected].tolist()
        np.testing.assert_allclose(short.logprobs, full.logprobs[:expected], atol=1e-4)
        lengths.append(expected)
    assert (lengths[0], lengths[-1]) == (7, 2)
    engine.release(range(3))


def test_a_chance_is_the_calibrations() -> None:
    stop = GrowthStop(0.5, -1.0, 0.1)
    assert stop.chance(0.8) == pytest.approx(1 / (1 + np.exp(1.0 - 0.5 * np.log(4.0))))
    assert stop.chance(1.0) == pytest.approx(1 / (1 + np.exp(1.0 - 0.5 * np.log(9999.0))))
    assert GrowthStop(1e9, 0.0, 0.1).chance(0.0) == pytest.approx(0.0)


def test_the_scripted_drafter_grows_as_engines_do() -> None:
    """The fake that fusion is tested with, against the engine over the fake network."""
    fake, _ = fake_engine()
    confidence = float(1 / (1 + 49 * np.exp(-9.0)))
    drafter = ScriptedDrafter("fake", lambda context: [(predicted(list(context)), confidence)], slots=4, max_step_tokens=8)
    rows = [
        replace(step_row(1, [10, 20, 21], num_committed=1), chance=0.3),
        step_row(2, [7, 8, 9], num_committed=1, sampling=SamplingParams(end_ids=(predicted([7, 8, 9, predicted([7, 8, 9])]),))),
        step_row(3, [4, 5, 6], num_committed=1),
    ]
    for options in ({"num_steps": 2}, {"num_steps": 2, "stop": GrowthStop(1.0, -4.0, 0.25)}, {"num_steps": 1}, {"num_steps": 0}):
        for row in rows:
            expected = step(fake, row, **options)[0]
            found = asyncio.run(drafter.step(StepCall([row], **options))).rows[0]  # type: ignore[arg-type]
            assert found.sampled.tolist() == expected.sampled.tolist()
