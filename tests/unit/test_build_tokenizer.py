"""Different tokenizers are refused, and the message says where they differ."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drafthouse_build.checkpoint import load_checkpoint
from drafthouse_build.engine import EngineOptions, check_model
from drafthouse_build.errors import BuildError
from drafthouse_build.tokenizer import (
    check_same_tokenizer,
    highest_token_id,
    shared_token_ids,
    tokenizer_differences,
    tokenizer_files,
)
from fakes.tiny_llama import tiny_tokenizer, write_checkpoint


def write(folder: Path, name: str, content: dict[str, Any]) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    return file


def swap_two_tokens(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]


def rename_token(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["xyz"] = content["model"]["vocab"].pop("abc")


def reorder_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"].reverse()


def change_special_flag(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["special"] = False


def change_everything(content: dict[str, Any]) -> None:
    content["model"]["vocab"] = {token: 80 - index for token, index in content["model"]["vocab"].items()}


@pytest.mark.parametrize(
    ("change", "count", "named"),
    [
        (swap_two_tokens, 2, ["token 'A' target=33 drafter=34", "token 'B' target=34 drafter=33"]),
        (rename_token, 2, ["token 'abc' target=82 drafter=none", "token 'xyz' target=none drafter=82"]),
        (reorder_merges, 2, ["merge 'a b' target=0 drafter=1", "merge 'ab c' target=1 drafter=0"]),
        (change_special_flag, 1, ["added token '<eos>' target={", '"special": false']),
        (change_everything, 82, ["token '<eos>' target=0 drafter=80"]),
    ],
)
def test_differing_entries_are_counted_and_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], count: int, named: list[str]
) -> None:
    changed = copy.deepcopy(tiny_tokenizer())
    change(changed)
    target, drafter = write(tmp_path, "target", tiny_tokenizer()), write(tmp_path, "drafter", changed)
    with pytest.raises(BuildError) as error:
        check_same_tokenizer(target, drafter, "code")
    message = str(error.value)
    assert message.startswith(f"INVALID_ARG field=tokenizer of drafter code value={count} differing entries: ")
    assert message.endswith("allowed=the target's vocabulary, merges and added tokens")
    assert all(entry in message for entry in named)
    assert message.count("drafter=") == min(count, 5)
    assert "\n" not in message


def test_what_does_not_change_the_meaning_of_ids_is_no_difference(tmp_path: Path) -> None:
    """Older files write a merge as one string, and only the target's tokenizer ever splits text."""
    other = tiny_tokenizer()
    other["model"]["merges"] = [" ".join(merge) for merge in other["model"]["merges"]]
    other["pre_tokenizer"] = {"type": "Whitespace"}
    assert tokenizer_differences(write(tmp_path, "a", tiny_tokenizer()), write(tmp_path, "b", other)) == []


def test_other_kind_of_model_is_a_difference(tmp_path: Path) -> None:
    tokens = tiny_tokenizer()["model"]["vocab"]
    unigram = {"model": {"type": "Unigram", "vocab": [[token, -1.0] for token in tokens]}, "added_tokens": tiny_tokenizer()["added_tokens"]}
    differences = tokenizer_differences(write(tmp_path, "a", tiny_tokenizer()), write(tmp_path, "b", unigram))
    assert differences == [
        "model type target=BPE drafter=Unigram",
        "merge 'a b' target=0 drafter=none",
        "merge 'ab c' target=1 drafter=none",
    ]


def with_added(*added: tuple[int, str]) -> dict[str, Any]:
    content = tiny_tokenizer()
    content["added_tokens"] += [{**content["added_tokens"][0], "id": token_id, "content": text} for token_id, text in added]
    return content


def test_tokens_added_to_one_alone_are_no_difference_unless_they_take_an_id(tmp_path: Path) -> None:
    target = write(tmp_path, "target", with_added((84, "<tool>"), (85, "<both>")))
    drafter = write(tmp_path, "drafter", with_added((85, "<both>"), (90, "<own>")))
    assert tokenizer_differences(target, drafter) == []
    assert shared_token_ids(target, drafter) == {*range(83), 85}
    other = write(tmp_path, "other", with_added((84, "<own>")))
    assert [text.split(" target=")[0] for text in tokenizer_differences(target, other)] == ["added token '<tool>'", "added token '<own>'"]


def test_tokens_that_a_model_has_no_embedding_for_stay_behind(tmp_path: Path) -> None:
    """Gemma 3's text models come with an image token whose id is their vocabulary's size."""
    file = write(tmp_path, "tokenizer", with_added((90, "<pad>"), (96, "<image>")))
    assert highest_token_id(file) == 82
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "model", tokenizer=with_added((90, "<pad>"), (96, "<image>"))))
    check_model(checkpoint, EngineOptions(context_len=64, max_step_tokens=16))
    kept = json.loads(tokenizer_files(checkpoint, 96)["tokenizer.json"])
    assert kept == with_added((90, "<pad>"))
    assert tokenizer_files(checkpoint, 97)["tokenizer.json"] == (tmp_path / "model" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("content", ["", "[]", '{"model": 3}'])
def test_unreadable_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(BuildError, match=f"^INVALID_ARG field=tokenizer value={file}"):
        highest_token_id(file)
