"""Text out of tokens: complete characters, stop words across token borders, min_tokens, finish reasons."""

import itertools
import random

import pytest

from drafthouse.pipeline.commit import commit, emit
from drafthouse.pipeline.contract import FinishReason, GenerationRequest
from drafthouse.pipeline.detokenize import Detokenizer
from drafthouse.pipeline.state import RequestState, new_state
from fakes.pipeline_harness import make_request
from fakes.pipeline_sink import FakeSink

PIECES = [b"", b"a", b"b", b"ab", b"\xc3", b"\xa9", "é".encode(), b"\xf0\x9f", b"\x98", b"\x80", b"END", b"EN", b"D", b" x"]
EOS, A, B, AB, C3, A9, E_ACUTE, F09F, X98, X80, END, EN, D, SPACE_X = range(len(PIECES))


def pieces(tokens: list[int], stop_words: list[str] | None = None, num_ignored: int = 0) -> tuple[list[str], bool]:
    """Texts shown after each token, and after the flush unless a stop word ended it."""
    detokenizer = Detokenizer(PIECES.__getitem__, stop_words or [])
    shown = []
    for count, token in enumerate(tokens, start=1):
        piece = detokenizer.push(token, may_stop=count > num_ignored)
        shown.append(piece.text)
        if piece.stopped:
            return shown, True
    return [*shown, detokenizer.flush()], False


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([A, AB], ["a", "ab", ""]),
        ([C3, A9], ["", "é", ""]),
        ([F09F, X98, X80, A], ["", "", "😀", "a", ""]),
        ([C3, A], ["", "\ufffda", ""]),  # an invalid start shows as soon as it is known to be invalid
        ([A, C3], ["a", "", "\ufffd"]),
        ([EOS, A], ["", "a", ""]),
    ],
)
def test_only_complete_characters_are_shown(tokens: list[int], shown: list[str]) -> None:
    assert pieces(tokens) == (shown, False)


@pytest.mark.parametrize(
    ("tokens", "stop_words", "shown", "stopped"),
    [
        ([A, END], ["END"], ["a", ""], True),
        ([A, EN, D], ["END"], ["a", "", ""], True),
        ([A, EN, A], ["END"], ["a", "", "ENa", ""], False),
        ([A, EN], ["END"], ["a", "", "EN"], False),
        ([C3, A9, A], ["éa"], ["", "", ""], True),
        ([A, B, A, B, B], ["abb"], ["", "", "ab", "", ""], True),  # a false start that is a start again
        ([AB, SPACE_X], ["b x", "x"], ["a", ""], True),  # both end here: the longer one counts
        ([AB], ["b", "a"], [""], True),  # the one that ends first
        ([A, A, B], ["aab", "ab"], ["", "", ""], True),
    ],
)
def test_stop_words_are_found_across_tokens_and_never_shown(
    tokens: list[int], stop_words: list[str], shown: list[str], stopped: bool
) -> None:
    assert pieces(tokens, stop_words) == (shown, stopped)


def test_an_ignored_stop_word_is_shown_and_may_be_the_start_of_one_that_counts() -> None:
    assert pieces([END, A], ["END"], num_ignored=2) == (["END", "a", ""], False)
    assert pieces([A, B, A, B, A], ["aba"], num_ignored=3) == (["", "", "ab", "", ""], True)


def test_the_text_does_not_depend_on_how_it_is_cut_into_tokens() -> None:
    rng = random.Random(5)
    for _ in range(300):
        tokens = [rng.choice([A, B, AB, C3, A9, EN, D, END]) for _ in range(12)]
        stop_words = ["".join(rng.choice("abEND") for _ in range(rng.randint(1, 3))) for _ in range(2)]
        data = b"".join(PIECES[token] for token in tokens)
        by_byte = Detokenizer(lambda byte: bytes([byte]), stop_words)
        expected = ""
        for byte in data:
            piece = by_byte.push(byte)
            expected += piece.text
            if piece.stopped:
                break
        else:
            expected += by_byte.flush()
        assert "".join(pieces(tokens, stop_words)[0]) == expected


def state_of(request: GenerationRequest) -> tuple[RequestState, FakeSink]:
    sink = FakeSink()
    return new_state(request, sink, 0, (), (), PIECES.__getitem__), sink


def push(state: RequestState, *tokens: int) -> int:
    return commit(state, tokens, [-1] * len(tokens), [-0.5] * len(tokens))


