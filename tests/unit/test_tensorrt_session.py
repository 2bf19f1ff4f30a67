"""The TensorRT session against a TensorRT whose networks run on ONNX Runtime: addresses, profiles, padding, graphs, refusals."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import EngineError, RowStatus, StepCall
from drafthouse.engine.engine import ModelEngine, load_engine
from drafthouse.engine.manifest import read_manifest
from drafthouse.engine.options import EngineOptions
from drafthouse.engine.session import Session
from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.engine import EngineOptions as BuildOptions
from drafthouse_build.engine import build_engine
from fakes.engine_driver import CONTEXT_LEN, MAX_STEP_TOKENS, VOCAB_SIZE, Draft, Drafter, Stream, fill, generate, step, step_row

torch = pytest.importorskip("torch")
from fakes import fake_tensorrt, tensorrt_builds  # noqa: E402

pytestmark = pytest.mark.torch
SLOTS = tensorrt_builds.SLOTS
NUM_TOKENS = 30
PROMPTS = [[5, 9, 200, 31], list(range(40, 63)), [299], [7, 7, 7, 8, 9, 10, 11]]
KINDS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=11),
    SamplingParams(temperature=0.8, top_p=0.95, seed=2**63),
    SamplingParams(temperature=1.2, top_k=20, seed=4),
]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    with tensorrt_builds.pretended_gpu():
        yield


@pytest.fixture(scope="module")
def onnx_dir(tiny_engine_dir: Callable[..., Path]) -> Path:
    return tiny_engine_dir()


@pytest.fixture(scope="module")
def plan_dir(onnx_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensorrt_builds.build_plan(onnx_dir.parent / "checkpoint", tmp_path_factory.mktemp("plan"))


def engine_over(session: Session, folder: Path, slots: int = SLOTS) -> ModelEngine:
    engine = ModelEngine(session, read_manifest(folder), EngineOptions(slots=slots, calibration_ms=0))
    engine.reserve()
    return engine


def plain_texts(onnx_dir: Path) -> list[list[int]]:
    engine = load_engine(onnx_dir, EngineOptions(slots=SLOTS, calibration_ms=0))
    streams = [Stream(uid, prompt, kind) for uid, (prompt, kind) in enumerate(zip(PROMPTS, KINDS, strict=True), 1)]
    return generate(engine, streams, NUM_TOKENS)


def drafter(truth: Sequence[int], prompt_len: int, seed: int) -> Drafter:
    """Trees over the true next tokens, with wrong siblings before them."""
    random = np.random.default_rng(seed)

    def draft(known: Sequence[int]) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        tip = -1
        for true in truth[len(known) - prompt_len :][: int(random.integers(5))]:
            wrong = (true + 1 + int(random.integers(VOCAB_SIZE - 1))) % VOCAB_SIZE
            if random.random() < 0.5 and len(tokens) < 4:
                tokens += [wrong, true]
                parents += [tip, tip]
            else:
                tokens.append(wrong if random.random() < 0.15 else true)
                parents.append(tip)
            tip = len(tokens) - 1
        return tokens, parents

    return draft


def test_the_same_texts_as_on_the_cpu_with_trees_padding_and_graphs(onnx_dir: Path, plan_dir: Path) -> None:
    """Greedy and sampled requests of different lengths, drafted in trees, in company: token for token what ONNX Runtime gives."""
    truth = plain_texts(onnx_dir)
    session = tensorrt_builds.open_session(plan_dir)
    engine = engine_over(session, plan_dir)
    for attempt in range(2):  # the second time on captured graphs
        streams = [
            Stream(10 * attempt + uid, prompt, kind, drafter(truth[uid], len(prompt), seed=uid + attempt))
            for uid, (prompt, kind) in enumerate(zip(PROMPTS, KINDS, strict=True))
        ]
        assert generate(engine, streams, NUM_TOKENS) == truth
        engine.release([stream.uid for stream in streams])
    figures = session.graph_figures
    assert figures.captured > 3
    assert figures.replayed > figures.captured


def test_scores_and_candidates_are_the_cpus(onnx_dir: Path, plan_dir: Path) -> None:
    call = {"num_candidates": 4, "return_prompt_logprob": True}
    rows = [
        step_row(uid, prompt, num_committed=len(prompt), sampling=kind)
        for uid, (prompt, kind) in enumerate(zip(PROMPTS, KINDS, strict=True))
    ]
    rows[1] = step_row(1, PROMPTS[1][:MAX_STEP_TOKENS], sampling=KINDS[1])
    left = step(load_engine(onnx_dir, EngineOptions(slots=SLOTS, calibration_ms=0)), *rows, **call)
    right = step(engine_over(tensorrt_builds.open_session(plan_dir), plan_dir), *rows, **call)
    for cpu, device in zip(left, right, strict=True):
        assert np.array_equal(cpu.sampled, device.sampled)
        assert np.array_equal(cpu.candidate_ids, device.candidate_ids)
        np.testing.assert_allclose(device.candidate_probs, cpu.candidate_probs, atol=1e-5)
        np.testing.assert_allclose(device.logprobs, cpu.logprobs, atol=1e-4)
        assert device.prompt_logprob == pytest.approx(cpu.prompt_logprob, abs=1e-3)


def test_self_extension_on_graphs(onnx_dir: Path, plan_dir: Path) -> None:
    def drafted(engine: ModelEngine) -> list[list[int]]:
        rows = [step_row(uid, PROMPTS[0], sampling=kind) for uid, kind in enumerate(KINDS)]
        return [step(engine, *rows, num_steps=8)[place].sampled.tolist() for place in (0, 1, 2, 3)]

    session = tensorrt_builds.open_session(plan_dir)
    assert drafted(engine_over(session, plan_dir)) == drafted(load_engine(onnx_dir, EngineOptions(slots=SLOTS, calibration_ms=0)))
    assert session.graph_figures.replayed > 10


def test_the_last_usable_position_beside_others(onnx_dir: Path, plan_dir: Path) -> None:
    """A row at the very end of its slot, padded to a graph's shape: what lies behind the context is scratch."""
    session = tensorrt_builds.open_session(plan_dir)
    engine, plain = engine_over(session, plan_dir), load_engine(onnx_dir, EngineOptions(slots=SLOTS, calibration_ms=0))
    last = CONTEXT_LEN - MAX_STEP_TOKENS - 1
    for uid in (1, 2, 3):
        for one in (engine, plain):
            tokens = fill(one, uid, last)
    for _ in range(3):
        rows = [
            step_row(1, [*tokens[-1:], 8], prefix_len=last - 1),
            step_row(3, [5, 6, 7], prefix_len=last, num_committed=1, parents=[-1, 0, 0]),
        ]
        answers = [[answer.sampled.tolist() for answer in step(one, *rows)] for one in (engine, plain)]
        assert answers[0] == answers[1]
    assert session.graph_figures.replayed > 0


