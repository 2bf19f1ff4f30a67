"""Replays routing on recorded engine outputs: real router, real `RouteStage`, no engine and no server.

`record_routing.py` made the recording. A round of a request: the drafters that have weight write on from the committed text, at
most `NUM_DRAFT_TOKENS` each; what the target accepts is the longest of these texts as far as it is the target's own (`tree`), or
the most confident one where they part (`chain`, fused once per round). The verdict is reported as the pipeline reports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drafthouse.core.sampling_params import NO_TOKEN
from drafthouse.pipeline.config import PipelineConfig
from drafthouse.pipeline.stage_route import RouteStage
from drafthouse.pipeline.state import Feedback, RequestState, new_state
from drafthouse.routing.contract import Router
from drafthouse.routing.scores import normalise_rows
from fakes.pipeline_harness import make_request
from fakes.pipeline_sink import FakeSink

RECORDING = Path(__file__).parents[1] / "data" / "recorded_routing.npz"
NUM_DRAFT_TOKENS = 5


@dataclass(frozen=True)
class Text:
    """One recorded text, from the first token of its first prompt on."""

    fields: tuple[str, str]  # first field, second field ("" = none)
    is_sampled: bool  # written at temperature 0.8, otherwise greedily
    tokens: NDArray[np.int32]  # [N]
    proposals: NDArray[np.int32]  # [D, N], what each drafter would put in place of each token
    probs: NDArray[np.float32]  # [D, N]
    prompt_len: int
    change_at: int  # where the second field begins; -1 = nowhere
    second_prompt_end: int  # where the second field's prompt ends
    prompt_logprob: NDArray[np.float32]  # [2, D], mean nats per token of the prompt, and of everything up to `second_prompt_end`


class Recording:
    """The whole file."""

    def __init__(self, file: Path = RECORDING) -> None:
        data = np.load(file)
        self.drafters: tuple[str, ...] = tuple(data["drafters"].tolist())
        ends = np.cumsum(data["lengths"].astype(np.int64))
        arrays = [(data["tokens"], np.int32), (data["proposals"], np.int32), (data["probs"].astype(np.float32) / 255, np.float32)]
        tokens, proposals, probs = ([part.astype(dtype) for part in np.split(array, ends[:-1], axis=-1)] for array, dtype in arrays)
        self._embeddings = data["vocab_size"].item(), data["embedding_ids"], data["embeddings"]
        columns = (
            data["fields"].tolist(),
            data["is_sampled"].tolist(),
            tokens,
            proposals,
            probs,
            data["starts"].tolist(),
            data["prompt_logprob"],
        )
        self.texts = [
            Text((first, second), is_sampled, *arrays, *starts, logprob)
            for (first, second), is_sampled, *arrays, starts, logprob in zip(*columns, strict=True)
        ]

    @cached_property
    def token_embeddings(self) -> NDArray[np.float32]:
        """The router's table, with zeros for tokens that do not occur: [vocab, dim]."""
        vocab_size, ids, rows = self._embeddings
        table = np.zeros((vocab_size, rows.shape[1]), np.float32)
        table[ids] = rows
        return normalise_rows(table)

    def one_field(self, name: str, is_sampled: bool = False) -> list[Text]:
        """Texts of this field alone."""
        return [text for text in self.texts if text.fields == (name, "") and text.is_sampled == is_sampled]

    def changing(self) -> list[Text]:
        """Texts whose field changes."""
        return [text for text in self.texts if text.fields[1]]


@dataclass
class Round:
    """What happened in one round."""

    position: int  # committed tokens before it
    weights: NDArray[np.float32]  # [D]
    scores: NDArray[np.float32]  # [D]
    num_accepted: int
    feedback: Feedback

    def took_part(self, drafter: int) -> bool:
        return bool(self.weights[drafter] > 0)


@dataclass
class Replay:
    """One request while it is replayed."""

    text: Text
    state: RequestState
    position: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.position >= len(self.text.tokens)

    def play(self, is_tree: bool) -> None:
        """One draft round and its verification."""
        assert self.state.weights is not None
        num_accepted, feedback = verified(self.text, self.position, self.state.weights, is_tree)
        self.rounds.append(Round(self.position, self.state.weights, self.state.scores, num_accepted, feedback))
        self.position += num_accepted + 1


def verified(text: Text, position: int, weights: NDArray[np.float32], is_tree: bool) -> tuple[int, Feedback]:
    """How many draft tokens the target accepts, and what the router will hear of it."""
    num_drafted = min(NUM_DRAFT_TOKENS, len(text.tokens) - position)
    own, wanted = text.proposals[:, position : position + num_drafted], text.tokens[position : position + num_drafted]
    probs = text.probs[:, position : position + num_drafted]
    proposals, shown = np.full(own.shape, NO_TOKEN, np.int32), np.zeros(own.shape, np.float32)
    target = np.full(num_drafted, NO_TOKEN, np.int32)
    writing = np.flatnonzero(weights > 0)
    num_accepted = 0
    for step in range(num_drafted):
        target[step] = wanted[step]
        proposals[writing, step], shown[writing, step] = own[writing, step], probs[writing, step]
        trunk = wanted[step] if is_tree else own[writing[np.argmax((weights * probs[:, step])[writing])], step]
        writing = writing[own[writing, step] == trunk]  # who had written something else has no say in what follows
        if trunk != wanted[step] or not len(writing):
            break
        num_accepted += 1
    return num_accepted, Feedback(proposals, shown, target)


async def replay(
    recording: Recording,
    texts: Sequence[Text],
    router: Router,
    *,
    from_second_prompt: bool = False,
    without: Sequence[str] = (),
    is_tree: bool = True,
    max_drafters: int = 0,
) -> list[Replay]:
    """All texts as requests of one batch, round by round, as the pipeline's stages call the router: its answer is one round late.

    Args:
        from_second_prompt: the prompt reaches to the second field's, so that only the second text is written.
        without: drafters that no request may use.
        max_drafters: what the pipeline asks for; 0 = nothing.
    """
    stage = RouteStage(router, PipelineConfig().route_every)
    stage.max_drafters = max_drafters
    replays = [_new_replay(recording, text, from_second_prompt, without) for text in texts]
    await stage.first([one.state for one in replays])
    while running := [one for one in replays if not one.is_over]:
        for one in running:
            one.play(is_tree)
        await stage.refresh([one.state for one in running])
        for one in running:
            one.state.feedback.append(one.rounds[-1].feedback)
    return replays


def _new_replay(recording: Recording, text: Text, from_second_prompt: bool, without: Sequence[str]) -> Replay:
    prompt_len = text.second_prompt_end if from_second_prompt else text.prompt_len
    usable = tuple(name for name in recording.drafters if name not in without)
    request = make_request(text.tokens[:prompt_len].tolist(), len(text.tokens))
    state = new_state(request, FakeSink(), 0, recording.drafters, usable, lambda token: b"")
    state.prompt_logprob[:] = text.prompt_logprob[int(from_second_prompt)]
    state.num_scored[:] = 1
    return Replay(text, state, prompt_len + 1)  # prefill gave the first token
