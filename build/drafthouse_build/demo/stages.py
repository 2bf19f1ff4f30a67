"""The stages of a run, each resumable: target, sets, drafters, acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from drafthouse_build.demo.acceptance import measure
from drafthouse_build.demo.config import BASE, DRAFTERS, EXPERTS, GENERAL, PhaseSettings
from drafthouse_build.demo.drafter import new_drafter, train_drafter_phase
from drafthouse_build.demo.loop import PhaseResult, maybe_compile
from drafthouse_build.demo.model import Llama, attend_once
from drafthouse_build.demo.rollouts import Rollout, choose_greedily, choose_sampled, document_starts, generate
from drafthouse_build.demo.target import train_target
from drafthouse_build.demo.teacher import DistillationSet, build_set
from drafthouse_build.demo.tokenizer import TokenIds
from drafthouse_build.demo.workspace import Workspace

# How the prompts of a domain end, where that is more natural than a random cut.
_PROMPT_MARKERS = {"math": "\nAnswer:"}
_ACCEPTANCE_STREAM = 9
SET_KINDS = ("corpus", "outputs", "held_out")


def run_target(work: Workspace, compiled: bool) -> None:
    """Train the target and write its folder."""
    if work.result("target"):
        return
    model, result = train_target(work.preset, work.train, work.held_out, work.state_path("target"), work.console, compiled)
    work.save_model("target", model)
    work.save_result("target", result)


def run_sets(work: Workspace, compiled: bool) -> None:
    """Write the distillation sets: corpus, the target's own outputs, and outputs on held-out starts."""
    settings = work.preset.rollouts
    missing = [domain for domain in EXPERTS if not all(work.set_path(domain, kind).exists() for kind in SET_KINDS)]
    if not missing:
        return
    target = work.load_model("target").eval()
    for domain in missing:
        _build_corpus_set(work, target, domain)
        _build_output_set(work, target, domain, "outputs", work.train[domain], settings.tokens_per_domain, compiled)
        _build_output_set(work, target, domain, "held_out", work.held_out[domain], work.preset.held_out_tokens_per_domain, compiled)


def _build_corpus_set(work: Workspace, target: Llama, domain: str) -> None:
    path = work.set_path(domain, "corpus")
    if path.exists():
        return
    documents = work.train[domain]
    texts, tokens = [], 0
    for index in _rng(work, domain, 0).permutation(len(documents)):
        texts.append(documents[index])
        tokens += len(documents[index])
        if tokens >= work.preset.corpus_tokens_per_domain:
            break
    _store_set(work, target, domain, "corpus", texts, [work.preset.rollouts.label_weight_corpus] * len(texts))


def _build_output_set(
    work: Workspace, target: Llama, domain: str, kind: str, documents: Sequence[TokenIds], wanted: int, compiled: bool
) -> None:
    if work.set_path(domain, kind).exists():
        return
    settings = work.preset.rollouts
    rollouts, weights = _rollouts(work, target, domain, kind, documents, wanted, compiled)
    tokens = sum(len(rollout.output) for rollout in rollouts)
    ended = np.mean([len(rollout.output) < settings.max_new_tokens for rollout in rollouts])
    work.console.log(f"{domain}: {len(rollouts)} {kind} of {tokens} tokens, {ended:.0%} ended by themselves")
    _store_set(work, target, domain, kind, [rollout.tokens for rollout in rollouts], weights)


