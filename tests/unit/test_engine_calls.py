"""Which network calls a step call makes, seen from outside: rows that share one, gaps that are bridged, cache rows that are given."""

from __future__ import annotations

import pytest

from drafthouse.engine.contract import RowStatus
from drafthouse.engine.costs import CallCosts
from drafthouse.engine.engine import ModelEngine
from drafthouse.engine.options import EngineOptions
from fakes.engine_driver import fill, step, step_row
from fakes.engine_session import FakeSession, call_times, fake_engine, fake_manifest, predicted

USABLE = 24  # context 32, steps of up to 8 tokens
DECODING = {2: 10.0, 8: 11.0, 16: 13.0}


@pytest.mark.parametrize(
    ("costs", "calls"),
    [
        (CallCosts(2, 32), [(0, 1, 3, 3), (2, 2, 20, 21)]),
        (CallCosts(2, 32, call_times(DECODING, place_ms=0.1, row_ms=0.2)), [(0, 4, 20, 24)]),
        # Between the short rows slot 2 runs along, behind everything that its own prefill writes.
        (CallCosts(2, 32, call_times(DECODING, place_ms=0.5, row_ms=0.2)), [(0, 4, 3, 4), (2, 1, 20, 20)]),
    ],
    ids=["unknown", "cheap places", "dear places"],
)
def test_rows_of_all_lengths_share_a_call_unless_two_are_known_to_be_cheaper(costs: CallCosts, calls: list[tuple[int, ...]]) -> None:
    session = FakeSession(fake_manifest(context_len=64, max_step_tokens=32), 4)
    engine = ModelEngine(session, session.manifest, EngineOptions(slots=4, calibration_ms=0))
    engine.costs = costs
    step(engine, *(step_row(uid, [uid]) for uid in range(4)))
    engine.release([1])
    session.calls.clear()
    tokens = {3: [7], 2: [5] * 20, 0: [6, 7, 8]}
    answers = step(engine, *(step_row(uid, own, prefix_len=1) for uid, own in tokens.items()), num_steps=2)
    assert [call for call in session.calls if call[2] > 2] == calls
    for (uid, own), answer in zip(tokens.items(), answers, strict=True):
        first = predicted([uid, *own])
        assert answer.sampled.tolist() == [first, predicted([uid, *own, first])]


def test_a_gap_is_bridged_when_that_is_cheaper_and_its_request_keeps_everything() -> None:
    session = FakeSession(fake_manifest(), 5)
    engine = ModelEngine(session, session.manifest, EngineOptions(slots=5, calibration_ms=0))
    engine.costs = CallCosts(2, 8, call_times({2: 9.0, 8: 10.0}, place_ms=0.1, row_ms=2.0))
    step(engine, *(step_row(uid, [uid, 9], num_committed=1) for uid in range(5)))
    engine.release([3])
    session.calls.clear()
    answers = step(engine, *(step_row(uid, [5], prefix_len=1) for uid in (0, 2, 4)), num_steps=2)
    assert session.calls == [(0, 5, 2, 3), (0, 5, 2, 3)]
    for uid, answer in zip((0, 2, 4), answers, strict=True):
        assert answer.sampled.tolist() == [predicted([uid, 5]), predicted([uid, 5, predicted([uid, 5])])]
    assert step(engine, step_row(1, [9, 7], prefix_len=1))[0].sampled.tolist() == [predicted([1, 9, 7])]
    assert session.calls[-1] == (1, 1, 2, 2)  # its draft was still there
    # An idle slot that is too full to take the call's places is not bridged.
    tokens = [1, *fill(engine, 9, USABLE)]
    assert step(engine, step_row(9, [8, *tokens[:7]], prefix_len=USABLE - 1, num_committed=1))[0].status is RowStatus.OK
    session.calls.clear()
    step(engine, step_row(2, [5, 6], prefix_len=1), step_row(4, [5], prefix_len=1))
    assert session.calls == [(2, 1, 2, 2), (4, 1, 2, 2)]


def test_what_is_wrong_with_one_row_stays_out_of_the_slots_that_run_along() -> None:
    engine, session = fake_engine(slots=3)
    engine.costs = CallCosts(2, 8, call_times({2: 9.0, 8: 10.0}, place_ms=0.1, row_ms=1.0))
    step(engine, *(step_row(uid, [4, 5], num_committed=1) for uid in range(3)))
    session.nan_at = {0}
    broken, fine = step(engine, step_row(0, [5], prefix_len=1), step_row(2, [6], prefix_len=1))
    assert (broken.status, fine.status) == (RowStatus.ERROR, RowStatus.OK)
    assert session.cleared == [(0, 0), (1, 2)]
    assert step(engine, step_row(1, [5, 7], prefix_len=1))[0].sampled.tolist() == [predicted([4, 5, 7])]
    assert session.calls[-1] == (1, 1, 2, 2)


def test_the_network_sees_as_many_cache_rows_as_the_fullest_slot_needs() -> None:
    engine, session = fake_engine()
    step(engine, step_row(1, [3]))
    assert session.num_rows == 4  # an eighth of the cache: one token and the place that pads it
    tokens = fill(engine, 2, 14)
    assert session.num_rows == 20
    assert step(engine, step_row(1, [4], prefix_len=1))[0].sampled.tolist() == [predicted([3, 4])]
    assert session.num_rows == 20
    engine.release([2])
    assert step(engine, step_row(1, [5], prefix_len=2))[0].sampled.tolist() == [predicted([3, 4, 5])]
    assert session.num_rows == 8
    step(engine, step_row(1, [6, 7], prefix_len=3, num_committed=1), num_steps=3)
    assert session.num_rows == 12  # up to five tokens, two drafts of its own
    assert len(tokens) == 14
