"""Checkpoints by hub id, from the hub's own cache; nothing here touches a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drafthouse_build.errors import BuildError
from drafthouse_build.hub import FILES, checkpoint_folder
from drafthouse_build.repository import build_repository
from fakes.tiny_llama import tiny_config, write_checkpoint

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model in two revisions, and no way to the hub."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    model = cache / "models--some-org--Tiny.Model"
    for revision, commit, seed in (("main", COMMIT, 0), ("v2", COMMIT[::-1], 1)):
        (model / "refs").mkdir(parents=True, exist_ok=True)
        (model / "refs" / revision).write_text(commit)
        write_checkpoint(model / "snapshots" / commit, tiny_config(), seed=seed)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return model


def test_a_hub_id_is_found_in_the_cache(hub_cache: Path) -> None:
    assert checkpoint_folder("some-org/Tiny.Model") == hub_cache / "snapshots" / COMMIT
    assert checkpoint_folder("some-org/Tiny.Model@v2") == hub_cache / "snapshots" / COMMIT[::-1]


def test_a_repository_is_built_from_hub_ids_and_folders(hub_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(hub_cache / "snapshots" / COMMIT, tmp_path / "copy")
    output = tmp_path / "out"
    drafters = {"law": "some-org/Tiny.Model@v2", "poems": tmp_path / "copy"}
    build_repository("some-org/Tiny.Model", drafters, output, templates=TEMPLATES, context_len=64, max_step_tokens=16)
    same, other = ((output / f"drafter_{name}/1/model.onnx").read_bytes() for name in ("poems", "law"))
    assert same != other


def test_what_the_hub_does_not_give_is_named(hub_cache: Path) -> None:
    with pytest.raises(BuildError, match=r"^UNAVAILABLE field=checkpoint value=some-org/other allowed=an existing folder, or a hub id"):
        checkpoint_folder("some-org/other")


def test_a_folder_wins_and_a_path_is_no_hub_id(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("some-org/Tiny.Model")
    folder.mkdir(parents=True)
    assert checkpoint_folder(str(folder)) == folder
    for path in ("./missing", "/missing/model", "a/b/c", "missing"):
        assert checkpoint_folder(path) == Path(path)


def test_only_data_is_fetched() -> None:
    assert not [name for name in FILES if name.endswith((".py", ".bin", ".pt", ".pkl", ".gguf"))]
    assert {"chat_template.jinja", "tokenizer.json", "generation_config.json"} <= set(FILES)
