"""The model card and the acceptance tables, written from the figures of a run and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from drafthouse_build.demo.acceptance import GREEDY, MODES, OWN_NOISE, SHARED_NOISE
from drafthouse_build.demo.config import BASE, DRAFTERS, EXPERTS, GENERAL
from drafthouse_build.demo.workspace import Workspace

_MODE_TITLES = {
    GREEDY: "Greedy",
    SHARED_NOISE: "Temperature {t}, drafter and target share their Gumbel noise",
    OWN_NOISE: "Temperature {t}, drafter with noise of its own",
}
_GOAL_DRAFT_TOKENS = 5
_GOAL_TOKENS_PER_ROUND = 3.0
_GOAL_MARGIN = 1.15

_DATA_TABLE = """| corpus | source | licence |
|---|---|---|
| `code` | functions and methods of the Python standard library, without docstrings | PSF-2.0 |
| `docs` | docstrings of the Python standard library and `pydoc_data` topics | PSF-2.0 |
| `math` | GSM8K, training split (openai/grade-school-math) | MIT |
| `drama` | Tiny Shakespeare (karpathy/char-rnn) | text in the public domain |
"""

_HOW_MEASURED = """Tokens emitted per verification of the target, the bonus token included, for {prompts} held-out document
starts per domain and outputs of at most {tokens} tokens that the target generated for them (float32). A round accepts the
drafted tokens that equal the target's own next tokens and emits one more; the last round of an output counts like any
other. In brackets: 95 % interval, bootstrap over prompts. Bold: a drafter on its own field. Counts of rounds and tokens
are in `build/demo_models/acceptance.json`.
"""

_GOALS = """Goals: at least {tokens:.1f} tokens per round at {drafted} draft tokens, greedy, and at least {margin:.2f} times `general`,
which had the data, tokens, steps and on-policy training of all experts together (all five continue from one common base).
"""

_INTRODUCTION = """One target and five drafters for Drafthouse, trained from nothing by `drafthouse train-demo` on a CPU. All
are Llama models in ordinary Hugging Face folders (bfloat16 safetensors, tied embeddings) with one byte-level BPE tokenizer
of {vocab_size} tokens. Documents, and therefore outputs, end with token 0 (`<|eos|>`).
"""

_RECIPE = """1. Target: {target_steps} steps of {target_tokens:,} tokens; rows of {row_tokens} tokens packed by best fit,
   every {long_every}th step rows of {long_tokens}; shares of the domains: {shares}.
   Muon for the matrices of the layers, AdamW for the rest;
   warm-up, plateau and linear decay to zero; bfloat16 autocast.
2. Base of all drafters (not shipped), on the data of all domains. First {distill_steps} steps of at most {distill_tokens:,} tokens on
   {corpus_tokens:,} tokens of each corpus: divergence from the target's distribution (its {top} most likely tokens, the rest
   as one bucket) plus {corpus_weight} × cross-entropy. The embeddings start as the target's, projected on their main directions.
   Then, on-policy, {policy_steps:,} steps on texts with at least {rollout_tokens:,} tokens per domain that the target wrote after starts
   of training documents: half greedy (plus {greedy_weight} × cross-entropy), half at temperature {temperature}.
3. Experts: each continues from the base for {branch_steps:,} steps on the target's outputs in its own domain (Branch-Train-Merge,
   Li et al. 2022, arXiv 2208.03306, without the merge).
4. `general` continues from the base for {experts} × {branch_steps:,} steps on the outputs of all domains, in proportion to their size:
   counting the common base once on both sides, it gets the data, tokens and steps of all experts together.
"""

_LOSSES = """Held-out loss of the target (cross-entropy, nats per token) and of the drafters on the target's outputs for
held-out document starts (divergence from the target, nats per token), and the CPU time of each phase divided by its threads:
"""

_REPRODUCE = """```
drafthouse train-demo --data DIR --out OUT
```

