"""Training of the demo models: corpora, packing, generation, losses, acceptance, and all stages on a tiny corpus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from drafthouse_build.demo.acceptance import count_rounds, drafter_matches, target_outputs  # noqa: E402
from drafthouse_build.demo.batches import IGNORED_LABEL, MixedBatches, pack_rows  # noqa: E402
from drafthouse_build.demo.config import (  # noqa: E402
    DRAFTERS,
    EOS_ID,
    SMOKE,
    AcceptanceSettings,
    ModelShape,
    OptimiserSettings,
    PhaseSettings,
)
from drafthouse_build.demo.corpus import load_corpora  # noqa: E402
from drafthouse_build.demo.drafter import distillation_loss  # noqa: E402
from drafthouse_build.demo.loop import run_phase  # noqa: E402
from drafthouse_build.demo.model import Llama, attend_once, load_pretrained, save_pretrained  # noqa: E402
from drafthouse_build.demo.optimiser import orthogonalise  # noqa: E402
from drafthouse_build.demo.rollouts import choose_greedily, document_starts, generate  # noqa: E402
from drafthouse_build.demo.teacher import as_tensors, build_set  # noqa: E402
from drafthouse_build.demo.tokenizer import encode_documents, save_tokenizer, train_tokenizer  # noqa: E402
from drafthouse_build.demo.train import main  # noqa: E402

pytestmark = pytest.mark.torch

SHAPE = ModelShape(num_layers=2, hidden_size=32, intermediate_size=48, head_dim=16, vocab_size=64, max_positions=64)
ACCEPTANCE = AcceptanceSettings(num_prompts=5, max_new_tokens=12, bootstrap_samples=10)
OPTIMISER = OptimiserSettings(matrix_lr=0.02, vector_lr=0.01, warmup_steps=2, decay_fraction=0.5)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(seed: int, scale: float = 4.0) -> Llama:
    """A model with weights large enough that its outputs vary."""
    torch.manual_seed(seed)
    model = Llama(SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
    return model


def random_prompts(seed: int, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, SHAPE.vocab_size, size=length).astype(np.int32) for length in lengths]


def write_corpora(folder: Path) -> tuple[Path, Path]:
    """A tiny data folder and a tiny "standard library"."""
    data, library = folder / "data", folder / "library"
    data.mkdir()
    (library / "test").mkdir(parents=True)
    problems = [
        {"question": f"Ann has {n} pens and buys {n + 2}. How many?", "answer": f"{n}+{n + 2}=<<{n}>>{2 * n + 2}\n#### {2 * n + 2}"}
        for n in range(200)
    ]
    (data / "gsm8k_train.jsonl").write_text("\n".join(map(json.dumps, problems)), encoding="utf-8")
    speeches = [f"KING {n % 7}:\nMy lord, the {n}th day is come, and we must speak of it again." for n in range(900)]
    (data / "tinyshakespeare.txt").write_text("\n\n".join(speeches), encoding="utf-8")
    docstring = '"""Return the sum of left, right and {n}; they may be any numbers."""'
    body = "def add_{n}(left, right):\n    " + docstring + "\n    return left + right + {n}\n\n"
    functions = [body.format(n=n) for n in range(200)]
    (library / "sums.py").write_text("".join(functions), encoding="utf-8")
    (library / "test" / "hidden.py").write_text("def never_seen(value):\n    return value * 31337 + value\n", encoding="utf-8")
    return data, library


def test_corpora_split_without_overlap_and_without_marks_docstrings_or_tests(tmp_path: Path) -> None:
    corpora = load_corpora(*write_corpora(tmp_path))
    for corpus in corpora.values():
        assert corpus.held_out
        assert not set(corpus.train) & set(corpus.held_out)
    code = corpora["code"].train + corpora["code"].held_out
    assert len(code) == 200
    assert all(text.startswith("def add_") and '"""' not in text for text in code)
    assert all("<<" not in text and "\nAnswer: " in text for text in corpora["math"].train)
    assert all(text.startswith('"""Return the sum') for text in corpora["docs"].train)
    assert load_corpora(*[tmp_path / "data", tmp_path / "library"]) == corpora


