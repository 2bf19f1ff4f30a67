"""Loading an engine: what is refused, what is measured, what is kept."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from drafthouse.core.errors import ClientError
from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import EngineError, RowStatus, StepCall
from drafthouse.engine.costs import CallCosts, measure_calls, shapes_to_measure
from drafthouse.engine.engine import load_engine
from drafthouse.engine.manifest import read_manifest
from drafthouse.engine.onnx_session import OnnxSession
from drafthouse.engine.options import EngineOptions
from fakes.engine_driver import CONTEXT_LEN, MAX_STEP_TOKENS, VOCAB_SIZE, step_row
from fakes.engine_session import call_times

EngineDir = Callable[..., Path]
FAST = EngineOptions(calibration_ms=0)


@pytest.fixture
def engine_copy(tiny_engine_dir: EngineDir, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine_dir(), tmp_path / "engine"))


def edit(folder: Path, **changes: object) -> None:
    """Changes entries of engine.json; None removes one."""
    file = folder / "engine.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_limits_come_from_the_manifest(tiny_engine_dir: EngineDir) -> None:
    engine = load_engine(tiny_engine_dir(), FAST)
    limits = engine.limits
    assert (limits.max_step_tokens, limits.usable_context) == (MAX_STEP_TOKENS, CONTEXT_LEN - MAX_STEP_TOKENS)
    assert (limits.vocab_size, limits.slots) == (VOCAB_SIZE, 8)
    assert engine.pool_bytes == 2 * 2 * 8 * 2 * CONTEXT_LEN * 16 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": None}, "INVALID_ARG field=num_layers value='missing'"),
        ({"colour": "red"}, "INVALID_ARG field=colour value='unknown'"),
        ({"num_layers": "2"}, "INVALID_ARG field=num_layers value='2' allowed=a positive integer"),
        ({"num_layers": True}, "INVALID_ARG field=num_layers value=True"),
        ({"num_layers": 0}, "INVALID_ARG field=num_layers value=0"),
        ({"domain": 3}, "INVALID_ARG field=domain value=3 allowed=text"),
        ({"eos_token_ids": [0, -1]}, "INVALID_ARG field=eos_token_ids"),
        ({"max_step_tokens": CONTEXT_LEN}, "INVALID_ARG field=max_step_tokens"),
        ({"num_layers": 3}, "INVALID_ARG field=model.onnx value='past_k_2: None for [2, 96, 16]'"),
        ({"head_dim": 32}, "INVALID_ARG field=model.onnx value='past_k_0: [2, 96, 16] for [2, 96, 32]'"),
        ({"vocab_size": 301}, "INVALID_ARG field=model.onnx value='logits of width 300'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(engine_copy: Path, changes: dict[str, object], message: str) -> None:
    edit(engine_copy, **changes)
    with pytest.raises(ClientError) as raised:
        load_engine(engine_copy, FAST)
    assert str(raised.value).startswith(message), raised.value


def test_a_graph_of_an_older_version_is_refused(engine_copy: Path) -> None:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "T"])
    graph = helper.make_graph([helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)], "old", [ids], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (engine_copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ClientError, match=r"a graph without the input position_ids. allowed=a graph of this version: rebuild"):
        load_engine(engine_copy, FAST)


@pytest.mark.parametrize(("name", "content"), [("engine.json", None), ("engine.json", "{"), ("engine.json", "[]"), ("model.onnx", "no")])
def test_an_unreadable_file_is_named(engine_copy: Path, name: str, content: str | None) -> None:
    (engine_copy / name).unlink()
    if content is not None:
        (engine_copy / name).write_text(content)
    with pytest.raises(ClientError, match=f"INVALID_ARG field={name}"):
        load_engine(engine_copy, FAST)


def test_without_a_tokenizer_only_bad_words_are_refused(engine_copy: Path) -> None:
    (engine_copy / "tokenizer.json").unlink()
    engine = load_engine(engine_copy, FAST)
    fine, refused = engine.step(StepCall([step_row(1, [4]), step_row(2, [4], sampling=SamplingParams(bad_words=(b"a",)))])).rows
    assert (fine.status, refused.status) == (RowStatus.OK, RowStatus.ERROR)
    assert refused.error.startswith("UNSUPPORTED field=bad_words")


@pytest.mark.parametrize(
    "values", [{"slots": 0}, {"num_threads": 0}, {"min_step_tokens": 3}, {"calibration_ms": -1}, {"slots": True}, {"slots": 2.0}]
)
def test_options_outside_their_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ClientError, match=f"INVALID_ARG field={next(iter(values))}"):
        EngineOptions(**values)


def test_a_failing_runtime_is_an_engine_error_and_bindings_are_kept(tiny_engine_dir: EngineDir) -> None:
    session = OnnxSession(tiny_engine_dir(), read_manifest(tiny_engine_dir()), slots=16, num_threads=1)
    step = session.bind(0, 1, 2, 2)
    assert session.bind(0, 1, 2, 2) is step
    longer = session.bind(0, 1, 5, 5)
    step.write_indices[0] = CONTEXT_LEN - 1  # the second token would lie past the cache
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        step.run()
    assert session.bind(0, 1, 2, 2) is step
    other = session.bind(0, 1, 3, 3)
    assert other.binding is longer.binding is not step.binding
    assert session.bind(0, 1, 5, 5) is not longer
    for slot in range(16):
        for num_rows in range(1, 17 - slot):
            session.bind(slot, num_rows, 2, 2)
    assert session.bind(0, 1, 2, 2).binding is not step.binding


def test_slots_are_copied_and_cleared_row_by_row(tiny_engine_dir: EngineDir) -> None:
    """Seen from outside: a cleared slot answers as if its prefix were zeros, its neighbour does not notice."""
    session = OnnxSession(tiny_engine_dir(), read_manifest(tiny_engine_dir()), slots=2, num_threads=1)
    step = session.bind(0, 2, 4, 8)
    step.pack_indices[:] = np.arange(8)
    step.unpack_indices[:] = np.arange(8).reshape(2, 4)

    def logits(tokens: list[int], start: int) -> NDArray[np.float32]:
        step.input_ids[:] = tokens * 2
        step.write_indices[:] = start
        step.position_ids[:] = start + np.arange(4)
        step.attn_mask[:] = np.arange(CONTEXT_LEN) <= step.position_ids[:, None, :, None]
        step.run()
        return step.logits.reshape(2, 4, VOCAB_SIZE).copy()

    logits([1, 2, 3, 4], 0)
    before = logits([5, 6, 7, 8], 4)
    # Keys carry their positions with them, so an exchange of rows changes no more than the order of a sum.
    session.copy_rows(1, np.array([3, 2, 1, 0]), np.array([0, 1, 2, 3]))
    exchanged = logits([5, 6, 7, 8], 4)
    assert np.array_equal(exchanged[0], before[0])
    assert np.allclose(exchanged[1], before[1], atol=1e-4)
    session.copy_rows(1, np.array([0]), np.array([3]))
    doubled = logits([5, 6, 7, 8], 4)
    session.clear_slot(1)
    cleared = logits([5, 6, 7, 8], 4)
    assert np.array_equal(doubled[0], before[0])
    assert np.array_equal(cleared[0], before[0])
    for left, right in ((doubled, before), (cleared, before), (cleared, doubled)):
        assert not np.allclose(left[1], right[1], atol=1e-2)


def test_a_resized_session_keeps_what_still_fits(tiny_engine_dir: EngineDir) -> None:
    session = OnnxSession(tiny_engine_dir(), read_manifest(tiny_engine_dir()), slots=3, num_threads=1)

    def logits(tokens: list[int], start: int) -> NDArray[np.float32]:
        step = session.bind(1, 2, 4, 8)
        step.pack_indices[:] = np.arange(8)
        step.unpack_indices[:] = np.arange(8).reshape(2, 4)
        step.input_ids[:] = tokens
        step.write_indices[:] = start
        step.position_ids[:] = start + np.arange(4)
        step.attn_mask[:] = np.arange(step.attn_mask.shape[3]) <= step.position_ids[:, None, :, None]
        step.run()
        return step.logits.copy()

    logits([1, 2, 3, 4, 4, 3, 2, 1], 0)
    expected = logits([5, 6, 7, 8, 8, 7, 6, 5], 4)
    for num_rows in (24, 8, 96, 13):
        session.resize(num_rows)
        assert session.bind(1, 2, 4, 8).attn_mask.shape == (2, 1, 4, num_rows)
        assert np.array_equal(logits([5, 6, 7, 8, 8, 7, 6, 5], 4), expected)
    session.copy_rows(1, np.array([0]), np.array([3]))
    session.clear_slot(2, first_row=3)
    changed = logits([5, 6, 7, 8, 8, 7, 6, 5], 4)
    assert not np.isclose(changed, expected).all(axis=1).any()
    assert session.pool_bytes == 2 * 2 * 3 * 2 * CONTEXT_LEN * 16 * 4


def test_one_token_is_padded_to_two_unless_it_is_to_be_measured(tiny_engine_dir: EngineDir) -> None:
    row = StepCall([step_row(1, [4])])
    padded = load_engine(tiny_engine_dir(), FAST)
    unpadded = load_engine(tiny_engine_dir(), EngineOptions(min_step_tokens=1, calibration_ms=0))
    assert (padded.costs.padded(1), unpadded.costs.padded(1)) == (2, 1)
    assert padded.step(row).rows[0].sampled.tolist() == unpadded.step(row).rows[0].sampled.tolist()


def test_calls_are_padded_to_a_clearly_cheaper_length() -> None:
    times = {2: 19.0, 3: 31.4, 4: 26.3, 5: 40.0, 6: 43.5, 7: 41.0, 8: 39.6, 12: 39.0}
    costs = CallCosts(2, 16, {(1, tokens, tokens): time_ms for tokens, time_ms in times.items()})
    padded = [2, 2, 4, 4, 5, 8, 7, 8, 9, 12, 16, 100]
    assert [costs.padded(tokens) for tokens in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 100)] == padded
    assert not costs.is_measured  # nothing is known of rows


def test_a_call_is_estimated_by_packed_tokens_rows_and_empty_places() -> None:
    costs = CallCosts(2, 64, call_times({2: 16.0, 6: 17.0, 8: 19.0, 16: 27.0}, place_ms=0.1, row_ms=1.0))
    assert costs.call_ms(1, 6, 6) == pytest.approx(17.0)
    assert costs.call_ms(1, 64, 64) == pytest.approx(27.0 + 48 * 1.0)  # the line through 8 and 16
    assert costs.call_ms(8, 2, 8) == pytest.approx(19.0 + 7 * 1.0)
    assert costs.call_ms(8, 12, 40) == pytest.approx(27.0 + 24 * 1.0 + 7 * 1.0 + (96 - 40 - 14) * 0.1)
    assert CallCosts(2, 64).call_ms(8, 12, 40) == 0


def test_measuring_stops_at_its_budget_and_needs_several_rounds() -> None:
    runs: list[tuple[int, int, int]] = []
    shapes = shapes_to_measure(2, 64, 4)
    assert shapes == [*((1, tokens, tokens) for tokens in (2, 3, 4, 5, 6, 7, 8, 16)), (1, 16, 2), (3, 2, 2)]
    assert shapes_to_measure(1, 3, 4) == [(1, 1, 1), (1, 2, 2), (1, 3, 3), (3, 1, 1)]
    assert shapes_to_measure(2, 4, 2) == [(1, 2, 2), (1, 3, 3), (1, 4, 4)]

    def run(rows: int, places: int, packed: int) -> None:
        runs.append((rows, places, packed))

    assert measure_calls(run, shapes, 0) == {}
    assert not runs
    assert sorted(measure_calls(run, shapes, 10_000)) == sorted(shapes)
    assert len(runs) == 20 * len(shapes)
    assert measure_calls(lambda rows, places, packed: time.sleep(0.01), shapes, 1) == {}


def test_measuring_leaves_no_trace_in_the_answers(tiny_engine_dir: EngineDir) -> None:
    rows = StepCall([step_row(1, [4, 8, 15]), step_row(2, [16])])
    measured = load_engine(tiny_engine_dir(), EngineOptions(calibration_ms=50))
    assert measured.costs.cost_ms
    quiet = load_engine(tiny_engine_dir(), FAST)
    for left, right in zip(measured.step(rows).rows, quiet.step(rows).rows, strict=True):
        assert left.logprobs.tolist() == right.logprobs.tolist()
