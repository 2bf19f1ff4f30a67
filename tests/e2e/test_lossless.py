"""The user gets the target's text: with and without speculation, in any company, greedy and sampled."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drafthouse.launcher import TritonServer
from drafthouse_client import AsyncClient, Completion, GenerateOptions
from e2e.repositories import build_test_repository
from e2e.support import free_port_config

PROMPTS = [
    json.loads(line)["prompt"] for line in (Path(__file__).parents[1] / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
]
MAX_CONCURRENCY = 8
OFF, ON = 0, 5
GREEDY = GenerateOptions(max_tokens=24, num_draft_tokens=OFF)
SAMPLED = replace(GREEDY, temperature=0.8, top_p=0.95)

Job = tuple[str, GenerateOptions]


def jobs(options: GenerateOptions, num_draft_tokens: int) -> list[Job]:
    """One job per prompt; sampled ones get a seed of their own that does not depend on the run."""
    return [
        (prompt, replace(options, num_draft_tokens=num_draft_tokens, seed=1000 + i if options.temperature else None))
        for i, prompt in enumerate(PROMPTS)
    ]


async def run_all(grpc_address: str, work: list[Job], order_seed: int) -> list[Completion]:
    """All jobs in a random order in groups of 1 to 8 at a time; results in the order of `work`."""
    order = random.Random(order_seed)
    indices = list(range(len(work)))
    order.shuffle(indices)
    results: dict[int, Completion] = {}
    async with AsyncClient(grpc_address) as client:
        while indices:
            group = [indices.pop() for _ in range(min(order.randint(1, MAX_CONCURRENCY), len(indices)))]
            completions = await asyncio.gather(*(client.generate(*work[i]) for i in group))
            results.update(zip(group, completions, strict=True))
    return [results[i] for i in range(len(work))]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose weights have this precision: the shared one, or one of its own."""
    if request.param == "fp32":
        yield request.getfixturevalue("server").grpc_address
        return
    repository = build_test_repository(tmp_path_factory.mktemp("int8"), "int8")
    with TritonServer(free_port_config(repository, log_dir=tmp_path_factory.mktemp("log"))) as server:
        yield server.grpc_address


def test_there_are_enough_prompts() -> None:
    assert len(PROMPTS) >= 60


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_same_text_with_and_without_drafts_in_any_company(address: str, options: GenerateOptions) -> None:
    without = asyncio.run(run_all(address, jobs(options, OFF), order_seed=1))
    with_drafts = asyncio.run(run_all(address, jobs(options, ON), order_seed=2))
    again = asyncio.run(run_all(address, jobs(options, ON), order_seed=3))
    for prompt, a, b, c in zip(PROMPTS, without, with_drafts, again, strict=True):
        assert a.output_ids == b.output_ids == c.output_ids, prompt
        assert a.text == b.text == c.text
        assert a.finish_reason == b.finish_reason == c.finish_reason


def test_drafts_were_really_accepted(address: str) -> None:
    results = asyncio.run(run_all(address, jobs(GREEDY, ON), order_seed=4))
    assert sum(source >= 0 for result in results for source in result.token_sources) > 0
    assert all(source < 0 for result in asyncio.run(run_all(address, jobs(GREEDY, OFF)[:4], 5)) for source in result.token_sources)


def test_another_seed_gives_another_text(address: str) -> None:
    base = jobs(SAMPLED, ON)[:8]
    other = [(prompt, replace(options, seed=(options.seed or 0) + 10_000)) for prompt, options in base]
    first = asyncio.run(run_all(address, base, order_seed=6))
    second = asyncio.run(run_all(address, other, order_seed=6))
    assert any(a.output_ids != b.output_ids for a, b in zip(first, second, strict=True))


def test_a_mixed_batch_of_greedy_sampled_drafted_and_not(address: str) -> None:
    kinds = (jobs(GREEDY, OFF), jobs(GREEDY, ON), jobs(SAMPLED, OFF), jobs(SAMPLED, ON))
    work = [job for group in zip(*kinds, strict=True) for job in group][::3]
    crowd = asyncio.run(run_all(address, work, order_seed=7))
    for job, result in list(zip(work, crowd, strict=True))[::8]:
        (alone,) = asyncio.run(run_all(address, [job], order_seed=0))
        assert alone.output_ids == result.output_ids
