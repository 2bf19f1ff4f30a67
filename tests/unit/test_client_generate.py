"""`drafthouse generate`: what a terminal, a pipe and a failing server get to see."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from drafthouse_client import Client, GenerateOptions
from drafthouse_client.completion import TARGET_SOURCE, Chunk, join_chunks
from drafthouse_client.generate import main, show
from drafthouse_client.paint import Painter, Span, legend, painted, stats_line, token_byte_lengths
from fakes.triton_grpc import FakeTriton, error, final, response, scripted, serving, two_chunks

LENGTHS = {5: 1, 6: 1, 7: 1, 8: 0}


def test_text_goes_to_the_token_it_came_from() -> None:
    painter = Painter(LENGTHS)
    chunk = Chunk(text="abc", output_ids=(5, 6, 7), token_sources=(0, 0, TARGET_SOURCE))
    assert painter.spans(chunk) == [Span("ab", 0), Span("c", TARGET_SOURCE)]


def test_text_held_back_is_painted_when_it_arrives() -> None:
    painter = Painter({1: 2, 2: 3, 3: 0})
    assert painter.spans(Chunk(text="a", output_ids=(1, 2), token_sources=(0, 1))) == [Span("a", 0)]
    assert painter.spans(Chunk(text="bcd", output_ids=(3,), token_sources=(2,))) == [Span("b", 0), Span("cd", 1)]
    assert painter.spans(Chunk(text="e!")) == [Span("e", 1), Span("!", TARGET_SOURCE)]


def test_a_character_split_between_tokens_belongs_to_its_first_byte() -> None:
    painter = Painter({1: 1, 2: 3})
    chunk = Chunk(text="é€", output_ids=(1, 2, 1), token_sources=(0, 1, TARGET_SOURCE))
    assert painter.spans(chunk) == [Span("é", 0), Span("€", 1)]


def test_without_a_tokenizer_a_chunk_takes_its_most_frequent_source() -> None:
    painter = Painter()
    assert painter.spans(Chunk(text="abc", output_ids=(5, 6, 7), token_sources=(1, 1, TARGET_SOURCE))) == [Span("abc", 1)]
    assert painter.spans(Chunk(text="")) == []
    assert painter.spans(Chunk(text="x")) == [Span("x", TARGET_SOURCE)]


def test_the_targets_own_tokens_are_plain_and_drafters_differ() -> None:
    text = painted([Span("a", TARGET_SOURCE), Span("b", 0), Span("c", 1)])
    assert text.plain == "abc"
    styles = [str(span.style) for span in text.spans]
    assert len(styles) == 2
    assert len(set(styles)) == 2


def test_byte_lengths_come_from_a_byte_level_tokenizer(tmp_path: Path) -> None:
    data = {
        "decoder": {"type": "ByteLevel"},
        "model": {"vocab": {"<eos>": 0, "a": 1, "Ġthe": 2, "Ã©": 3}},
        "added_tokens": [{"id": 0, "content": "<eos>", "special": True}, {"id": 9, "content": "né", "special": False}],
    }
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert token_byte_lengths(file) == {0: 0, 1: 1, 2: 4, 3: 2, 9: 3}
    file.write_text(json.dumps(data | {"decoder": None}), encoding="utf-8")
    assert token_byte_lengths(file) == {}
    file.write_text(json.dumps(data | {"model": {"vocab": [["a", -1.5]]}}), encoding="utf-8")  # not BPE
    assert token_byte_lengths(file) == {}


def test_byte_lengths_come_from_a_tokenizer_with_byte_fallback(tmp_path: Path) -> None:
    data = {"decoder": {"type": "ByteFallback"}, "model": {"vocab": {"<0xC3>": 0, "\u2581the": 1}}, "added_tokens": []}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert token_byte_lengths(file) == {0: 1, 1: 4}


def test_legend_and_figures() -> None:
    chunks = [Chunk(text="ab", output_ids=(1, 2, 3), token_sources=(-1, 0, -1), num_output_tokens=3, finish_reason="stop")]
    completion = join_chunks(chunks, duration_s=0.5)
    assert legend(completion.token_sources, ("code", "math")).plain == "tokens from: target 2 · code 1"
    assert legend((4,), ("code",)).plain == "tokens from: drafter 4 1"
    line = stats_line(completion, ttft_s=0.012)
    assert line == "3 tokens in 0.50 s · 6.0 tokens/s · first after 12 ms · 2.00 tokens per round · finished by stop"


def test_a_pipe_gets_the_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeTriton(scripted(*two_chunks()))
    with serving(fake) as url:
        assert main(["hello", "--url", url]) == 0
        assert main(["hello", "--url", url, "--stream", "--stats", "--seed", "7", "--drafters", "code,math", "--max-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "abc\nabc\n"
    assert "2 of 4 draft tokens accepted" in captured.err
    assert fake.seen[0]["exclude_input_in_output"] == [True]
    assert (fake.seen[1]["seed"], fake.seen[1]["drafters"], fake.seen[1]["max_tokens"]) == ([7], ["code", "math"], [4])


def test_the_prompt_can_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTriton(scripted(*two_chunks()))
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    with serving(fake) as url:
        assert main(["-", "--url", url]) == 0
    assert fake.seen[0]["text_input"] == ["from a pipe\n"]


def test_a_refusal_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    refusal = "INVALID_ARG field=drafters value=x allowed=code, math"
    with serving(FakeTriton(scripted(error(refusal)))) as url:
        assert main(["hello", "--url", url, "--drafters", "x"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", refusal + "\n")


@pytest.mark.parametrize("stream", [True, False])
def test_a_terminal_gets_colours_and_the_text_unchanged(stream: bool) -> None:
    chunks = (
        response(text_output="[b]x", output_ids=(5, 6), token_sources=(0, -1), num_output_tokens=2),
        response(text_output="\n  y", output_ids=(7,), token_sources=(1,), num_output_tokens=1, finish_reason="stop"),
        final(),
    )
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, color_system="standard", width=20, highlight=False)
    with serving(FakeTriton(scripted(*chunks))) as url, Client(url) as client:
        completion, ttft_s = show(client, "[red]p", GenerateOptions(), console, {5: 3, 6: 1, 7: 4}, stream=stream)
    assert completion.text == "[b]x\n  y"
    assert ttft_s is not None
    assert shown.getvalue() == "\x1b[2m[red]p\x1b[0m\x1b[32m[b]\x1b[0mx\n\x1b[36m  y\x1b[0m\n"
