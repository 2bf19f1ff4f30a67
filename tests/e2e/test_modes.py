"""One text in every mode, and in CoSine without any one of its parts: the target's own, greedy and sampled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from drafthouse.launcher import TritonServer
from drafthouse_client import Client, Completion, GenerateOptions
from drafthouse_load.stats import read_when_idle
from e2e.support import eventually

DOMAINS = ("code", "math", "drama", "docs")
CONCURRENCY = 4
FEW, ALL = 3, 16  # prompts of each domain
MAX_TOKENS = {FEW: 12, ALL: 32}

SWITCHES = ("routing", "fusion", "overlap", "adaptation", "tetris")
REFERENCE = {"mode": "target_only"}
WAYS: Mapping[str, Mapping[str, str]] = {
    **{mode: {"mode": mode} for mode in ("vanilla", "specinfer", "pipeline_only", "cosine")},
    **{f"cosine without {switch}": {switch: "off"} for switch in SWITCHES},
    "cosine always overlapped": {"overlap": "on"},
}

Outputs = list[tuple[tuple[int, ...], str, str | None]]  # ids, text, why it ended


def domain_prompts(num_per_domain: int) -> list[str]:
    """So many prompts of each domain, in turn."""
    lines = (Path(__file__).parents[1] / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    by_domain = [[row["prompt"] for row in rows if row["domain"] == domain][:num_per_domain] for domain in DOMAINS]
    return [prompt for group in zip(*by_domain, strict=True) for prompt in group]


def outputs(server: TritonServer, num_per_domain: int) -> Outputs:
    """What the server says to every prompt, greedy and sampled, several at a time."""
    with Client(server.grpc_address) as client, ThreadPoolExecutor(CONCURRENCY) as pool:

        def ask(job: tuple[int, str, GenerateOptions]) -> Completion:
            index, prompt, options = job
            return client.generate(prompt, replace(options, seed=1_000 + index) if options.temperature else options)

        greedy = GenerateOptions(max_tokens=MAX_TOKENS[num_per_domain])
        kinds = (greedy, replace(greedy, temperature=0.8, top_p=0.95))
        work = [(index, prompt, options) for index, prompt in enumerate(domain_prompts(num_per_domain)) for options in kinds]
        return [(answer.output_ids, answer.text, answer.finish_reason) for answer in pool.map(ask, work)]


def switch_to(server: TritonServer, way: Mapping[str, str]) -> None:
    """Loads `cosine` with these parameters; an override stays until the next one, so every switch is named."""
    server.load_model("cosine", {"parameters": {"mode": "cosine", "rehearsal": "off", **dict.fromkeys(SWITCHES, "mode"), **way}})


@pytest.fixture(scope="module")
def expected(server: TritonServer) -> Iterator[Callable[[int], Outputs]]:
    """What the target says alone, by the number of prompts. Afterwards the server is as it was."""

    @cache
    def alone(num_per_domain: int) -> Outputs:
        switch_to(server, REFERENCE)
        return outputs(server, num_per_domain)

    yield alone
    server.load_model("cosine")


@pytest.mark.parametrize("num_per_domain", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_the_target_s_own(server: TritonServer, expected: Callable[[int], Outputs], way: str, num_per_domain: int) -> None:
    texts = expected(num_per_domain)
    switch_to(server, WAYS[way])
    spoken = outputs(server, num_per_domain)
    different = [f"{text!r} became {other!r}" for text, other in zip(texts, spoken, strict=True) if text != other]
    assert different == []
    with Client(server.grpc_address) as client:
        stats = read_when_idle(client)
        assert stats.mode == WAYS[way].get("mode", "cosine")
        assert 0 < stats.counters.accepted < stats.counters.drafted
        assert eventually(lambda: read_when_idle(client).leaked_slots == {})
