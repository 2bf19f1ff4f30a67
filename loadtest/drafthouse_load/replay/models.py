"""The models of a repository, loaded once for any number of replays."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drafthouse.core.errors import invalid
from drafthouse.core.sampling_params import SamplingParams
from drafthouse.engine.contract import EngineLimits, RowStatus, StepCall, StepRow
from drafthouse.engine.engine import ModelEngine, load_engine
from drafthouse.engine.manifest import EngineManifest, read_manifest
from drafthouse.engine.options import EngineOptions
from drafthouse.pipeline.tokenizer import FileTokenizer
from drafthouse.routing.contract import Router
from drafthouse.routing.registry import DEFAULT_POLICY, load_router
from drafthouse_load.replay.engine import EngineShape
from drafthouse_load.replay.outputs import DrafterOutputs, ReferenceText

VERSION = "1"
TARGET = "target"
_TEXTS_AT_ONCE = 8  # rows per call while the reference texts are written
_DRAFTER_SLOTS = 16  # texts a recorded drafter holds at a time
_PARAMETER = re.compile(r'key:\s*"([^"]*)"\s*,?\s*value:?\s*\{\s*string_value:\s*"([^"]*)"')


def read_parameters(config_file: Path) -> dict[str, str]:
    """The parameters in a config.pbtxt, by name. Raises ClientError when the file cannot be read."""
    try:
        return dict(_PARAMETER.findall(config_file.read_text(encoding="utf-8")))
    except OSError as error:
        raise invalid("--repository", str(config_file), "a model repository with this file") from error


@dataclass(frozen=True, slots=True)
class ReplayModel:
    """One engine of the repository."""

    folder: Path
    manifest: EngineManifest
    slots: int
    num_threads: int

    @property
    def shape(self) -> EngineShape:
        """What a replayed engine needs to know."""
        manifest = self.manifest
        limits = EngineLimits(manifest.max_step_tokens, manifest.usable_context, manifest.vocab_size, self.slots)
        return EngineShape(limits, manifest.context_len)

    def load(self, slots: int | None = None, num_threads: int | None = None) -> ModelEngine:
        """The real engine; no time is spent on measuring it at load."""
        return load_engine(self.folder, EngineOptions(slots or self.slots, num_threads or self.num_threads, calibration_ms=0))


class ReplayModels:
    """Target, drafters, router and tokenizer of one repository. Texts and drafters' answers are kept between replays."""

    def __init__(self, repository: Path, target_repository: Path | None = None) -> None:
        """``target_repository`` holds a target that writes the same texts faster.

        Raises ClientError naming what is missing.
        """
        self.repository = repository
        self.parameters = read_parameters(repository / "cosine" / "config.pbtxt")
        self.drafter_names = tuple(name.strip() for name in self.parameters["drafters"].split(",") if name.strip())
        self.target = _model(repository / TARGET)
        self.drafters = {name: _model(repository / f"drafter_{name}") for name in self.drafter_names}
        self.tokenizer = FileTokenizer(repository / "cosine" / VERSION / "tokenizer.json", self.target.manifest.eos_token_ids)
        self._writer = _model((target_repository or repository) / TARGET)
        self._texts: dict[tuple[tuple[int, ...], int], ReferenceText] = {}
        self._outputs: dict[str, DrafterOutputs] = {}

    def router(self, policy: str | None = None, options: Mapping[str, object] | None = None) -> Router:
        """The repository's router, or one with another policy or other options."""
        parameters = read_parameters(self.repository / "router" / "config.pbtxt")
        named = parameters.pop("policy", DEFAULT_POLICY)
        own = {name: _number(value) for name, value in parameters.items()} if policy is None else {}
        return load_router(self.repository / "router" / VERSION, policy or named, {**own, **(options or {})})

    def outputs(self, drafter: str) -> DrafterOutputs:
        """What a drafter answers; its engine is loaded when first asked for."""
        if drafter not in self._outputs:
            self._outputs[drafter] = DrafterOutputs(self.drafters[drafter].load(slots=_DRAFTER_SLOTS, num_threads=1))
        return self._outputs[drafter]

    def texts(self, prompts: Sequence[str], max_tokens: int) -> list[ReferenceText]:
        """What the target writes after each prompt, greedy, up to its end token or ``max_tokens``: by the real engine, once."""
        keys = [(tuple(self.tokenizer.encode(prompt)), max_tokens) for prompt in prompts]
        missing = list(dict.fromkeys(key for key in keys if key not in self._texts))
        if missing:
            engine = self._writer.load(slots=_TEXTS_AT_ONCE)
            for start in range(0, len(missing), _TEXTS_AT_ONCE):
                batch = missing[start : start + _TEXTS_AT_ONCE]
                outputs = write_texts(engine, [prompt_ids for prompt_ids, _ in batch], max_tokens, self.tokenizer.eos_ids)
                for key, output in zip(batch, outputs, strict=True):
                    self._texts[key] = ReferenceText(len(self._texts) + 1, np.array([*key[0], *output], np.int32), len(key[0]), max_tokens)
        return [self._texts[key] for key in keys]


def write_texts(engine: ModelEngine, prompts: Sequence[Sequence[int]], max_tokens: int, end_ids: Sequence[int]) -> list[list[int]]:
    """The engine's own text after each prompt, greedy, one token per call; as many prompts as the engine has slots."""
    sampling = SamplingParams(end_ids=tuple(end_ids))
    tokens = [list(prompt) for prompt in prompts]
    held = [0] * len(prompts)
    limit = engine.limits.max_step_tokens
    open_rows = list(range(len(prompts)))
    while open_rows:
        ends = [min(len(tokens[index]), held[index] + limit) for index in open_rows]
        rows = [
            StepRow(index + 1, held[index], np.array(tokens[index][held[index] : end], np.int32), end - held[index], None, sampling)
            for index, end in zip(open_rows, ends, strict=True)
        ]
        for index, end, answer in zip(open_rows, ends, engine.step(StepCall(rows, return_logprobs=False)).rows, strict=True):
            if answer.status is not RowStatus.OK:
                raise RuntimeError(f"the target answered {answer.status.name} {answer.error}")
            held[index] = end
            if end == len(tokens[index]):
                tokens[index].append(int(answer.sampled[0]))
        open_rows = [
            index
            for index in open_rows
            if not (len(tokens[index]) > len(prompts[index]) and tokens[index][-1] in end_ids)
            and len(tokens[index]) - len(prompts[index]) < max_tokens
        ]
    engine.release(range(1, len(prompts) + 1))
    return [own[len(prompt) :] for own, prompt in zip(tokens, prompts, strict=True)]


def _model(folder: Path) -> ReplayModel:
    parameters = read_parameters(folder / "config.pbtxt")
    default = EngineOptions()
    slots, threads = int(parameters.get("slots", default.slots)), int(parameters.get("num_threads", default.num_threads))
    return ReplayModel(folder / VERSION, read_manifest(folder / VERSION), slots, threads)


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