def test_tokens_after_the_end_token_are_dropped_and_not_counted() -> None:
    state, sink = state_of(make_request(stream=True, end_ids=(EOS,)))
    assert push(state, A, EOS, B, B) == 2
    emit(state)
    assert sink.output_ids == [A, EOS]
    assert (sink.text, state.finish_reason) == ("a", FinishReason.STOP)


@pytest.mark.parametrize(
    ("end_ids", "reason"),
    [((), FinishReason.LENGTH), ((EOS,), FinishReason.STOP), ((B, EOS), FinishReason.STOP), ((B,), FinishReason.LENGTH)],
)
def test_which_tokens_end_the_text_is_the_request_s_choice(end_ids: tuple[int, ...], reason: FinishReason) -> None:
    state, _ = state_of(make_request(max_tokens=2, end_ids=end_ids))
    push(state, A, EOS)
    assert state.finish_reason is reason


def test_min_tokens_holds_back_end_tokens_and_stop_words() -> None:
    request = make_request(max_tokens=9, min_tokens=3, end_ids=(B, D), stop_words=("END",))
    state, _ = state_of(request)
    assert push(state, END, D) == 2
    assert state.finish_reason is None
    assert push(state, END) == 1  # the third token: a stop word may end the text here
    assert state.finish_reason is FinishReason.STOP
    assert state.outgoing.text == "ENDD"
    other, _ = state_of(request)
    assert push(other, A, B, B, B, A) == 4  # an end token only after three others
    assert other.finish_reason is FinishReason.STOP


def test_max_tokens_ends_the_text_with_what_was_held_back() -> None:
    state, sink = state_of(make_request(max_tokens=3, stop_words=("ENDING",)))
    assert push(state, A, EN, D, A) == 3
    emit(state)
    assert sink.text == "aEND"
    assert sink.chunks[-1].finish_reason is FinishReason.LENGTH


def test_a_stream_waits_with_tokens_until_they_are_text() -> None:
    state, sink = state_of(make_request(stream=True, max_tokens=5, echo_text="Q: ", return_log_probs=True))
    for token in (C3, A9, A, C3, A):
        push(state, token)
        emit(state)
    # Even the echoed prompt waits for the first token.
    assert [chunk.text for chunk in sink.chunks] == ["Q: é"[:3], "é", "a", "\ufffda"]
    assert [chunk.output_ids for chunk in sink.chunks] == [(C3,), (A9,), (A,), (C3, A)]
    assert [chunk.num_output_tokens for chunk in sink.chunks] == [1, 1, 1, 2]
    assert all(len(chunk.log_probs) == len(chunk.output_ids) == len(chunk.token_sources) for chunk in sink.chunks)


def test_an_answer_that_does_not_stream_comes_in_one_piece() -> None:
    state, sink = state_of(make_request(max_tokens=3, echo_text="Q: "))
    for token in (A, B, C3):
        emit(state)
        push(state, token)
    emit(state)
    assert len(sink.chunks) == 1
    assert sink.text == "Q: ab\ufffd"
    assert sink.chunks[0].log_probs == ()
    assert sink.chunks[0].perf is None


def test_perf_metrics_come_with_the_last_chunk() -> None:
    state, sink = state_of(make_request(max_tokens=1, return_perf_metrics=True))
    state.num_drafted, state.num_accepted, state.first_scheduled_time_ns = 8, 2, 5
    push(state, A)
    emit(state)
    perf = sink.chunks[-1].perf
    assert perf is not None
    assert (perf.acceptance_rate, perf.total_draft_tokens, perf.total_accepted_draft_tokens) == (0.25, 8, 2)
    assert perf.first_scheduled_time_ns == 5
    assert 0 < perf.arrival_time_ns <= perf.first_token_time_ns <= perf.last_token_time_ns


def test_every_split_of_one_commit_gives_the_same_answer() -> None:
    tokens = [A, EN, D, A, C3, A9, B]
    answers = set()
    for cut in itertools.combinations(range(1, len(tokens)), 2):
        state, sink = state_of(make_request(max_tokens=len(tokens), stop_words=("aé",)))
        for part in (tokens[: cut[0]], tokens[cut[0] : cut[1]], tokens[cut[1] :]):
            if not state.finished:
                push(state, *part)
        emit(state)
        answers.add((sink.text, tuple(sink.output_ids)))
    assert answers == {("aEND", (A, EN, D, A, C3, A9))}