`DIR` holds `gsm8k_train.jsonl` and `tinyshakespeare.txt`; the other two corpora come from the running Python's library (3.11
here). About two hours on two cores; a stopped run continues. Training needs the extra `train`.
"""

_CAVEATS = """- Toy models: they show how speculation behaves, they do not know anything. Sums are mostly wrong, code mostly does not run.
- The standard library repeats itself; documents are deduplicated exactly (up to white space), not approximately, so a held-out
  function may have a near twin in training.
- GSM8K's training split is training data here: results on it are no evaluation of mathematics.
- The splits depend on the version of the Python whose library is read.
- A prompt that ends in the middle of white space (`"def f(x):\\n"`) looks like the end of a document to the tokenizer and may
  be answered with the end token at once; end it before the line break.
"""


def write_report(work: Workspace) -> None:
    """Write ``README.md`` (model card) and ``acceptance.md`` into the output folder of a finished run."""
    matrix: dict[str, Any] = json.loads((work.out / "acceptance.json").read_text(encoding="utf-8"))
    (work.out / "acceptance.md").write_text(acceptance_page(matrix, work), encoding="utf-8")
    (work.out / "README.md").write_text(model_card(matrix, work), encoding="utf-8")


def acceptance_page(matrix: dict[str, Any], work: Workspace) -> str:
    """The acceptance matrix as a Markdown page."""
    settings = work.preset.acceptance
    parts = [
        "# Acceptance matrix of the demo models\n",
        _HOW_MEASURED.format(prompts=settings.num_prompts, tokens=settings.max_new_tokens),
        "Written by `drafthouse train-demo --stage report`.\n",
        "## Goals\n",
        goals_table(matrix),
        _GOALS.format(tokens=_GOAL_TOKENS_PER_ROUND, drafted=_GOAL_DRAFT_TOKENS, margin=_GOAL_MARGIN),
    ]
    for mode in MODES:
        parts.append(f"## {_MODE_TITLES[mode].format(t=settings.temperature)}\n")
        for length in settings.draft_lengths:
            parts.append(f"{length} draft tokens:\n")
            parts.append(_matrix_table(matrix, mode, length))
    parts.append("## Experts against `general` on their own field\n")
    parts.append(_margins_table(matrix))
    return "\n".join(parts)


def goals_table(matrix: dict[str, Any]) -> str:
    """For every expert: tokens per round and margin over ``general``, and whether each goal is reached."""
    rows = []
    for expert in EXPERTS:
        cell = _find(matrix["cells"], drafter=expert, domain=expert, mode=GREEDY, draft_tokens=_GOAL_DRAFT_TOKENS)
        margin = _find(matrix["margins"], expert=expert, mode=GREEDY, draft_tokens=_GOAL_DRAFT_TOKENS)
        rows.append(
            (
                f"`{expert}`",
                _value(cell, "tokens_per_round"),
                _verdict(cell["tokens_per_round"], _GOAL_TOKENS_PER_ROUND),
                _value(margin, "ratio"),
                _verdict(margin["ratio"], _GOAL_MARGIN),
            )
        )
    header = ("expert", "tokens per round", f"≥ {_GOAL_TOKENS_PER_ROUND:.1f}", f"times `{GENERAL}`", f"≥ {_GOAL_MARGIN:.2f}")
    return _table(header, rows)


def _matrix_table(matrix: dict[str, Any], mode: str, length: int) -> str:
    rows = []
    for drafter in DRAFTERS:
        row = [f"`{drafter}`"]
        for domain in EXPERTS:
            cell = _find(matrix["cells"], drafter=drafter, domain=domain, mode=mode, draft_tokens=length)
            text = _value(cell, "tokens_per_round")
            row.append(f"**{text}**" if drafter == domain else text)
        rows.append(row)
    return _table(("drafter", *EXPERTS), rows)


def _margins_table(matrix: dict[str, Any]) -> str:
    rows = [(f"`{m['expert']}`", m["mode"].replace("_", " "), str(m["draft_tokens"]), _value(m, "ratio")) for m in matrix["margins"]]
    return _table(("expert", "sampling", "draft tokens", "ratio"), rows)


def model_card(matrix: dict[str, Any], work: Workspace) -> str:
    """The model card as Markdown."""
    sections = (
        "# Demo models\n",
        _INTRODUCTION.format(vocab_size=work.preset.target_shape.vocab_size),
        "## Data and licences\n",
        _DATA_TABLE,
        "After deduplication; 5 % of the documents, chosen by a hash of their text, are held out.\n",
        _corpus_table(work),
        "The weights are published under the licence of this repository; the licences above are those of the texts.\n",
        "## Models\n",
        _models_table(work),
        "## Recipe\n",
        _recipe(work),
        *_notes(work),
        "To reproduce:\n",
        _REPRODUCE,
        "## Results\n",
        _LOSSES,
        _losses_table(work),
        "Tokens per round at 5 draft tokens, greedy, on held-out document starts (the whole matrix: `docs/acceptance.md`):\n",
        goals_table(matrix),
        "## Caveats\n",
        _CAVEATS,
    )
    return "\n".join(sections)


def _corpus_table(work: Workspace) -> str:
    rows = []
    for domain in EXPERTS:
        corpus = work.corpora[domain]
        tokens = sum(len(ids) for ids in work.train[domain])
        rows.append((f"`{domain}`", f"{len(corpus.train):,}", f"{tokens:,}", f"{len(corpus.held_out):,}"))
    return _table(("corpus", "training documents", "training tokens", "held-out documents"), rows)


def _models_table(work: Workspace) -> str:
    rows = []
    for name in ("target", *DRAFTERS):
        shape = work.preset.target_shape if name == "target" else work.preset.drafter_shape
        model = work.load_model(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        size = (work.out / name / "model.safetensors").stat().st_size / 1e6
        rows.append((f"`{name}`", f"{shape.num_layers} × {shape.hidden_size}", f"{count / 1e6:.2f} M", f"{size:.1f} MB"))
    return _table(("model", "layers × width", "parameters", "weights"), rows)


def _recipe(work: Workspace) -> str:
    preset, rollouts = work.preset, work.preset.rollouts
    return _RECIPE.format(
        target_steps=preset.target.num_steps,
        target_tokens=preset.target.tokens_per_step,
        row_tokens=preset.row_tokens,
        long_every=preset.long_row_every,
        long_tokens=preset.target_shape.max_positions,
        shares=", ".join(f"{name} {share:.0%}" for name, share in preset.mixture.items()),
        distill_steps=preset.distill.num_steps,
        distill_tokens=preset.distill.tokens_per_step,
        corpus_tokens=preset.corpus_tokens_per_domain,
        top=rollouts.top_logits,
        corpus_weight=rollouts.label_weight_corpus,
        policy_steps=preset.on_policy.num_steps,
        branch_steps=preset.branch.num_steps,
        rollout_tokens=rollouts.tokens_per_domain,
        greedy_weight=rollouts.label_weight_greedy,
        temperature=rollouts.sampled_temperature,
        experts=len(EXPERTS),
    )


def _notes(work: Workspace) -> list[str]:
    """What whoever ran the training wrote into ``notes.md`` of the output folder, if anything."""
    path = work.out / "notes.md"
    return [path.read_text(encoding="utf-8")] if path.exists() else []


def _losses_table(work: Workspace) -> str:
    phases = ["target", f"{BASE}_distill", f"{BASE}_on_policy", *(f"{name}_branch" for name in DRAFTERS)]
    rows = []
    for phase in phases:
        result = work.result(phase) or {}
        losses = ", ".join(f"{domain} {loss:.3f}" for domain, loss in result["held_out_loss"].items())
        rows.append((phase.replace("_", " "), f"{result['steps']:,}", f"{result['tokens']:,}", losses, f"{result['seconds'] / 60:.1f} min"))
    return _table(("phase", "steps", "tokens", "held-out loss", "time"), rows)


def _find(records: Iterable[dict[str, Any]], **keys: object) -> dict[str, Any]:
    return next(record for record in records if all(record[key] == value for key, value in keys.items()))


def _value(record: dict[str, Any], key: str) -> str:
    return f"{record[key]:.2f} [{record['low']:.2f}, {record['high']:.2f}]"


def _verdict(value: float, goal: float) -> str:
    return "yes" if value >= goal else "no"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines.extend("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join(lines) + "\n"
