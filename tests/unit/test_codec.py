"""What one process packs, the other unpacks: every field survives, at the extremes of its type."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from drafthouse.core.errors import ClientError
from drafthouse.core.sampling_params import SamplingParams
from drafthouse.core.tree import DraftTree
from drafthouse.engine.contract import GrowthStop, RowResult, RowStatus, StepCall, StepResult, StepRow
from drafthouse.fusion.contract import DraftCall, DraftPlan, DraftResult, DraftRow, DraftRowResult
from drafthouse.routing.contract import NUM_STATE, RouteResult, RouteRow
from drafthouse.triton.codec.engine import pack_step, pack_step_result, unpack_step, unpack_step_result
from drafthouse.triton.codec.envelope import Envelope, Tensors
from drafthouse.triton.codec.fusion import pack_draft, pack_draft_result, unpack_draft, unpack_draft_result
from drafthouse.triton.codec.routing import pack_route, pack_route_result, unpack_route, unpack_route_result
from drafthouse.triton.codec.rows import unpack_release
from drafthouse.triton.schema import ENGINE, FUSION, LEASE_SECRET, ROUTER, TensorSpec

PICKY = SamplingParams(
    temperature=0.5, top_k=40, top_p=0.75, seed=2**64 - 1, end_ids=(0, 7, 2**31 - 1), min_end_position=17, bad_words=(b"x", "é✓".encode())
)


SECRET = np.arange(32, dtype=np.uint8)


def assert_same(left: object, right: object) -> None:
    """Deep equality for dataclasses, sequences and arrays (NaN equals NaN)."""
    if is_dataclass(left) and not isinstance(left, type):
        assert type(left) is type(right)
        for f in fields(left):
            assert_same(getattr(left, f.name), getattr(right, f.name))
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, list | tuple):
        assert isinstance(right, list | tuple)
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def through_the_wire(specs: Sequence[TensorSpec], sections: Tensors) -> Tensors:
    """As another process would see these sections."""
    back = Envelope(specs).unseal(Envelope(specs).seal(sections))
    assert_same([back[name] for name in sections], list(sections.values()))
    assert {name: array.dtype for name, array in back.items()} == {name: array.dtype for name, array in sections.items()}
    return back


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_step_call_survives() -> None:
    call = StepCall(
        rows=[
            StepRow(2**64 - 1, 3, ids(5, 6, 7, 8), 2, ids(-1, 0, 1, 1), PICKY, 0.25),
            StepRow(1, 0, ids(9), 1, ids(-1), chance=0.75),
            StepRow(2, 0, ids(9), 1, ids(-1)),
        ],
        num_steps=4,
        num_candidates=2,
        return_logprobs=False,
        return_prompt_logprob=True,
        stop=GrowthStop(0.5, -1.25, 0.125),
    )
    tensors = pack_step(call, [7, 2**64 - 1])
    assert set(tensors) | {LEASE_SECRET.name} == {spec.name for spec in ENGINE.call}
    tensors = through_the_wire(ENGINE.call, tensors | {LEASE_SECRET.name: SECRET})
    assert_same(unpack_step(tensors), call)
    assert unpack_release(tensors) == [7, 2**64 - 1]


def test_end_tokens_survive_and_a_second_one_costs_a_section_only_where_there_is_one() -> None:
    ends: list[tuple[int, ...]] = [(), (0,), (3, 2, 9), (5,), (8, 1)]
    rows = [StepRow(uid, 0, ids(1), 1, ids(-1), SamplingParams(end_ids=end_ids)) for uid, end_ids in enumerate(ends)]
    tensors = pack_step(StepCall(rows))
    assert tensors["more_end_ids"].tolist() == [[2, 2], [2, 9], [4, 1]]
    assert_same(unpack_step(through_the_wire(ENGINE.call, tensors | {LEASE_SECRET.name: SECRET})), StepCall(rows))
    tensors = pack_step(StepCall(rows[:2]))
    assert "more_end_ids" not in tensors
    assert_same(unpack_step(tensors), StepCall(rows[:2]))


def test_chances_travel_only_where_rows_may_stop_growing() -> None:
    rows = [StepRow(1, 0, ids(9), 1, ids(-1), chance=0.5), StepRow(2, 0, ids(9), 1, ids(-1))]
    assert not {"row_chances", "growth_stop"} & set(pack_step(StepCall(rows, 4)))
    assert pack_step(StepCall(rows, 4, stop=GrowthStop(1.0, 0.0, 0.1)))["row_chances"].tolist() == [0.5, 1.0]


def test_a_chain_needs_no_parents() -> None:
    row = unpack_step(pack_step(StepCall([StepRow(1, 0, ids(4, 5, 6), 3)]))).rows[0]
    assert row.parents is not None
    assert row.parents.tolist() == [-1, 0, 1]


def test_a_call_that_only_releases() -> None:
    tensors = pack_step(StepCall(()), [3])
    assert list(tensors) == ["release_uids"]
    assert_same(unpack_step(tensors), StepCall(()))


def row_result(status: RowStatus, num_outputs: int, num_candidates: int, error: str = "") -> RowResult:
    rng = np.random.default_rng(num_outputs)
    return RowResult(
        status=status,
        cached_len=11,
        sampled=rng.integers(0, 99, num_outputs).astype(np.int32),
        logprobs=rng.random(num_outputs, np.float32),
        candidate_ids=rng.integers(0, 99, (num_outputs, num_candidates)).astype(np.int32),
        candidate_probs=rng.random((num_outputs, num_candidates), np.float32),
        prompt_logprob=-2.5,
        num_scored=4,
        error=error,
    )


def test_step_result_survives_with_rows_of_every_status() -> None:
    rows = [
        row_result(RowStatus.OK, 3, 2),
        row_result(RowStatus.NEEDS_PREFILL, 0, 2),
        row_result(RowStatus.ERROR, 0, 2, "INVALID_ARG field=tokens value=“é”"),
        row_result(RowStatus.OK, 1, 2),
    ]
    result = StepResult(rows, engine_epoch=2**62, session_ns=123, slots_free=1, slots_total=8)
    tensors = pack_step_result(result)
    assert list(tensors) == [spec.name for spec in ENGINE.answer]
    assert_same(unpack_step_result(through_the_wire(ENGINE.answer, tensors)), result)


def test_rows_that_failed_may_come_without_candidates() -> None:
    rows = [row_result(RowStatus.OK, 2, 3), row_result(RowStatus.NO_SLOT, 0, 0)]
    back = unpack_step_result(pack_step_result(StepResult(rows, 1, 2, 3, 4)))
    assert_same(back.rows[0], rows[0])
    assert back.rows[1].status is RowStatus.NO_SLOT


def test_status_result_without_rows_survives() -> None:
    result = StepResult([], 5, 0, 8, 8)
    assert_same(unpack_step_result(pack_step_result(result)), result)


def test_draft_call_survives() -> None:
    base = DraftTree(ids(7, 8), ids(-1, 0), floats(0.5, 0.25), ids(1, 0), floats(0.75, 0.125), ids(0, 1))
    call = DraftCall(
        rows=[
            DraftRow(4, 2, ids(1, 2, 3), 5, floats(1.0, 0.0), PICKY, scores=floats(0.5, 0.25)),
            DraftRow(5, 0, ids(1), 0, floats(0.0, 0.5), scores=floats(0.5, 0.75), base=base, leaf=1),
        ],
        release_uids=[9],
        plan=DraftPlan(3, 2, True, 24, 0.125, np.arange(12, dtype=np.float32).reshape(2, 2, 3)),
    )
    tensors = pack_draft(call)
    assert set(tensors) | {LEASE_SECRET.name} == {spec.name for spec in FUSION.call}
    assert_same(unpack_draft(through_the_wire(FUSION.call, tensors | {LEASE_SECRET.name: SECRET})), call)
    assert_same(unpack_draft(pack_draft(DraftCall((), [9]))), DraftCall((), [9]))
    plain = DraftCall([DraftRow(4, 2, ids(1), 5, floats(1.0))])
    assert_same(unpack_draft(pack_draft(plain)), plain)


def draft_result(trunk_len: int) -> DraftRowResult:
    return DraftRowResult(
        tree=DraftTree(
            ids(*range(trunk_len)),
            ids(*range(-1, trunk_len - 1)),
            floats(*[0.5] * trunk_len),
            ids(*[1] * trunk_len),
            floats(*[0.25] * trunk_len),
            ids(*[2] * trunk_len),
        ),
        trunk=ids(*range(trunk_len)),
        drafter_status=ids(RowStatus.OK, RowStatus.ABSENT),
        cached_len=ids(7, 0),
        proposals=np.full((2, trunk_len), 3, np.int32),
        proposal_probs=np.full((2, trunk_len), 0.25, np.float32),
        prompt_logprob=floats(-1.5, 0.0),
        num_scored=ids(6, 0),
    )


def test_draft_result_survives_and_short_rows_are_padded() -> None:
    tensors = pack_draft_result(DraftResult([draft_result(3), draft_result(0)], 77), num_drafters=2)
    assert list(tensors) == [spec.name for spec in FUSION.answer]
    back = unpack_draft_result(through_the_wire(FUSION.answer, tensors))
    assert back.draft_session_ns == 77
    assert_same(back.rows[0], draft_result(3))
    assert len(back.rows[1].tree) == 0
    assert back.rows[1].proposals.tolist() == [[-1, -1, -1], [-1, -1, -1]]


def test_routes_survive() -> None:
    rows = [
        RouteRow(
            request_uid=2**63,
            prompt_logprob=floats(-1.0, np.nan),
            state=np.arange(2 * NUM_STATE, dtype=np.float32).reshape(2, NUM_STATE),
            proposals=ids(1, 2, 3, 4).reshape(2, 2),
            proposal_probs=np.full((2, 2), 0.5, np.float32),
            target_tokens=ids(1, -1),
            allowed=np.array([True, False]),
            num_rounds=4,
            accepted_len=1.25,
            drafted_len=4.75,
            max_drafters=3,
        )
    ]
    tensors = pack_route(rows)
    assert set(tensors) | {LEASE_SECRET.name} == {spec.name for spec in ROUTER.call}
    assert_same(unpack_route(through_the_wire(ROUTER.call, tensors | {LEASE_SECRET.name: SECRET})), rows)
    results = [RouteResult(rows[0].state, floats(0.0, 1.0), floats(0.25, 0.5))]
    assert_same(unpack_route_result(pack_route_result(results)), results)


def test_sections_keep_their_bits_and_absent_ones_stay_away() -> None:
    specs = (
        TensorSpec("a", "FP32", (-1, 2)),
        TensorSpec("b", "UINT64", (-1,), optional=True),
        TensorSpec("c", "UINT8", (3,), optional=True),
        TensorSpec("d", "INT64", (-1, -1, 1)),
    )
    values = np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32)
    back = Envelope(specs).unseal(
        Envelope(specs).seal({"a": values, "b": np.array([2**64 - 1], np.uint64), "d": np.zeros((0, 4, 1), np.int64)})
    )
    assert back["a"].tobytes() == values.tobytes()
    assert back["b"].tolist() == [2**64 - 1]
    assert back["d"].shape == (0, 4, 1)
    assert "c" not in back


def test_a_section_that_is_needed_must_be_given() -> None:
    with pytest.raises(KeyError, match="engine_info"):
        Envelope(ENGINE.answer).seal({})


@pytest.mark.parametrize(
    "message",
    [[], [1], [2**62, 0], [-1, -2], [1, 1, 5, 6, 7], [0, 3], [-5, 0]],
    ids=["empty", "cut off", "huge", "negative", "too long", "too short", "below absent"],
)
def test_what_is_no_message_is_refused(message: list[int]) -> None:
    specs = (TensorSpec("a", "INT32", (-1,)), TensorSpec("b", "INT32", (-1,), optional=True))
    with pytest.raises(ClientError, match="field=message"):
        Envelope(specs).unseal(np.array(message, np.int64))