def _rollouts(
    work: Workspace, target: Llama, domain: str, kind: str, documents: Sequence[TokenIds], wanted: int, compiled: bool
) -> tuple[list[Rollout], list[float]]:
    """Outputs of the target in bfloat16, half of them greedy, and the label weight of each."""
    settings = work.preset.rollouts
    rng = _rng(work, domain, 1 + SET_KINDS.index(kind))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    attend = maybe_compile(attend_once, compiled, dynamic=True)
    fast = work.load_model("target").to(torch.bfloat16).eval()
    ways = (
        (choose_greedily, settings.label_weight_greedy),
        (choose_sampled(settings.sampled_temperature, generator), settings.label_weight_sampled),
    )
    count = min(settings.batch_size, max(4, wanted // settings.max_new_tokens))
    results: list[Rollout] = []
    weights: list[float] = []
    tokens = 0
    with work.console.status(f"{domain}: generating {kind}"):
        while tokens < wanted:
            for choose, weight in ways:
                prompts = _starts(work, domain, documents, count, rng)
                part = generate(fast, prompts, settings.max_new_tokens, choose, count, attend)
                results.extend(part)
                weights.extend([weight] * len(part))
                tokens += sum(len(rollout.output) for rollout in part)
    return results, weights


def _starts(work: Workspace, domain: str, documents: Sequence[TokenIds], count: int, rng: np.random.Generator) -> list[TokenIds]:
    settings = work.preset.rollouts
    text = _PROMPT_MARKERS.get(domain)
    marker = np.array(work.tokenizer.encode(text).ids, dtype=np.int32) if text else None
    return document_starts(documents, count, settings.prompt_tokens_min, settings.prompt_tokens_max, rng, marker)


def _store_set(work: Workspace, target: Llama, domain: str, kind: str, texts: Sequence[TokenIds], weights: Sequence[float]) -> None:
    with work.console.status(f"{domain}: the target's predictions on {kind}"):
        data = build_set(target, texts, weights, work.preset.row_tokens, work.preset.rollouts.top_logits)
    data.save(work.set_path(domain, kind))
    work.console.log(f"{domain}: {kind} set of {data.num_tokens} tokens in {len(data)} rows")


def run_base(work: Workspace, compiled: bool) -> None:
    """Train what all drafters start from: on the corpora, then on the target's outputs, of all domains."""
    if work.result(f"{BASE}_on_policy"):
        return
    seed = work.preset.seed + len(DRAFTERS)
    model = new_drafter(work.preset.drafter_shape, work.load_model("target"), seed)
    phases = (("corpus", "distill", work.preset.distill), ("outputs", "on_policy", work.preset.on_policy))
    for kind, label, phase in phases:
        key = f"{BASE}_{label}"
        result = _train_on(work, key, model, EXPERTS, kind, phase, seed, compiled)
        if kind == "outputs":
            work.save_model(BASE, model)
        work.save_result(key, result)


def run_drafter(work: Workspace, name: str, compiled: bool) -> None:
    """Branch one drafter off the base, on the target's outputs, and write its folder.

    This is Branch-Train-Merge (Li et al. 2022, arXiv 2208.03306, section 3) without the merge: a branch keeps
    what is common to all domains and spends its capacity on its own. ``general`` goes on with the outputs of
    all domains and gets as many steps and tokens as all experts together.
    """
    key = f"{name}_branch"
    if work.result(key):
        return
    domains = EXPERTS if name == GENERAL else (name,)
    model = work.load_model(BASE)
    seed = work.preset.seed + 2 * len(DRAFTERS) + DRAFTERS.index(name)
    result = _train_on(work, key, model, domains, "outputs", work.preset.branch.times(len(domains)), seed, compiled)
    work.save_model(name, model)
    work.save_result(key, result)


def _train_on(
    work: Workspace, key: str, model: Llama, domains: Sequence[str], kind: str, phase: PhaseSettings, seed: int, compiled: bool
) -> PhaseResult:
    data = DistillationSet.join([DistillationSet.load(work.set_path(domain, kind)) for domain in domains])
    held_out = {domain: DistillationSet.load(work.set_path(domain, "held_out")) for domain in domains}
    return train_drafter_phase(key, model, data, held_out, phase, seed, work.state_path(key), work.console, compiled)


def run_acceptance(work: Workspace) -> None:
    """Measure all drafters on held-out starts of all domains, in float32, and write ``acceptance.json``."""
    path = work.out / "acceptance.json"
    if path.exists():
        return
    target = work.load_model("target").eval()
    drafters = {name: work.load_model(name).eval() for name in DRAFTERS}
    prompts = {
        domain: _starts(work, domain, work.held_out[domain], work.preset.acceptance.num_prompts, _rng(work, domain, _ACCEPTANCE_STREAM))
        for domain in EXPERTS
    }
    with work.console.status("measuring acceptance"):
        matrix = measure(target, drafters, prompts, work.preset.acceptance, work.preset.seed)
    work.write_json(path, matrix)


def _rng(work: Workspace, domain: str, stream: int) -> np.random.Generator:
    return np.random.default_rng([work.preset.seed, EXPERTS.index(domain), stream])
