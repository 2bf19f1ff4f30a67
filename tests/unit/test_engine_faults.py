"""What a call that broke off leaves behind: nothing that a later call would take for computed."""

from __future__ import annotations

import pytest

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import RowStatus
from drafthouse.engine.costs import CallCosts
from fakes.engine_driver import step, step_row
from fakes.engine_session import FakeSession, call_times, fake_engine, predicted


def grown(tokens: list[int], count: int) -> list[int]:
    """What the fake network writes after ``tokens`` by itself."""
    text = list(tokens)
    for _ in range(count):
        text.append(predicted(text))
    return text[len(tokens) :]


@pytest.mark.parametrize("fail_after", [1, 2, 3])
def test_a_row_that_fails_while_it_grows_keeps_its_committed_tokens_and_nothing_else(fail_after: int) -> None:
    engine, session = fake_engine(slots=2)
    session.fail_at, session.fail_after = {0}, fail_after
    rows = step_row(1, [3, 4]), step_row(2, [5, 6, 7])
    answers = step(engine, *rows, num_steps=5)
    assert [answer.status for answer in answers] == [RowStatus.ERROR] * 2  # they shared the network call
    assert [answer.cached_len for answer in answers] == [2, 3]
    assert [engine._slots.spare_row(slot) for slot in range(2)] == [2, 3]
    assert session.cleared == [(0, 2), (1, 3)]
    own = grown([3, 4], 3)
    session.calls.clear()
    (after,) = step(engine, step_row(1, [*own, 9], prefix_len=2))
    assert session.calls == [(0, 1, 4, 4)]  # all four: no draft is taken for cached
    assert after.sampled.tolist() == [predicted([3, 4, *own, 9])]


def test_a_failed_row_stops_growing_and_its_neighbour_goes_on() -> None:
    engine, session = fake_engine(slots=3)
    step(engine, *(step_row(uid, [uid]) for uid in (1, 2, 3)))
    engine.release([2])
    session.fail_at, session.fail_after = {2}, 1
    session.calls.clear()
    fine, broken = step(engine, step_row(1, [4], prefix_len=1), step_row(3, [5], prefix_len=1), num_steps=4)
    assert (fine.sampled.tolist(), broken.status) == (grown([1, 4], 4), RowStatus.ERROR)
    assert [call[0] for call in session.calls] == [0, 2, 0, 2, 0, 0]
    assert engine._slots.spare_row(2) == 2


def test_bans_follow_the_paths_of_a_row_that_failed_before() -> None:
    engine, session = fake_engine(token_bytes=tuple(bytes([65 + token]) for token in range(50)))
    session.fail_at, session.fail_after = {0}, 1
    banned = SamplingParams(bad_words=(b"z",))
    assert step(engine, step_row(1, [3, 4], sampling=banned), num_steps=4)[0].status is RowStatus.ERROR
    assert step(engine, step_row(1, [5], prefix_len=2, sampling=banned), num_steps=4)[0].sampled.tolist() == grown([3, 4, 5], 4)


def raising(session: FakeSession, name: str, num_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one call of this method, after ``num_before`` others, raise what no session should."""
    method, calls = getattr(session, name), iter([*[False] * num_before, True])

    def raises(*args: object) -> object:
        if next(calls, False):
            raise ZeroDivisionError("a bug")
        return method(*args)

    monkeypatch.setattr(session, name, raises)


@pytest.mark.parametrize(
    ("name", "num_before"), [("run", 0), ("run", 1), ("run", 2), ("bind", 0), ("bind", 1), ("copy_rows", 0), ("resize", 0)]
)
def test_after_a_bug_nothing_counts_as_computed(name: str, num_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, session = fake_engine(slots=2)
    engine.costs = CallCosts(2, 8, call_times({2: 9.0, 8: 10.0}, place_ms=0.1, row_ms=1.0))
    tree, prompt = step_row(1, [3, 20, 30, 31], num_committed=1, parents=[-1, 0, 0, 2]), [5] * 8
    step(engine, tree, step_row(2, prompt))
    raising(session, name, num_before, monkeypatch)
    # The second branch was accepted, so that the cache has to be moved; and more of it is needed than before.
    moved = step_row(1, [30, 31, 9], prefix_len=1)
    with pytest.raises(ZeroDivisionError):
        step(engine, moved, step_row(2, [6, 7, 8, 9], prefix_len=8), num_steps=5)
    text = [*prompt, 6, 7, 8, 9]
    own = grown(text, 2)
    forgotten = step(engine, moved, step_row(2, [*own, 1], prefix_len=12))
    assert [(answer.status, answer.cached_len) for answer in forgotten] == [(RowStatus.NEEDS_PREFILL, 0)] * 2
    step(engine, step_row(2, prompt))
    healed = step(engine, step_row(1, [3, 30, 31, 9]), step_row(2, [*text[8:], *own, 1], prefix_len=8))
    assert [answer.sampled.tolist() for answer in healed] == [[predicted([3, 30, 31, 9])], [predicted([*text, *own, 1])]]
