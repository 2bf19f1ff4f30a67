"""The acceptance matrix: how many tokens a verification emits for every drafter on every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drafthouse_build.demo.config import EXPERTS, GENERAL, AcceptanceSettings
from drafthouse_build.demo.model import Llama
from drafthouse_build.demo.rollouts import Chooser, Rollout, choose_greedily, generate
from drafthouse_build.demo.tokenizer import TokenIds

GREEDY = "greedy"
SHARED_NOISE = "sampled_shared_noise"
OWN_NOISE = "sampled_own_noise"
MODES = (GREEDY, SHARED_NOISE, OWN_NOISE)

_TARGET_STREAM = 0
_DRAFTER_STREAM = 1
_CONFIDENCE = 0.95

Matches = list[npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Cell:
    """Tokens emitted per verification with the 95 % interval of a bootstrap over prompts, and its counts."""

    drafter: str
    domain: str
    mode: str
    draft_tokens: int
    tokens_per_round: float
    low: float
    high: float
    prompts: int
    rounds: int
    tokens: int


@dataclass(frozen=True)
class Margin:
    """How much better an expert is than ``general`` on its own field: a ratio with its paired 95 % interval."""

    expert: str
    mode: str
    draft_tokens: int
    ratio: float
    low: float
    high: float


def gumbel_noise(seed: int, stream: int, prompt: int, steps: int, vocab_size: int) -> npt.NDArray[np.float32]:
    """Noise [steps, vocabulary] of one prompt, a pure function of its arguments (Philox counters)."""
    bits = np.random.Generator(np.random.Philox(key=[seed, stream * 1_000_003 + prompt]))
    return bits.gumbel(size=(steps, vocab_size)).astype(np.float32)


def choose_with_noise(temperature: float, noise: Sequence[npt.NDArray[np.float32]], prompt_lengths: Sequence[int]) -> Chooser:
    """A chooser for :func:`generate`: argmax(logits / T + Gumbel noise), with the n-th vector of noise for the n-th
    output token of a prompt, however long the prompt is."""

    def choose(logits: Tensor, prompts: Tensor, position: int) -> Tensor:
        # Rows still in their prompt, or ended, are asked too; what they choose is not used.
        steps = [min(max(position - prompt_lengths[row], 0), len(noise[row]) - 1) for row in prompts.tolist()]
        vectors = np.stack([noise[row][step] for row, step in zip(prompts.tolist(), steps, strict=True)])
        return (logits / temperature + torch.from_numpy(vectors)).argmax(dim=-1)

    return choose


def target_outputs(target: Llama, prompts: Sequence[TokenIds], sampled: bool, settings: AcceptanceSettings, seed: int) -> list[Rollout]:
    """Outputs of the target for ``prompts``: greedy, or sampled with the target's own noise stream."""
    if not sampled:
        return generate(target, prompts, settings.max_new_tokens, choose_greedily, len(prompts))
    noise = [gumbel_noise(seed, _TARGET_STREAM, index, settings.max_new_tokens, target.shape.vocab_size) for index in range(len(prompts))]
    choose = choose_with_noise(settings.temperature, noise, [len(prompt) for prompt in prompts])
    return generate(target, prompts, settings.max_new_tokens, choose, len(prompts))


def drafter_matches(drafter: Llama, outputs: Sequence[Rollout], mode: str, settings: AcceptanceSettings, seed: int) -> Matches:
    """For every output token: would the drafter, given the text before it, have proposed it?

    A drafted chain counts only up to its first miss, and up to there its prefix is the target's text. So
    one pass over the finished text answers for every possible start of a round.
    """
    matches = []
    for index, rollout in enumerate(outputs):
        inputs = torch.from_numpy(rollout.tokens[:-1].astype(np.int64)).unsqueeze(0)
        with torch.inference_mode():
            logits = drafter(inputs)[0, rollout.prompt_length - 1 :].float()
        if mode != GREEDY:
            stream = _TARGET_STREAM if mode == SHARED_NOISE else _DRAFTER_STREAM
            noise = gumbel_noise(seed, stream, index, settings.max_new_tokens, logits.shape[1])
            logits = logits / settings.temperature + torch.from_numpy(noise[: len(logits)])
        matches.append(logits.argmax(dim=-1).numpy() == rollout.output)
    return matches


def count_rounds(matches: npt.NDArray[np.bool_], draft_tokens: int) -> int:
    """Verifications needed for one output: each emits the accepted run of at most ``draft_tokens`` and one more."""
    position = rounds = 0
    while position < len(matches):
        window = matches[position : position + draft_tokens]
        accepted = len(window) if window.all() else int(window.argmin())
        position += accepted + 1
        rounds += 1
    return rounds


def measure(
    target: Llama,
    drafters: Mapping[str, Llama],
    prompts: Mapping[str, Sequence[TokenIds]],
    settings: AcceptanceSettings,
    seed: int,
) -> dict[str, list[dict[str, object]]]:
    """All cells of the matrix and the margins of the experts over ``general``, ready for JSON."""
    cells: list[Cell] = []
    margins: list[Margin] = []
    for domain, starts in prompts.items():
        greedy = target_outputs(target, starts, False, settings, seed)
        sampled = target_outputs(target, starts, True, settings, seed)
        for mode in MODES:
            outputs = greedy if mode == GREEDY else sampled
            matches = {name: drafter_matches(model, outputs, mode, settings, seed) for name, model in drafters.items()}
            for length in settings.draft_lengths:
                rounds = {name: _rounds(own, length) for name, own in matches.items()}
                tokens = np.array([len(rollout.output) for rollout in outputs])
                resamples = _resamples(len(outputs), settings.bootstrap_samples, seed)
                cells.extend(_cell(name, domain, mode, length, tokens, own, resamples) for name, own in rounds.items())
                if domain in EXPERTS and domain in rounds and GENERAL in rounds:
                    margins.append(_margin(domain, mode, length, rounds, resamples))
    return {"cells": [asdict(cell) for cell in cells], "margins": [asdict(margin) for margin in margins]}


def _rounds(matches: Matches, draft_tokens: int) -> npt.NDArray[np.int64]:
    return np.array([count_rounds(own, draft_tokens) for own in matches], dtype=np.int64)


def _resamples(prompts: int, samples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, prompts, size=(samples, prompts))


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _cell(
    drafter: str,
    domain: str,
    mode: str,
    length: int,
    tokens: npt.NDArray[np.int64],
    rounds: npt.NDArray[np.int64],
    resamples: npt.NDArray[np.int64],
) -> Cell:
    low, high = _interval(tokens[resamples].sum(axis=1) / rounds[resamples].sum(axis=1))
    total_tokens, total_rounds = int(tokens.sum()), int(rounds.sum())
    return Cell(drafter, domain, mode, length, total_tokens / total_rounds, low, high, len(tokens), total_rounds, total_tokens)


def _margin(domain: str, mode: str, length: int, rounds: Mapping[str, npt.NDArray[np.int64]], resamples: npt.NDArray[np.int64]) -> Margin:
    """Both drafters emit the same text, so the ratio of tokens per round is the inverse ratio of rounds."""
    own, general = rounds[domain], rounds[GENERAL]
    low, high = _interval(general[resamples].sum(axis=1) / own[resamples].sum(axis=1))
    return Margin(domain, mode, length, float(general.sum() / own.sum()), low, high)
