"""The step contract on a network whose answers can be computed by hand: statuses, errors, reuse, slots, network calls."""

from __future__ import annotations

import numpy as np

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import RowStatus, StepCall
from fakes.engine_driver import fill, step, step_row
from fakes.engine_session import fake_engine, predicted

USABLE = 24  # context 32, steps of up to 8 tokens


def test_one_rows_error_leaves_the_others_and_its_own_cache_unharmed() -> None:
    engine, _ = fake_engine()
    tokens = fill(engine, 1, 5)
    answers = step(engine, step_row(2, [3, 4]), step_row(1, [99], prefix_len=5), step_row(3, [6]))
    assert [answer.status for answer in answers] == [RowStatus.OK, RowStatus.ERROR, RowStatus.OK]
    assert answers[1].cached_len == 5
    assert answers[0].sampled.tolist() == [predicted([3, 4])]
    assert step(engine, step_row(1, [7], prefix_len=5))[0].sampled.tolist() == [predicted([*tokens, 7])]


def test_a_request_may_appear_once_per_call() -> None:
    engine, _ = fake_engine()
    first, second = step(engine, step_row(1, [3, 4]), step_row(1, [5]))
    assert first.status is RowStatus.OK
    assert second.error == "INVALID_ARG field=request_uid value=1 allowed=each request once per call"


def test_what_the_engine_does_not_hold_needs_prefill_from_there() -> None:
    engine, session = fake_engine()
    unknown, new = step(engine, step_row(1, [3], prefix_len=4), step_row(2, [3, 4, 5]))
    assert (unknown.status, unknown.cached_len) == (RowStatus.NEEDS_PREFILL, 0)
    assert (new.status, new.cached_len) == (RowStatus.OK, 3)
    (gap,) = step(engine, step_row(2, [9], prefix_len=4))
    assert (gap.status, gap.cached_len) == (RowStatus.NEEDS_PREFILL, 3)
    assert engine.status().slots_free == 3
    assert len(session.calls) == 1


def test_no_slot_until_one_is_released_then_the_lowest() -> None:
    engine, session = fake_engine(slots=2)
    step(engine, step_row(1, [3]), step_row(2, [3]))
    assert step(engine, step_row(3, [3]))[0].status is RowStatus.NO_SLOT
    engine.release([1, 1, 99])
    assert engine.status().slots_free == 1
    assert step(engine, step_row(3, [3]))[0].status is RowStatus.OK
    assert session.calls[-1][0] == 0


def test_the_last_usable_position_runs_beside_others_and_one_more_is_refused() -> None:
    engine, session = fake_engine()
    tokens = fill(engine, 1, USABLE - 1)
    draft = [1, 2, 3, 4, 5, 6, 7]
    last = step_row(1, [8, *draft], prefix_len=USABLE - 1, num_committed=1)
    before, full, after = step(engine, step_row(2, [3, 4]), last, step_row(3, [5]))
    expected = [predicted([*tokens, 8, *draft[:count]]) for count in range(8)]
    assert (full.status, full.cached_len, full.sampled.tolist()) == (RowStatus.OK, USABLE, expected)
    assert [before.sampled.tolist(), after.sampled.tolist()] == [[predicted([3, 4])], [predicted([5])]]
    assert session.calls[-1] == (0, 3, 8, 11)
    extended = step(engine, step_row(1, [8], prefix_len=USABLE - 1), num_steps=8)[0]
    assert len(extended.sampled) == 8
    past, other = step(engine, step_row(1, [8, 9], prefix_len=USABLE - 1), step_row(2, [6], prefix_len=2))
    assert past.status is RowStatus.ERROR
    assert other.sampled.tolist() == [predicted([3, 4, 6])]


def test_accepted_drafts_are_not_computed_again() -> None:
    engine, session = fake_engine()
    step(engine, step_row(1, [10, 11, 12, 13, 14], num_committed=2))
    answer = step(engine, step_row(1, [12, 13, 40, 41, 42], prefix_len=2, num_committed=3))[0]
    assert session.calls[-1] == (0, 1, 3, 3)
    assert answer.sampled.tolist() == [predicted([10, 11, 12, 13, *rest]) for rest in ([40], [40, 41], [40, 41, 42])]
    assert not session.copies
    other = step(engine, step_row(1, [40, 44, 45, 46], prefix_len=4))[0]  # 40 is committed, 44 is not the draft 41
    assert session.calls[-1] == (0, 1, 3, 3)
    assert other.sampled.tolist() == [predicted([10, 11, 12, 13, 40, 44, 45, 46])]


