"""Bad words as text, whatever the tokens; and the table of bytes that this rests on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from drafthouse.core.errors import ClientError
from drafthouse.core.sampling_params import SamplingParams
from drafthouse.sampling.bans import BanTable
from drafthouse.sampling.vocabulary import read_token_bytes, tail_bytes

TOKENS = [b"", b"a", b"b", b"c", b"ab", b"bc", b"abc", b"ca", b"cab", b"bb", b"\xc3", b"\xa4", b"x" * 5]


def banned_by_definition(words: tuple[bytes, ...], path: list[int]) -> list[int]:
    """A token is banned when appending its bytes makes a new occurrence of a word."""
    before = b"".join(TOKENS[token] for token in path)

    def completes(token: int, word: bytes) -> bool:
        text = before + TOKENS[token]
        return any(text[: end + 1].endswith(word) for end in range(len(before), len(text)))

    return [token for token in range(len(TOKENS)) if any(completes(token, word) for word in words)]


@pytest.mark.parametrize(
    "words",
    [(b"a",), (b"ab",), (b"abc",), (b"bcab",), (b"abab", b"cc"), ("ä".encode(),), (b"aaa", b"b"), (b"xxxxxxx",), (b"nothing here",)],
)
@pytest.mark.parametrize("path", [[], [1], [4], [6, 1], [1, 1, 0], [8, 0, 0, 4], [10], [2, 2, 3, 7], [12, 1]])
def test_every_completed_occurrence_is_banned_and_nothing_else(words: tuple[bytes, ...], path: list[int]) -> None:
    table = BanTable(TOKENS)
    for _ in range(2):  # the second time the word is known
        assert table.banned(SamplingParams(bad_words=words), path, 0).tolist() == banned_by_definition(words, path)


def test_the_end_tokens_are_banned_until_their_position() -> None:
    params = SamplingParams(end_ids=(3, 1), min_end_position=10, bad_words=(b"ab",))
    table = BanTable(TOKENS)
    assert {1, 3} <= set(table.banned(params, [1], 9).tolist())
    assert {1, 3}.isdisjoint(table.banned(params, [1], 10).tolist())
    assert table.banned(SamplingParams(end_ids=(3, 1), min_end_position=10), [], 9).tolist() == [1, 3]
    assert table.banned(SamplingParams(min_end_position=10), [], 9).tolist() == []


def test_when_nothing_is_left_the_bad_words_give_way() -> None:
    table = BanTable([b"a", b"aa"])
    assert table.banned(SamplingParams(bad_words=(b"a",), end_ids=(1,), min_end_position=5), [], 0).tolist() == [1]


@pytest.mark.parametrize(("num_bytes", "expected"), [(0, b""), (1, b"c"), (2, b"bc"), (3, b"abc"), (4, b"aabc"), (9, b"aabc")])
def test_tail_bytes(num_bytes: int, expected: bytes) -> None:
    assert tail_bytes(TOKENS, [1, 6, 0], num_bytes) == expected


def test_byte_level_tokens_spell_what_they_decode_to(tiny_engine_dir: Callable[..., Path]) -> None:
    file = tiny_engine_dir() / "tokenizer.json"
    table = read_token_bytes(file, 320)
    text = "der Bär läuft\tüber 100 % 日本\n"
    encoded = Tokenizer.from_file(str(file)).encode(text).ids
    assert b"".join(table[token] for token in encoded).decode() == text
    assert table[0] == b""  # the special token
    assert sorted(text[0] for text in table if len(text) == 1) == list(range(256))
    assert table[-1] == b""  # the model's vocabulary may be larger


def test_sentencepiece_tokens_and_added_ones(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    added = [{"id": 4, "content": "<tool>", "special": False}, {"id": 0, "content": "<s>", "special": True}]
    model = {"vocab": {"<s>": 0, "<0xC3>": 1, "▁the": 2, "ä": 3}}
    file.write_text(json.dumps({"model": model, "decoder": decoder, "added_tokens": added}))
    assert read_token_bytes(file, 6) == (b"", b"\xc3", b" the", "ä".encode(), b"<tool>", b"")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "INVALID_ARG field=tokenizer"),
        ("{", "INVALID_ARG field=tokenizer"),
        ('{"model": {}}', "INVALID_ARG field=tokenizer"),
        ('{"model": {"vocab": [["a", -1.0]]}}', "UNSUPPORTED field=tokenizer value='none'"),
        ('{"model": {"vocab": [["a", -1.0, 2]]}}', "INVALID_ARG field=tokenizer"),
        ('{"model": {"vocab": {"a": 0}}, "decoder": {"type": "WordPiece"}}', "UNSUPPORTED field=tokenizer value='WordPiece'"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, content: str | None, code: str) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ClientError, match="tokenizer") as raised:
        read_token_bytes(file, 4)
    assert str(raised.value).startswith(code)
