"""What `drafthouse demo` measures and says, against an in-process server."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tritonclient.grpc import service_pb2 as pb

from drafthouse_client import Client
from drafthouse_client.built import engine_manifest, tokenizer_file
from drafthouse_client.demo import about_the_models, main, measure, result_table, tokens_per_round
from fakes.triton_grpc import FakeTriton, final, response, serving

QUIET = Console(file=io.StringIO())
PROMPTS = {"code": ("a", "b"), "math": ("c",)}


def answer(inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
    """Four tokens: one by one without speculation, in one round with it."""
    sources = (-1, -1, -1, -1) if inputs.get("num_draft_tokens") == [0] else (-1, 0, 0, -1)
    yield response(text_output=f"<{inputs['text_input'][0]}>", output_ids=(1, 2, 3, 4), token_sources=sources, num_output_tokens=4)
    yield final()


def lossy(inputs: dict[str, list[object]]) -> Iterator[pb.ModelStreamInferResponse]:
    """Another text for one prompt when speculation is on."""
    if inputs["text_input"] == ["b"] and "num_draft_tokens" not in inputs:
        inputs = inputs | {"text_input": ["other"]}
    yield from answer(inputs)


def test_every_prompt_runs_off_on_on_off() -> None:
    fake = FakeTriton(answer)
    with serving(fake) as url, Client(url) as client:
        results = measure(client, PROMPTS, 4, QUIET)
    asked = [(seen["text_input"][0], "num_draft_tokens" in seen) for seen in fake.seen]
    assert asked == [(prompt, off) for prompt in "abc" for off in (True, False, False, True)]
    assert [len(results["code"].off), len(results["code"].on), len(results["math"].on)] == [4, 4, 2]
    assert tokens_per_round(results["code"].on) == 3.0
    assert tokens_per_round(results["code"].off) == 1.0
    assert all(result.identical for result in results.values())


def test_a_text_that_differs_is_said_in_its_domain() -> None:
    with serving(FakeTriton(lossy)) as url, Client(url) as client:
        results = measure(client, PROMPTS, 4, QUIET)
    assert not results["code"].identical
    assert results["math"].identical
    shown = io.StringIO()
    Console(file=shown, width=80).print(result_table(results))
    assert "identical text" in shown.getvalue(), "the headings fit a terminal of 80 columns"
    rows = {line.split()[0]: line for line in shown.getvalue().splitlines() if "×" in line}
    assert "NO" in rows["code"]
    assert "yes" in rows["math"]
    assert "NO" in rows["all"]


def test_the_models_are_described_from_their_manifests(tmp_path: Path) -> None:
    for model, num_params in (("target", 90_000_000), ("drafter_code", 1_000_000), ("drafter_math", 2_700_000)):
        folder = tmp_path / model / "1"
        folder.mkdir(parents=True)
        (folder / "engine.json").write_text(json.dumps({"num_params": num_params, "precision": "int8"}), encoding="utf-8")
    text = about_the_models(tmp_path, ("code", "math"))
    assert "90 M parameters, int8; drafters: code 1.0 M, math 2.7 M." in text
    assert "function-preserving expansion" in text
    assert about_the_models(tmp_path, ("code", "docs")).startswith("Engine sizes are unknown")
    assert engine_manifest(tmp_path, "drafter_docs") == {}
    assert tokenizer_file(tmp_path) is None


def test_a_demo_without_models_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-repository", str(tmp_path)]) == 1
    assert "INVALID_ARG field=--model-repository" in capsys.readouterr().err