def test_the_end_tokens_wait_for_their_position() -> None:
    engine, _ = fake_engine()
    first, second = predicted([10]), predicted([10, 11])
    for end_ids, expected in (((first,), [0, second]), ((second,), [first, second]), ((second, first, 0), [1, second])):
        banned = SamplingParams(end_ids=end_ids, min_end_position=2)  # the first sample stands at position 1, the second at 2
        assert step(engine, step_row(1, [10, 11], num_committed=1, sampling=banned))[0].sampled.tolist() == expected


def test_an_accepted_branch_is_moved_into_place() -> None:
    engine, session = fake_engine()
    # 10 ─┬─ 20 ── 21
    #     └─ 30 ─┬─ 31
    #            └─ 32 ── 33
    tree = step_row(1, [10, 20, 21, 30, 31, 32, 33], num_committed=1, parents=[-1, 0, 1, 0, 3, 3, 5])
    answer = step(engine, tree)[0]
    paths = [[10], [10, 20], [10, 20, 21], [10, 30], [10, 30, 31], [10, 30, 32], [10, 30, 32, 33]]
    assert answer.sampled.tolist() == list(map(predicted, paths))
    answer = step(engine, step_row(1, [30, 32, 44], prefix_len=1))[0]
    assert session.copies == [(0, [3, 5], [1, 2])]
    assert session.calls[-1] == (0, 1, 2, 2)
    assert answer.sampled.tolist() == [predicted([10, 30, 32, 44])]


def test_a_rollback_forgets_what_came_after() -> None:
    engine, session = fake_engine()
    tokens = fill(engine, 1, 12)
    changed = step(engine, step_row(1, [tokens[4], 49, 48], prefix_len=4))[0]
    assert (changed.cached_len, changed.sampled.tolist()) == (7, [predicted([*tokens[:5], 49, 48])])
    assert session.calls[-1] == (0, 1, 2, 2)  # the fifth token agreed
    assert step(engine, step_row(1, [1], prefix_len=8))[0].status is RowStatus.NEEDS_PREFILL


def test_prompt_scores_are_computed_anew_and_equal() -> None:
    engine, session = fake_engine()
    row = step_row(1, [10, 11, 12, 13])
    first, again = (step(engine, row, return_prompt_logprob=True)[0] for _ in range(2))
    assert (first.prompt_logprob, first.num_scored) == (again.prompt_logprob, 3)
    assert session.calls == [(0, 1, 4, 4)] * 2
    single = step(engine, step_row(2, [10]), return_prompt_logprob=True)[0]
    assert (single.prompt_logprob, single.num_scored) == (0.0, 0)


def test_a_failing_network_call_costs_its_own_rows_only_and_heals() -> None:
    engine, session = fake_engine(slots=3)
    tokens = fill(engine, 1, 4)
    step(engine, step_row(2, [1]), step_row(3, [2]))
    engine.release([2])
    session.fail_at = {0}
    broken, fine = step(engine, step_row(1, [5], prefix_len=4), step_row(3, [6], prefix_len=1))
    assert (broken.status, broken.error) == (RowStatus.ERROR, "INTERNAL field=session value='out of memory'")
    assert fine.sampled.tolist() == [predicted([2, 6])]
    assert step(engine, step_row(1, [5], prefix_len=4))[0].sampled.tolist() == [predicted([*tokens, 5])]


def test_logits_that_are_not_finite_empty_the_slot() -> None:
    engine, session = fake_engine()
    step(engine, step_row(1, [4]), step_row(2, [4]))
    session.nan_at = {1}
    fine, broken = step(engine, step_row(1, [5], prefix_len=1), step_row(2, [5], prefix_len=1))
    assert fine.status is RowStatus.OK
    assert (broken.status, broken.cached_len, broken.error) == (RowStatus.ERROR, 0, "INTERNAL field=logits value='not finite'")
    assert session.cleared == [(1, 0)]
    assert step(engine, step_row(2, [5], prefix_len=1))[0].status is RowStatus.NEEDS_PREFILL


