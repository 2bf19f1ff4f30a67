"""Writes tests/data/recorded_routing.npz: what the demo target wrote, and what every demo drafter would have proposed there.

    python tests/record_routing.py REPOSITORY OUT.npz [--prompts FILE.jsonl]

REPOSITORY is a built model repository of the demo models (`drafthouse build`); its engines run in this process, in float32. The
target continues each prompt, once greedily and once at temperature 0.8. Every drafter then reads every text and names, at each
position, the token it would put next, with the noise that the target had.

That is all a replay of routing needs: in a round, the drafters' tokens count only as far as the ones before them were the
target's, and there they depend on the target's text alone. `fakes/routing_replay.py` reads the file.

Texts that change their field are put together from two of the greedy ones: left to itself, this small target soon falls back
into what it wrote before. What it "chose" in the second half is therefore what it had chosen there without the first half.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import Engine, StepCall, StepRow
from drafthouse.engine.engine import load_engine
from drafthouse.engine.options import EngineOptions
from drafthouse.pipeline.tokenizer import FileTokenizer
from drafthouse.routing.registry import TOKEN_EMBEDDINGS_FILE

PROMPTS = Path(__file__).parents[1] / "loadtest" / "drafthouse_load" / "prompts.jsonl"
DRAFTERS = ("code", "docs", "drama", "general", "math")
FIELDS = ("code", "math", "drama", "docs")
NUM_TOKENS = 160  # written by the target
NUM_TOKENS_BEFORE = 64  # written before the field changes
NUM_CHANGES = 2  # texts per ordered pair of fields
SAMPLED = 0.8  # temperature
UID = 1


@dataclass(frozen=True)
class Stream:
    """A text, and where its parts lie."""

    fields: tuple[str, str]  # first field, second field ("" = none)
    tokens: list[int]
    starts: tuple[int, int, int]  # prompt length; where the second field begins, where its prompt ends (-1 = there is none)
    sampling: SamplingParams


def continuation(target: Engine, prompt: Sequence[int], sampling: SamplingParams) -> list[int]:
    """The prompt with the target's own text after it, up to an end token (left out)."""
    written, sent = list(prompt), 0
    while len(written) < len(prompt) + NUM_TOKENS and written[-1] not in sampling.end_ids:
        part = written[sent : sent + target.limits.max_step_tokens]
        sent += len(part)
        is_last = sent == len(written)
        row = StepRow(UID, sent - len(part), np.array(part, np.int32), len(part), None, sampling)
        (answer,) = target.step(StepCall([row], int(is_last))).rows
        written += answer.sampled[: int(is_last)].tolist()
    target.release([UID])
    return written[:-1] if written[-1] in sampling.end_ids else written


def proposals(drafter: Engine, stream: Stream) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """(token, probability in 1/255) that the drafter would put in place of each token; -1, 0 for the first."""
    num_tokens, chunk = len(stream.tokens), drafter.limits.max_step_tokens
    ids, probs = np.full(num_tokens, -1, np.int16), np.zeros(num_tokens, np.uint8)
    for start in range(0, num_tokens - 1, chunk):
        part = np.array(stream.tokens[start : start + chunk], np.int32)
        (answer,) = drafter.step(StepCall([StepRow(UID, start, part, 1, None, stream.sampling)], 1, 1, return_logprobs=False)).rows
        count = min(len(part), num_tokens - 1 - start)
        ids[start + 1 : start + 1 + count] = answer.sampled[:count]
        probs[start + 1 : start + 1 + count] = np.rint(answer.candidate_probs[:count, 0] * 255)
        drafter.step(StepCall([StepRow(UID, start, part, len(part))], 0, return_logprobs=False))  # commits them for the next part
    drafter.release([UID])
    return ids, probs


def prompt_logprob(drafter: Engine, tokens: Sequence[int]) -> float:
    """Mean nats per token with which the drafter expects ``tokens``."""
    total, num_scored = 0.0, 0
    for start in range(0, len(tokens), drafter.limits.max_step_tokens):
        part = np.array(tokens[start : start + drafter.limits.max_step_tokens], np.int32)
        call = StepCall([StepRow(UID, start, part, len(part))], 0, return_logprobs=False, return_prompt_logprob=True)
        (answer,) = drafter.step(call).rows
        total, num_scored = total + answer.prompt_logprob, num_scored + answer.num_scored
    drafter.release([UID])
    return total / max(num_scored, 1)