def test_long_prompts_take_the_prefill_profile(onnx_dir: Path, tmp_path: Path) -> None:
    """Chunks longer than a decoding round, beside short ones, and decoding afterwards."""
    checkpoint, options = onnx_dir.parent / "checkpoint", {"context_len": 90, "max_step_tokens": 40}
    plan = tensorrt_builds.build_plan(checkpoint, tmp_path / "plan", engine=options)
    build_engine(load_checkpoint(checkpoint), tmp_path / "onnx", BuildOptions(**options), "tiny")
    session = tensorrt_builds.open_session(plan)
    engines = [engine_over(session, plan), load_engine(tmp_path / "onnx", EngineOptions(slots=SLOTS, calibration_ms=0))]
    prompts = [[(7 * place + uid) % VOCAB_SIZE for place in range(length)] for uid, length in enumerate((40, 3, 23, 17))]
    answers = [[answer.sampled.tolist() for answer in step(engine, *map(step_row, range(4), prompts), num_steps=6)] for engine in engines]
    assert answers[0] == answers[1]
    answers = [
        [answer.sampled.tolist() for answer in step(engine, step_row(2, [9] * 37, prefix_len=23), step_row(1, [5], prefix_len=3))]
        for engine in engines
    ]
    assert answers[0] == answers[1]


def test_padding_leaves_a_waiting_request_alone(onnx_dir: Path, plan_dir: Path) -> None:
    """Three rows are padded to four: the fourth slot's request, which does not take part, goes on as if nothing had happened."""
    session = tensorrt_builds.open_session(plan_dir)
    engines = engine_over(session, plan_dir), load_engine(onnx_dir, EngineOptions(slots=SLOTS, calibration_ms=0))
    for engine in engines:
        for uid in range(4):
            tokens = fill(engine, uid, 24)
    for length in range(24, 30):
        rows = [step_row(uid, [*tokens[23:], *[7] * (length - 23)][-1:], prefix_len=length) for uid in range(3)]
        assert len({tuple(int(answer.sampled[0]) for answer in step(engine, *rows)) for engine in engines}) == 1
    assert session.graph_figures.replayed > 2
    answers = [step(engine, step_row(3, [11, 12], prefix_len=24))[0] for engine in engines]
    assert answers[0].sampled.tolist() == answers[1].sampled.tolist()
    np.testing.assert_allclose(answers[0].logprobs, answers[1].logprobs, atol=1e-4)


