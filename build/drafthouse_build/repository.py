"""Checkpoints in, a complete Triton model repository out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from drafthouse.engine.tensorrt.plan import PLAN_MANIFEST_NAME, PLAN_NAME
from drafthouse_build.checkpoint import Checkpoint, load_checkpoint
from drafthouse_build.config import parse_config
from drafthouse_build.engine import MODEL_NAME, EngineOptions, build_engine, check_model
from drafthouse_build.errors import BuildError
from drafthouse_build.hub import checkpoint_folder
from drafthouse_build.model_file import Precision, Progress
from drafthouse_build.router_table import build_router_table
from drafthouse_build.templates import (
    DRAFTER_PREFIX,
    SHARED_MODELS,
    committed_drafters,
    copy_model,
    make_drafter,
    put_on_gpu,
    read_parameter,
)
from drafthouse_build.tensorrt_engine import PlanOptions, build_plan_engine, this_machine
from drafthouse_build.tokenizer import check_same_tokenizer, shared_token_ids, tokenizer_file, tokenizer_files
from drafthouse_build.vocabulary import Vocabulary

VERSION = "1"
_DRAFTER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")

# Shows that a step is running while the context is open; where it gives a function, that is told how far the step is.
StepReporter = Callable[[str], AbstractContextManager[Progress | None]]


def _silently(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class StepOutcome:
    """One thing a build made, or found current."""

    name: str
    built: bool


@dataclass(frozen=True)
class _Engine:
    """One engine to build; `vocabulary` as for `build_engine`, `plan` None for ONNX Runtime."""

    checkpoint: Checkpoint
    options: EngineOptions
    vocabulary: Vocabulary | None
    plan: PlanOptions | None = None


def build_repository(
    target: Path | str,
    drafters: Mapping[str, Path | str],
    output: Path,
    *,
    templates: Path,
    precision: Precision = "fp32",
    context_len: int = 512,
    max_step_tokens: int = 64,
    expand_target_to: int | None = None,
    slots: int | None = None,
    only: Sequence[str] = (),
    plan: PlanOptions | None = None,
    devices: Mapping[str, int] | None = None,
    report: StepReporter = _silently,
) -> list[StepOutcome]:
    """Writes the model repository `output` for one target and its drafters, in the mapping's order; returns what was done.

    A checkpoint is a folder or a hub id, which is fetched. Drafters may have any architecture and any size of vocabulary, as long as their
    tokenizer is the target's.
    Configurations and adapters are copied from `templates`. When `output` is `templates` itself, only artefacts are written into it,
    and the drafters must be the committed ones. `slots` is the number of requests whose caches fit, None for the templates' number.
    With `only`, nothing but these drafters is written: the repository of a node that serves them to other servers.
    With `plan`, engines are compiled by TensorRT for the GPU here; `devices` are the GPUs that they are to run on (default: 0), by name.
    Everything is checked before anything is written: raises `BuildError` for bad input.
    """
    options = EngineOptions(precision, context_len, max_step_tokens)
    if slots is not None and slots < 1:
        raise BuildError("INVALID_ARG", "slots", slots, "an integer ≥ 1")
    _check_names(drafters)
    _check_only(only, drafters, output, templates)
    with report("reading checkpoints"):
        loaded = {name: load_checkpoint(checkpoint_folder(source)) for name, source in {"target": target, **drafters}.items()}
        target_options = replace(options, expand_to=expand_target_to)
        engines = _check_models(loaded, target_options, options)
    if plan is not None:
        plan = replace(plan, slots=slots or int(read_parameter(templates / "target", "slots")))
        engines = _compiled(engines, plan, devices or {}, output, templates)
    if only:
        return _write_node(engines, output, templates, only, slots, report)
    if output.resolve() == templates.resolve():
        _check_in_place(templates, drafters, slots)
    else:
        _copy_templates(templates, output, list(drafters), slots)
    return _write_artefacts(engines, output, report)


def _check_names(drafters: Mapping[str, Path | str]) -> None:
    if not drafters:
        raise BuildError("INVALID_ARG", "drafter", "none", "at least one NAME=DIR")
    for name in drafters:
        if not _DRAFTER_NAME.fullmatch(name) or name == "target":
            raise BuildError("INVALID_ARG", "drafter", name, "a name of a-z, 0-9 and _ that begins with a letter and is not target")


def _check_only(only: Sequence[str], drafters: Mapping[str, Path | str], output: Path, templates: Path) -> None:
    for name in only:
        if name not in drafters:
            raise BuildError("INVALID_ARG", "only", name, drafters)
    if only and output.resolve() == templates.resolve():
        raise BuildError("INVALID_ARG", "output", output, "another folder than the templates', with --only")


def _check_models(loaded: Mapping[str, Checkpoint], target_options: EngineOptions, options: EngineOptions) -> dict[str, _Engine]:
    """What to build under each name: every checkpoint can be exported, and ids mean the same in all of them."""
    target = loaded["target"]
    size = check_model(target, target_options).vocab_size
    engines = {"target": _Engine(target, target_options, None)}
    for name, checkpoint in loaded.items():
        if name == "target":
            continue
        own_size = check_model(checkpoint, options).vocab_size
        tokenizers = tokenizer_file(target), tokenizer_file(checkpoint)
        check_same_tokenizer(*tokenizers, name)
        shared = shared_token_ids(*tokenizers)
        # Where every id of either is a token of both there is nothing to arrange.
        is_same = own_size == size and shared == set(range(size))
        engines[name] = _Engine(checkpoint, options, None if is_same else Vocabulary.of(size, shared))
    return engines


def _compiled(
    engines: Mapping[str, _Engine], plan: PlanOptions, devices: Mapping[str, int], output: Path, templates: Path
) -> dict[str, _Engine]:
    """The engines, each to be compiled for its GPU; all of these are checked."""
    if output.resolve() == templates.resolve():
        raise BuildError("INVALID_ARG", "output", output, "another folder than the templates', with --backend tensorrt")
    for name in devices:
        if name not in engines:
            raise BuildError("INVALID_ARG", "device", name, engines)
    for device in sorted({devices.get(name, 0) for name in engines}):
        this_machine(device)
    return {name: replace(engine, plan=replace(plan, device_id=devices.get(name, 0))) for name, engine in engines.items()}


def _check_in_place(templates: Path, drafters: Mapping[str, Path | str], slots: int | None) -> None:
    committed = committed_drafters(templates)
    if list(drafters) != committed:
        raise BuildError("INVALID_ARG", "drafter", ",".join(drafters), f"{','.join(committed)} in this repository, or another --output")
    configured = read_parameter(templates / "target", "slots")
    if slots is not None and str(slots) != configured:
        raise BuildError("INVALID_ARG", "slots", slots, f"{configured} in this repository, or another --output")


def _copy_templates(templates: Path, output: Path, names: list[str], slots: int | None) -> None:
    engine = {} if slots is None else {"slots": str(slots)}
    ensemble = {"drafters": ",".join(names)}
    single = read_parameter(templates / "cosine", "single_drafter")
    parameters = {
        "cosine": {**engine, **ensemble, "single_drafter": single if single in names else names[0]},
        "router": {},
        "fusion": ensemble,
        "target": engine,
    }
    for model in SHARED_MODELS:
        copy_model(templates, output, model, parameters[model])
    for name in names:
        make_drafter(templates, output, name, engine)


def _write_node(
    engines: Mapping[str, _Engine], output: Path, templates: Path, names: Sequence[str], slots: int | None, report: StepReporter
) -> list[StepOutcome]:
    for name in names:
        make_drafter(templates, output, name, {} if slots is None else {"slots": str(slots)})
    return [_write_engine(name, engines[name], output, report) for name in names]


def _write_engine(name: str, engine: _Engine, output: Path, report: StepReporter) -> StepOutcome:
    model = name if name == "target" else DRAFTER_PREFIX + name
    folder = output / model / VERSION
    with report(f"building {model}") as progress:
        if engine.plan is None:
            is_built = build_engine(engine.checkpoint, folder, engine.options, name, engine.vocabulary, progress)
        else:
            put_on_gpu(output / model, engine.plan.device_id)
            is_built = build_plan_engine(engine.checkpoint, folder, engine.options, engine.plan, name, engine.vocabulary, progress)
    # What another runtime was built for here would be loaded, or lie about.
    for stale in (PLAN_NAME, PLAN_MANIFEST_NAME) if engine.plan is None else (MODEL_NAME, f"{MODEL_NAME}.data"):
        (folder / stale).unlink(missing_ok=True)
    return StepOutcome(model, is_built)


def _write_artefacts(engines: Mapping[str, _Engine], output: Path, report: StepReporter) -> list[StepOutcome]:
    outcomes = [_write_engine(name, engine, output, report) for name, engine in engines.items()]
    target = engines["target"].checkpoint
    with report("building the router's embedding table"):
        outcomes.append(StepOutcome("router", build_router_table(target, output / "router" / VERSION)))
    files = tokenizer_files(target, parse_config(target.raw_config).vocab_size)
    changed = [_write_if_changed(output / "cosine" / VERSION / name, content) for name, content in files.items()]
    outcomes.append(StepOutcome("cosine", any(changed)))
    return outcomes


def _write_if_changed(file: Path, content: bytes) -> bool:
    if file.is_file() and file.read_bytes() == content:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return True