def streams(target: Engine, tokenizer: FileTokenizer, prompts: dict[str, list[str]]) -> list[Stream]:
    """Every prompt continued greedily and with noise, and for each pair of fields some texts that change from one to the other."""
    greedy = SamplingParams(end_ids=tokenizer.eos_ids)
    single: dict[str, list[Stream]] = {name: [] for name in prompts}
    sampled: list[Stream] = []
    for name, texts in prompts.items():
        for seed, text in enumerate(texts):
            tokens = list(tokenizer.encode(text))
            noisy = replace(greedy, temperature=SAMPLED, seed=seed)
            single[name].append(Stream((name, ""), continuation(target, tokens, greedy), (len(tokens), -1, -1), greedy))
            sampled.append(Stream((name, ""), continuation(target, tokens, noisy), (len(tokens), -1, -1), noisy))
    pairs = [(before, after) for before in prompts for after in prompts if before != after]
    changing = [
        _joined(single[before][(number + index) % len(single[before])], single[after][(number + index) % len(single[after])], tokenizer)
        for number, (before, after) in enumerate(pairs)
        for index in range(NUM_CHANGES)
    ]
    return [*(stream for name in prompts for stream in single[name]), *sampled, *changing]


def _joined(before: Stream, after: Stream, tokenizer: FileTokenizer) -> Stream:
    head = before.tokens[: before.starts[0] + NUM_TOKENS_BEFORE]
    change = [*head, *tokenizer.encode("\n\n")]
    starts = (before.starts[0], len(head), len(change) + after.starts[0])
    return Stream((before.fields[0], after.fields[0]), change + after.tokens, starts, before.sampling)


def record(repository: Path, prompts: dict[str, list[str]]) -> dict[str, NDArray[np.generic]]:
    """All arrays of the file."""
    options = EngineOptions(slots=1, num_threads=1, calibration_ms=0)
    engines = {name: load_engine(repository / name / "1", options) for name in ("target", *(f"drafter_{name}" for name in DRAFTERS))}
    tokenizer = FileTokenizer(repository / "target" / "1" / "tokenizer.json", (0,))
    recorded = streams(engines["target"], tokenizer, prompts)
    drafters = [engines[f"drafter_{name}"] for name in DRAFTERS]
    proposed = [[proposals(drafter, stream) for stream in recorded] for drafter in drafters]
    arrays: dict[str, NDArray[np.generic]] = {
        "drafters": np.array(DRAFTERS),
        "fields": np.array([stream.fields for stream in recorded]),
        "starts": np.array([stream.starts for stream in recorded], np.int16),
        "is_sampled": np.array([stream.sampling.temperature > 0 for stream in recorded]),
        "lengths": np.array([len(stream.tokens) for stream in recorded], np.int16),
        "tokens": np.concatenate([np.array(stream.tokens, np.int16) for stream in recorded]),
        "proposals": np.stack([np.concatenate([ids for ids, _ in row]) for row in proposed]),
        "probs": np.stack([np.concatenate([probs for _, probs in row]) for row in proposed]),
        # Up to the end of the first prompt, and up to where the second one ends.
        "prompt_logprob": np.array([_logprobs(drafters, stream) for stream in recorded], np.float32),
    }
    return arrays | _embeddings(repository, np.concatenate((arrays["tokens"], arrays["proposals"].ravel())))


def _logprobs(drafters: Sequence[Engine], stream: Stream) -> list[list[float]]:
    ends = (stream.starts[0], stream.starts[2] if stream.starts[2] > 0 else stream.starts[0])
    return [[prompt_logprob(drafter, stream.tokens[:end]) for drafter in drafters] for end in ends]


def _embeddings(repository: Path, used: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """The router's table of the tokens that occur, its unit rows in steps of 1/127."""
    table = np.load(repository / "router" / "1" / TOKEN_EMBEDDINGS_FILE).astype(np.float32)
    ids = np.unique(used)
    ids = ids[ids >= 0]
    rows = table[ids] / np.maximum(np.linalg.norm(table[ids], axis=1, keepdims=True), 1e-12)
    scale = 127 / np.abs(rows).max(axis=1, keepdims=True)
    return {
        "embedding_ids": ids.astype(np.int16),
        "embeddings": np.rint(rows * scale).astype(np.int8),  # a row's length does not matter to its cosines
        "vocab_size": np.array(len(table)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    args = parser.parse_args()
    prompts: dict[str, list[str]] = {name: [] for name in FIELDS}
    for line in args.prompts.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        prompts[entry["domain"]].append(entry["prompt"])
    np.savez_compressed(args.out, **record(args.repository, prompts))  # type: ignore[arg-type]  # savez takes any array


if __name__ == "__main__":
    main()