def test_tokenizer_has_the_end_token_at_zero_and_loads_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = "def f(x):\n    return x  # naïve ☂\n"
    tokenizer = train_tokenizer([text * 20], vocab_size=300)
    save_tokenizer(tokenizer, tmp_path, max_positions=64)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (ids,) = encode_documents(tokenizer, [text])
    assert ids[-1] == EOS_ID == loaded.eos_token_id
    assert loaded(text)["input_ids"] == ids[:-1].tolist()
    assert loaded.decode(ids[:-1]) == text


def test_packing_keeps_every_piece_whole_and_every_token_once() -> None:
    pieces = random_prompts(3, [5, 16, 9, 7, 3, 11, 16, 2, 1, 8])
    rows = pack_rows(pieces, 16)
    assert max(map(len, rows)) <= 16
    assert len(rows) == 5
    assert sorted(np.concatenate(rows).tolist()) == sorted(np.concatenate(pieces).tolist())
    texts = [" ".join(map(str, row)) for row in rows]
    assert all(any(" ".join(map(str, piece)) in text for text in texts) for piece in pieces)


def test_batches_follow_the_mixture_and_repeat_for_a_seed() -> None:
    documents = {"code": [np.full(10, 1, np.int32)], "docs": [np.full(7, 2, np.int32)]}

    def batches() -> MixedBatches:
        return MixedBatches(documents, {"code": 0.75, "docs": 0.25, "math": 9.0}, 256, 32, 64, 8, seed=5)

    steps = [batch for batch, _ in zip(batches(), range(40), strict=False)]
    inputs = np.concatenate([step[0].ravel() for step in steps])
    assert (inputs == 1).sum() / (inputs != EOS_ID).sum() == pytest.approx(0.75, abs=0.05)
    assert {step[0].shape for step in steps} == {(8, 32), (4, 64)}
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(steps, batches(), strict=False))
    first_inputs, first_labels = steps[0]
    kept = first_labels[:, 1:] != IGNORED_LABEL
    assert np.array_equal(first_labels[:, :-1][kept], first_inputs[:, 1:][kept])


