"""Does routing find the expert of a text's field, and find the next one when the field changes? On recorded engine outputs.

The recording holds what the real demo models wrote and proposed (`record_routing.py`); router and `RouteStage` are the real ones. The
prompts are not those on which the router's options were chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from drafthouse.routing.contract import RouteResult, RouteRow
from drafthouse.routing.cosine import CosineRouter
from fakes.routing_replay import Recording, Replay, Text, replay

FIELDS = ("code", "math", "drama", "docs")
SETTLED = 8  # rounds after which the expert is expected to be found
POOLS = [(), ("general",)]  # drafters left out
DRAFTING = pytest.mark.parametrize("is_tree", [True, False], ids=["tree", "chain"])
POOL = pytest.mark.parametrize("without", POOLS, ids=["all", "no general"])


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording()


def played(recording: Recording, texts: Sequence[Text], **options: object) -> list[Replay]:
    return asyncio.run(replay(recording, texts, CosineRouter(recording.token_embeddings), **options))  # type: ignore[arg-type]


def share_of_rounds(replays: Sequence[Replay], drafter: int) -> float:
    return float(np.mean([one.took_part(drafter) for run in replays for one in run.rounds[SETTLED:]]))


@DRAFTING
@POOL
@pytest.mark.parametrize("name", FIELDS)
def test_the_expert_of_a_text_s_field_takes_part(recording: Recording, name: str, without: tuple[str, ...], is_tree: bool) -> None:
    replays = played(recording, recording.one_field(name), without=without, is_tree=is_tree)
    expert = recording.drafters.index(name)
    assert sum(len(run.rounds) > SETTLED for run in replays) >= 7  # there is something to judge
    assert share_of_rounds(replays, expert) >= 0.9
    others = [recording.drafters.index(other) for other in FIELDS if other != name]
    assert np.mean([share_of_rounds(replays, other) for other in others]) < 0.65  # not because everybody does
    best = [one.scores[expert] >= one.scores[others].max() for run in replays for one in run.rounds[SETTLED:]]
    assert np.mean(best) >= 0.8


@DRAFTING
@POOL
def test_also_where_the_target_samples(recording: Recording, without: tuple[str, ...], is_tree: bool) -> None:
    """At temperature 0.8 rounds accept less, and requests explore more."""
    shares = []
    for name in FIELDS:
        replays = played(recording, recording.one_field(name, is_sampled=True), without=without, is_tree=is_tree)
        shares.append(share_of_rounds(replays, recording.drafters.index(name)))
    assert np.mean(shares) >= 0.9


@DRAFTING
@POOL
@pytest.mark.parametrize("in_prompt", [True, False], ids=["in the prompt", "in the text"])
def test_when_the_field_changes_the_next_expert_comes(
    recording: Recording, in_prompt: bool, without: tuple[str, ...], is_tree: bool
) -> None:
    replays = played(recording, recording.changing(), from_second_prompt=in_prompt, without=without, is_tree=is_tree)
    took_part, stayed = [], []
    for run in replays:
        expert = recording.drafters.index(run.text.fields[1])
        after = [one for one in run.rounds if one.position >= run.text.change_at]
        if len(after) >= 2 * SETTLED:  # long enough to judge
            took_part.append(any(one.took_part(expert) for one in after[:SETTLED]))
            stayed.append(np.mean([one.took_part(expert) for one in after[SETTLED : 2 * SETTLED]]) > 0.5)
    assert len(took_part) >= 18
    assert all(took_part)
    assert np.mean(stayed) >= 0.9


def test_a_score_says_how_often_a_drafter_is_right(recording: Recording) -> None:
    """The score of a drafter, whether it took part or not, rises with the share of its next tokens that are the target's."""
    scores, hits = [], []
    for run in played(recording, [text for text in recording.texts if not text.fields[1]]):
        for one in run.rounds:
            scores.append(one.scores)
            hits.append(run.text.proposals[:, one.position] == run.text.tokens[one.position])
    order = np.argsort(np.concatenate(scores))
    rates = [part.mean() for part in np.array_split(np.concatenate(hits)[order], 4)]
    assert rates == sorted(rates)
    assert rates[-1] - rates[0] > 0.2


class Alternating:
    """Two router instances that take turns."""

    def __init__(self, recording: Recording) -> None:
        self._routers = [CosineRouter(recording.token_embeddings) for _ in range(2)]

    async def route(self, rows: Sequence[RouteRow]) -> Sequence[RouteResult]:
        self._routers.reverse()
        return await self._routers[0].route(rows)


def test_two_instances_in_turns_decide_like_one(recording: Recording) -> None:
    texts = recording.changing()
    alone = played(recording, texts)
    together = asyncio.run(replay(recording, texts, Alternating(recording)))
    for one, other in zip(alone, together, strict=True):
        assert [round_.weights.tolist() for round_ in one.rounds] == [round_.weights.tolist() for round_ in other.rounds]


def test_the_pipeline_may_ask_for_fewer_drafters_and_every_one_of_them_is_worth_tokens(recording: Recording) -> None:
    tokens_per_round = []
    for wanted in (1, 2, 3, 5):
        replays = played(recording, [text for text in recording.texts if not text.fields[1]], max_drafters=wanted)
        rounds = [one for run in replays for one in run.rounds]
        assert max(np.count_nonzero(one.weights) for one in rounds) == wanted
        tokens_per_round.append(1 + float(np.mean([one.num_accepted for one in rounds])))
    assert tokens_per_round == sorted(tokens_per_round)