def test_self_extension_feeds_back_over_all_rows() -> None:
    engine, session = fake_engine()
    answers = step(engine, step_row(1, [10, 11, 12], num_committed=2), step_row(2, [7]), num_steps=4)
    for answer, tokens, drafts in zip(answers, ([10, 11], [7]), ([12], []), strict=True):
        expected = [predicted([*tokens, *drafts[:count]]) for count in range(len(drafts) + 1)]
        fed = [*tokens, *drafts]
        for _ in range(3):
            fed.append(expected[-1])
            expected.append(predicted(fed))
        assert answer.sampled.tolist() == expected
    assert session.calls == [(0, 2, 3, 4), (0, 2, 2, 2), (0, 2, 2, 2), (0, 2, 2, 2)]
    drafted = answers[1].sampled.tolist()
    step(engine, step_row(2, [*drafted[:3], 9], prefix_len=1))
    assert session.calls[-1] == (1, 1, 2, 2)  # three drafts were cached: one token, padded to two


def test_a_call_without_rows_answers_the_status() -> None:
    engine, session = fake_engine(slots=3)
    assert engine.step(StepCall([])).rows == []
    status = engine.status()
    assert (status.slots_free, status.slots_total, status.session_ns) == (3, 3, 0)
    assert engine.pool_bytes == session.cache.nbytes
    assert engine.limits.usable_context == USABLE


def random_tree(random: np.random.Generator, tip: int, count: int) -> tuple[list[int], list[int]]:
    """Draft tokens below token number `tip`, with parents in the row's numbering; siblings differ."""
    tokens: list[int] = []
    parents: list[int] = []
    for node in range(count):
        parent = int(random.integers(tip, tip + node + 1))
        token = int(random.integers(50))
        if all((token, parent) != pair for pair in zip(tokens, parents, strict=True)):
            tokens.append(token)
            parents.append(parent)
        else:
            break
    return tokens, parents


def test_any_mixture_of_calls_answers_from_the_tokens_alone() -> None:
    """Random rollbacks, trees, repeats, releases and batches against the definition: a node's answer follows from its path."""
    random = np.random.default_rng(5)
    engine, _ = fake_engine(slots=4)
    held: dict[int, list[int]] = {}
    for _ in range(300):
        rows, paths = [], []
        for uid in random.permutation(5)[: random.integers(1, 5)].tolist():
            known = held.get(uid, [])
            prefix_len = int(random.integers(max(0, len(known) - 4), len(known) + 1))
            keep = int(random.integers(0, len(known) - prefix_len + 1))
            committed = [*known[prefix_len : prefix_len + keep], *random.integers(50, size=random.integers(1, 3)).tolist()]
            if prefix_len + len(committed) > USABLE or len(committed) > 8:
                engine.release([uid])
                held.pop(uid, None)
                continue
            tokens, parents = random_tree(random, len(committed) - 1, int(random.integers(0, 9 - len(committed))))
            before = [*known[:prefix_len], *committed]
            row_paths = [before]
            for token, parent in zip(tokens, parents, strict=True):
                row_paths.append([*row_paths[parent - len(committed) + 1], token])
            rows.append(
                step_row(
                    uid,
                    [*committed, *tokens],
                    prefix_len=prefix_len,
                    num_committed=len(committed),
                    parents=[*range(-1, len(committed) - 1), *parents],
                )
            )
            paths.append(row_paths)
        for row, row_paths, answer in zip(rows, paths, step(engine, *rows), strict=True):
            if row.request_uid not in held and answer.status is RowStatus.NO_SLOT:
                continue
            assert answer.status is RowStatus.OK, answer.error
            assert answer.sampled.tolist() == list(map(predicted, row_paths))
            # The next call of this request takes one of the paths as accepted.
            held[row.request_uid] = row_paths[int(random.integers(len(row_paths)))]
            accepted = held[row.request_uid][answer.cached_len :]
            if accepted and answer.cached_len + len(accepted) <= USABLE:
                again = step(engine, step_row(row.request_uid, accepted, prefix_len=answer.cached_len))[0]
                assert again.sampled.tolist() == [predicted(held[row.request_uid])]
            else:
                held[row.request_uid] = row_paths[0]
    assert engine.status().slots_free == 4 - len(held)