def test_what_pads_a_call_writes_to_scratch_and_sees_something(plan_dir: Path) -> None:
    from drafthouse.engine.tensorrt.profiles import CallShape, EngineShape
    from drafthouse.engine.tensorrt.staging import CallLayout, HostInputs
    from fakes.host_device import HostDevice

    shape = EngineShape.of(read_manifest(plan_dir), SLOTS)
    inputs = HostInputs(shape, HostDevice())
    layout = CallLayout(asked=CallShape(2, 3, 5), runs=CallShape(4, 4, 8), offset=1, window=48)
    arrays = inputs.arrays(layout)
    for name, value in (("input_ids", 9), ("position_ids", 5), ("write_indices", 20), ("unpack_indices", 1)):
        arrays[name][...] = value
    arrays["pack_indices"][:] = [0, 1, 2, 3, 5]
    inputs.mask(layout)[...] = np.arange(48) <= 20
    inputs.send(layout)

    def sent(name: str, count: int) -> list[int]:
        values = (ctypes.c_int64 * count).from_address(inputs.addresses(layout)[name])
        return list(values)

    assert sent("write_indices", 4) == [shape.rows - 4, 20, 20, shape.rows - 4]
    assert shape.rows - 4 >= CONTEXT_LEN
    assert sent("pack_indices", 8) == [4, 5, 6, 8, 10, 0, 0, 0]  # row * 4 + place, one row further down
    assert sent("input_ids", 8) == [9] * 5 + [0] * 3
    assert sent("position_ids", 16) == [0] * 4 + [5, 5, 5, 0] * 2 + [0] * 4
    address = inputs.addresses(layout)["attn_mask"]
    mask = np.ctypeslib.as_array((ctypes.c_bool * (16 * shape.rows)).from_address(address)).reshape(4, 4, shape.rows)
    assert mask.any(axis=2).all()
    assert np.array_equal(mask[1:3, :3, :48], np.broadcast_to(np.arange(48) <= 20, (2, 3, 48)))
    assert not mask[:, :, 48:].any()


def test_graphs_are_capped_and_misses_counted(onnx_dir: Path, plan_dir: Path) -> None:
    truth = plain_texts(onnx_dir)
    session = tensorrt_builds.open_session(plan_dir, max_graphs=2)
    streams = [
        Stream(uid, prompt, kind, drafter(truth[uid], len(prompt), uid))
        for uid, (prompt, kind) in enumerate(zip(PROMPTS, KINDS, strict=True))
    ]
    assert generate(engine_over(session, plan_dir), streams, NUM_TOKENS) == truth
    assert session.graph_figures.captured == 2
    assert session.graph_figures.eager > session.graph_figures.captured


def test_a_capture_that_fails_costs_speed_only(onnx_dir: Path, plan_dir: Path) -> None:
    from fakes.host_device import HostDevice

    session = tensorrt_builds.open_session(plan_dir, device=HostDevice(refuses_capture=True))
    streams = [Stream(uid, prompt, kind) for uid, (prompt, kind) in enumerate(zip(PROMPTS, KINDS, strict=True))]
    assert generate(engine_over(session, plan_dir), streams, NUM_TOKENS) == plain_texts(onnx_dir)
    assert (session.graph_figures.captured, session.graph_figures.replayed) == (0, 0)


def test_a_row_that_the_library_refuses_is_an_error_of_its_call(plan_dir: Path) -> None:
    session = tensorrt_builds.open_session(plan_dir)
    engine = engine_over(session, plan_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tensorrt.IExecutionContext, "execute_async_v3", lambda self, stream_handle: self._refuse("illegal access"))
        answer = engine.step(StepCall([step_row(1, [1, 2, 3])])).rows[0]
    assert answer.status is RowStatus.ERROR
    assert "TensorRT failed: illegal access" in answer.error
    assert step(engine, step_row(1, [1, 2, 3]))[0].status is RowStatus.OK


def test_no_call_is_outside_the_profiles(plan_dir: Path) -> None:
    """Every shape that the engine may ask for is legal as it is, and padded for a graph."""
    from drafthouse.engine.tensorrt.graphs import graph_key
    from drafthouse.engine.tensorrt.profiles import CallShape, EngineShape
    from drafthouse.engine.tensorrt.runtime import profile_of

    shape = replace(EngineShape.of(read_manifest(plan_dir), SLOTS), max_step_tokens=40)
    profiles = shape.profiles()
    assert [profile.name for profile in profiles] == ["decode", "prefill"]
    for rows in range(1, SLOTS + 1):
        for places in range(1, shape.max_step_tokens + 1):
            for packed in {1, 2, rows, places, rows * places}:
                call = CallShape(rows, places, packed)
                assert profiles[profile_of(profiles, call)].holds(call)
                for first_slot in range(SLOTS - rows + 1) if profiles[0].holds(call) else ():
                    key = graph_key(call, first_slot, profiles[0])
                    assert profiles[0].holds(key.shape)
                    assert key.first_slot <= first_slot
                    assert first_slot + rows <= key.first_slot + key.shape.rows <= SLOTS
                    assert key.shape.packed >= packed
                    assert places <= key.shape.places
    with pytest.raises(EngineError, match="no optimisation profile"):
        profile_of(profiles, CallShape(SLOTS + 1, 1, 1))


def test_graphs_begin_at_slot_zero_unless_that_doubles_the_rows_twice() -> None:
    from drafthouse.engine.tensorrt.graphs import graph_key
    from drafthouse.engine.tensorrt.profiles import CallShape, Profile

    decode = Profile("decode", CallShape(1, 1, 1), CallShape(4, 8, 32), CallShape(8, 16, 128))
    assert graph_key(CallShape(3, 5, 9), 1, decode).first_slot == 0
    assert graph_key(CallShape(3, 5, 9), 1, decode).shape == CallShape(4, 8, 16)
    assert graph_key(CallShape(1, 1, 1), 6, decode).first_slot == 6
    assert graph_key(CallShape(2, 16, 32), 6, decode).shape == CallShape(2, 16, 32)