def test_saved_model_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_pretrained(random_model(1), tmp_path)
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.from_numpy(np.stack(random_prompts(1, [20, 20]))).long()
    with torch.inference_mode():
        assert torch.allclose(load_pretrained(tmp_path)(tokens), reference(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("attend", [None, attend_once])
def test_generation_in_a_ragged_batch_equals_a_loop_without_cache(attend: object) -> None:
    model = random_model(2)
    prompts = random_prompts(2, [3, 9, 4, 6, 9])
    rollouts = generate(model, prompts, 12, choose_greedily, 3, attend)
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        text = prompt.tolist()
        while len(text) < len(prompt) + 12 and (len(text) == len(prompt) or text[-1] != EOS_ID):
            with torch.inference_mode():
                text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        assert rollout.tokens.tolist() == text
        assert rollout.prompt_length == len(prompt)


def test_prompts_end_at_the_marker_or_in_the_first_half() -> None:
    documents = [np.array([5, 6, 7, 8, 9, *range(10, 40)], np.int32)] * 4
    prompts = document_starts(documents, 200, 3, 12, np.random.default_rng(0), np.array([8, 9], np.int32))
    lengths = np.array([len(prompt) for prompt in prompts])
    assert lengths.min() >= 3
    assert lengths.max() <= 12
    assert 0.6 < (lengths == 5).mean() < 0.95


def test_divergence_is_zero_for_the_teacher_itself_and_equals_the_full_sum() -> None:
    teacher, student = random_model(4, scale=2.0), random_model(5, scale=2.0)
    texts = random_prompts(6, [30, 17, 12, 25])
    data = build_set(teacher, texts, [0.0] * 4, row_tokens=32, top_logits=SHAPE.vocab_size)
    tensors = as_tensors(data)
    with torch.inference_mode():
        assert float(distillation_loss(teacher, *tensors)) == pytest.approx(0.0, abs=5e-3)
        inputs, valid = tensors[0], tensors[2]
        log_p, log_q = (torch.log_softmax(model(inputs), dim=-1) for model in (teacher, student))
        expected = (log_p.exp() * (log_p - log_q)).sum(dim=-1)[valid].mean()
        assert float(distillation_loss(student, *tensors)) == pytest.approx(float(expected), rel=0.05)


def test_muon_directions_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for size in ((3, 32, 48), (3, 48, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(size)).float())
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.4


def test_an_interrupted_phase_ends_like_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr("drafthouse_build.demo.loop._SAVE_EVERY_STEPS", 3)
    tokens = torch.from_numpy(np.stack(random_prompts(9, [16] * 8))).long()
    calls = 0

    def train(name: str, interrupt_after: int | None) -> dict[str, torch.Tensor]:
        nonlocal calls
        torch.manual_seed(0)
        model, calls = Llama(SHAPE), 0

        def loss_of(index: int) -> tuple[torch.Tensor, int]:
            nonlocal calls
            calls += 1
            if calls == interrupt_after:
                raise KeyboardInterrupt
            logits = model(tokens[index : index + 2, :-1])
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[index : index + 2, 1:].flatten()), 30

        phase = PhaseSettings(num_steps=7, tokens_per_step=30, optimiser=OPTIMISER)
        run_phase(name, model, range(7), loss_of, dict, phase, tmp_path / f"{name}.pt", Console(quiet=True))
        return dict(model.state_dict())

    whole = train("whole", None)
    with pytest.raises(KeyboardInterrupt):
        train("resumed", 5)
    resumed = train("resumed", None)
    assert calls == 7 - 3
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_loss_that_is_not_finite_stops_the_phase(tmp_path: Path) -> None:
    from rich.console import Console

    model = Llama(SHAPE)
    phase = PhaseSettings(num_steps=2, tokens_per_step=1, optimiser=OPTIMISER)
    with pytest.raises(FloatingPointError, match="field=loss value=nan"):
        run_phase(
            "bad",
            model,
            range(2),
            lambda _: (model.norm.weight.sum() * float("nan"), 1),
            dict,
            phase,
            tmp_path / "s.pt",
            Console(quiet=True),
        )


@pytest.mark.parametrize(
    ("matches", "draft_tokens", "rounds"),
    [("", 3, 0), ("1111", 3, 1), ("11111", 3, 2), ("0000", 3, 4), ("1101110", 5, 2), ("1011", 7, 2)],
)
def test_rounds_are_counted_like_the_verifier_does(matches: str, draft_tokens: int, rounds: int) -> None:
    assert count_rounds(np.array([c == "1" for c in matches], dtype=np.bool_), draft_tokens) == rounds


@pytest.mark.parametrize("mode", ["greedy", "sampled_shared_noise"])
def test_the_target_as_its_own_drafter_is_always_right_unless_its_noise_differs(mode: str) -> None:
    target = random_model(7)
    prompts = random_prompts(8, [4, 7, 3, 5, 6])
    outputs = target_outputs(target, prompts, mode != "greedy", ACCEPTANCE, seed=1)
    assert all(own.all() for own in drafter_matches(target, outputs, mode, ACCEPTANCE, seed=1))
    if mode != "greedy":
        own_noise = drafter_matches(target, outputs, "sampled_own_noise", ACCEPTANCE, seed=1)
        assert not all(own.all() for own in own_noise)


@pytest.mark.slow
def test_all_stages_run_on_a_tiny_corpus_and_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    data, library = write_corpora(tmp_path)
    out = tmp_path / "out"
    arguments = ["--smoke", "--data", str(data), "--stdlib", str(library), "--out", str(out), "--threads", "1", "--no-compile"]
    assert main(arguments) == 0
    matrix = json.loads((out / "acceptance.json").read_text(encoding="utf-8"))
    assert len(matrix["cells"]) == len(DRAFTERS) * 4 * 3 * len(SMOKE.acceptance.draft_lengths)
    assert all(cell["low"] <= cell["tokens_per_round"] <= cell["high"] <= cell["draft_tokens"] + 1 for cell in matrix["cells"])
    general, expert = (json.loads((out / "results" / f"{name}_branch.json").read_text()) for name in ("general", "code"))
    assert general["steps"] == 4 * expert["steps"]
    assert "| `general` |" in (out / "README.md").read_text(encoding="utf-8")
    weights = {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in ("target", *DRAFTERS)}
    assert main(arguments) == 0
    assert weights == {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in ("target", *DRAFTERS)}
