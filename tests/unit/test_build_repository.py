"""A whole repository from checkpoints: what is written, what is left alone, and what is done only once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from drafthouse.engine.manifest import read_manifest
from drafthouse_build.errors import BuildError
from drafthouse_build.repository import StepOutcome, build_repository
from drafthouse_build.router_table import project
from fakes.onnx_llama import OnnxLlama
from fakes.tiny_llama import random_weights, tiny_config, tiny_tokenizer, write_checkpoint

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
ENGINE_FILES = {"model.onnx", "engine.json", "tokenizer.json"}


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Path]:
    small = tiny_config(num_hidden_layers=1)
    folders = {"target": write_checkpoint(tmp_path / "target")}
    folders.update({name: write_checkpoint(tmp_path / name, small, seed=index) for index, name in enumerate(("law", "poems"))})
    return folders


def build(checkpoints: dict[str, Path], output: Path, **options: object) -> list[StepOutcome]:
    drafters = {name: folder for name, folder in checkpoints.items() if name != "target"}
    settings: dict[str, object] = {"templates": TEMPLATES, "context_len": 64, "max_step_tokens": 16, **options}
    return build_repository(checkpoints["target"], drafters, output, **settings)  # type: ignore[arg-type]


def test_repository_elsewhere_is_complete(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "repository"
    outcomes = build(checkpoints, output, slots=3)
    assert {outcome.name for outcome in outcomes if outcome.built} == {"target", "drafter_law", "drafter_poems", "router", "cosine"}
    models = {folder.name for folder in output.iterdir()}
    assert models == {"cosine", "router", "fusion", "target", "drafter_law", "drafter_poems"}
    for model in models:
        assert (output / model / "config.pbtxt").is_file()
        assert (output / model / "1" / "model.py").is_file()
    for model in ("target", "drafter_law", "drafter_poems"):
        assert {file.name for file in (output / model / "1").iterdir()} >= ENGINE_FILES
    assert (output / "cosine/1/tokenizer.json").read_bytes() == (checkpoints["target"] / "tokenizer.json").read_bytes()


def test_special_tokens_and_chat_template_come_along(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    files = {"tokenizer_config.json": "{}", "special_tokens_map.json": '{"eos_token": "<eos>"}', "chat_template.jinja": "{{ messages }}"}
    for name, content in files.items():
        (checkpoints["target"] / name).write_text(content)
    output = tmp_path / "repository"
    build(checkpoints, output)
    for model in ("cosine", "target"):
        assert {name: (output / model / "1" / name).read_text() for name in files} == files
    (checkpoints["target"] / "chat_template.jinja").write_text("{{ bos_token }}{{ messages }}")
    assert {outcome.name for outcome in build(checkpoints, output) if outcome.built} == {"target", "cosine"}


def test_configuration_names_the_new_drafters_and_slots(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    build(checkpoints, tmp_path / "repository", slots=3)

    def config(model: str) -> str:
        return (tmp_path / "repository" / model / "config.pbtxt").read_text()

    for model in ("cosine", "fusion"):
        assert '"drafters" value { string_value: "law,poems" }' in config(model)
    assert '"single_drafter" value { string_value: "law" }' in config("cosine")
    for model in ("cosine", "target", "drafter_law", "drafter_poems"):
        assert '"slots" value { string_value: "3" }' in config(model)
    assert "law" in config("drafter_law").splitlines()[0]
    assert "code" not in config("drafter_law")
    # Nothing else changes: the same lines as in the template but for the parameters named above.
    committed = (TEMPLATES / "target/config.pbtxt").read_text().splitlines()
    changed = [old for old, new in zip(committed, config("target").splitlines(), strict=True) if old != new]
    assert [line for line in changed if "slots" not in line] == []


def test_engines_run_and_describe_themselves(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "repository"
    build(checkpoints, output, precision="int8")
    manifest = read_manifest(output / "drafter_law/1")
    llama = OnnxLlama(output / "drafter_law/1/model.onnx", rows=1)
    assert llama.step(0, [[1, 2, 3]], [0]).shape == (1, 3, manifest.vocab_size)
    assert (llama.num_layers, llama.num_kv_heads, llama.context_len, llama.head_dim) == (1, 2, 64, 16)
    assert (manifest.num_layers, manifest.num_kv_heads, manifest.num_heads, manifest.head_dim) == (1, 2, 6, 16)
    assert (manifest.hidden_size, manifest.context_len, manifest.max_step_tokens) == (48, 64, 16)
    assert (manifest.precision, manifest.domain, manifest.eos_token_ids) == ("int8", "law", (0,))
    assert manifest.num_params == sum(tensor.size for tensor in random_weights(tiny_config(num_hidden_layers=1)).values())


def test_second_build_does_nothing_and_a_changed_option_rebuilds(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "repository"
    build(checkpoints, output)
    engine = output / "target/1/model.onnx"
    written = engine.stat().st_mtime_ns
    assert not any(outcome.built for outcome in build(checkpoints, output))
    assert engine.stat().st_mtime_ns == written
    rebuilt = {outcome.name for outcome in build(checkpoints, output, expand_target_to=200_000) if outcome.built}
    assert rebuilt == {"target"}
    assert json.loads((output / "target/1/engine.json").read_text())["num_layers"] == 6
    write_checkpoint(checkpoints["law"], tiny_config(num_hidden_layers=1), seed=77)
    rebuilt = {outcome.name for outcome in build(checkpoints, output, expand_target_to=200_000) if outcome.built}
    assert rebuilt == {"drafter_law"}


def test_interrupted_build_is_not_taken_for_a_finished_one(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "repository"
    build(checkpoints, output)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("drafthouse_build.engine.write_model", fail)
        with pytest.raises(KeyboardInterrupt):
            build(checkpoints, output, precision="int8")
    assert "target" in {outcome.name for outcome in build(checkpoints, output) if outcome.built}


def test_building_in_place_touches_artefacts_only(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    build(checkpoints, repository)
    sources = [file for file in repository.rglob("*") if file.name in ("config.pbtxt", "model.py")]
    for file in sources:
        file.write_text(file.read_text() + "# edited by hand\n")
    outcomes = build(checkpoints, repository, templates=repository, precision="int8")
    assert {outcome.name for outcome in outcomes if outcome.built} == {"target", "drafter_law", "drafter_poems"}
    assert all(file.read_text().endswith("# edited by hand\n") for file in sources)
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=drafter value=poems,law allowed=law,poems in this repository"):
        build({name: checkpoints[name] for name in ("target", "poems", "law")}, repository, templates=repository)
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=slots value=3 allowed=8 in this repository"):
        build(checkpoints, repository, templates=repository, slots=3)


def test_bad_input_is_refused_before_anything_is_written(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "repository"
    other = tiny_tokenizer()
    other["model"]["vocab"]["zz"] = 95
    write_checkpoint(checkpoints["poems"], tiny_config(num_hidden_layers=1), tokenizer=other)
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=tokenizer of drafter poems value=1 differing entries: token 'zz'"):
        build(checkpoints, output)
    write_checkpoint(checkpoints["poems"])
    (checkpoints["poems"] / "config.json").write_text(json.dumps(tiny_config(architectures=["MambaForCausalLM"])))
    with pytest.raises(BuildError, match=r"^UNSUPPORTED field=architectures value=MambaForCausalLM allowed=LlamaForCausalLM"):
        build(checkpoints, output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["", "Code", "a-b", "../x", "target", "x" * 40])
def test_names_that_cannot_be_models_are_refused(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match=r"^INVALID_ARG field=drafter value="):
        build_repository(checkpoints["target"], {name: checkpoints["law"]}, tmp_path / "repository", templates=TEMPLATES)


def test_every_long_step_is_reported(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    titles: list[str] = []

    @contextmanager
    def report(title: str) -> Iterator[None]:
        titles.append(title)
        yield

    build(checkpoints, tmp_path / "repository", report=report)
    assert titles[0] == "reading checkpoints"
    assert titles[1:4] == ["building target", "building drafter_law", "building drafter_poems"]


def test_router_table_keeps_cosines() -> None:
    random = np.random.default_rng(0)
    # Embeddings that are mostly low-dimensional, as trained ones are.
    embeddings = random.standard_normal((500, 40)) @ random.standard_normal((40, 192)) + 0.05 * random.standard_normal((500, 192))
    table, report = project(embeddings.astype(np.float32), "digest")
    assert table.shape == (500, 64)
    assert table.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    assert report.cosine_correlation > 0.999
    assert report.cosine_mean_abs_error < 0.01
    assert report.kept_variance > 0.99


def test_small_embeddings_keep_their_dimensions() -> None:
    embeddings = np.random.default_rng(0).standard_normal((50, 16), dtype=np.float32)
    embeddings[7] = 0
    table, report = project(embeddings, "digest")
    assert table.shape == (50, 16)
    assert not table[7].any()
    rows = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(table @ table.T, rows @ rows.T, atol=1e-5)
    assert report.cosine_mean_abs_error < 1e-5


def test_the_repository_of_a_node_holds_only_its_drafters(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    whole, node = tmp_path / "whole", tmp_path / "node"
    build(checkpoints, whole, slots=3)
    outcomes = build(checkpoints, node, slots=3, only=["poems"])
    assert outcomes == [StepOutcome("drafter_poems", True)]
    written = {file.relative_to(node) for file in node.rglob("*") if file.is_file()}
    assert written == {file.relative_to(whole) for file in (whole / "drafter_poems").rglob("*") if file.is_file()}
    for file in written - {Path("drafter_poems/1/model.onnx")}:
        assert (node / file).read_bytes() == (whole / file).read_bytes()
    assert build(checkpoints, node, slots=3, only=["poems"]) == [StepOutcome("drafter_poems", False)]


def test_a_node_is_built_of_known_drafters_and_elsewhere(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="INVALID_ARG field=only value=jokes allowed=law, poems"):
        build(checkpoints, tmp_path / "node", only=["jokes"])
    with pytest.raises(BuildError, match="INVALID_ARG field=output"):
        build(checkpoints, TEMPLATES, only=["law"])
    assert not (tmp_path / "node").exists()
