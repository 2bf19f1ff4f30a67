"""``plan.json``, the file beside ``model.plan`` that says for what it was built, and whether this machine may run it.

A plan is machine code: it runs under the TensorRT version and on the kind of GPU that it was built for, and TensorRT's own message for
anything else does not say what to do. So everything that can be known beforehand is checked here, and each refusal names the fix.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

from drafthouse.core.errors import ClientError, invalid
from drafthouse.engine.manifest import EngineManifest
from drafthouse.engine.tensorrt.profiles import EngineShape

PLAN_NAME = "model.plan"
PLAN_MANIFEST_NAME = "plan.json"
PRECISIONS = ("fp32", "fp16", "bf16")  # of the plan's inputs and outputs: caches have it too
_REBUILD = "rebuild with `drafthouse build --backend tensorrt`"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PlanManifest:
    """For what a plan was built."""

    plan_sha256: str
    plan_bytes: int
    graph_sha256: str  # of the ONNX graph that it was built from
    tensorrt_version: str
    compute_capability: str  # "9.0"
    version_compatible: bool  # runs under later versions of the same major number, too
    precision: str  # one of PRECISIONS
    quantization: str  # "none", or what Model Optimizer did to the weights
    slots: int
    cache_rows: int  # static length of a slot's cache
    decode_tokens: int  # longest row of the decoding profile
    max_step_tokens: int  # and of the prefill profile


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a plan is to run."""

    tensorrt_version: str
    compute_capability: str
    device_name: str


def read_plan_manifest(folder: Path) -> PlanManifest:
    """Reads ``plan.json`` in ``folder``; raises ClientError for an unknown, missing or wrong entry."""
    file = folder / PLAN_MANIFEST_NAME
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise invalid(PLAN_MANIFEST_NAME, str(file), f"a readable JSON object: {_REBUILD}") from error
    types = {entry.name: entry.type for entry in fields(PlanManifest)}
    if not isinstance(raw, dict) or raw.keys() != types.keys():
        found = ", ".join(sorted(raw)) if isinstance(raw, dict) else type(raw).__name__
        raise invalid(PLAN_MANIFEST_NAME, found, f"the entries {', '.join(types)}: {_REBUILD}")
    for key, value in raw.items():
        if type(value) is not types[key]:
            raise invalid(key, value, f"a value of type {getattr(types[key], '__name__', types[key])}: {_REBUILD}")
    if raw["precision"] not in PRECISIONS:
        raise invalid("precision", raw["precision"], f"{', '.join(PRECISIONS)}: {_REBUILD}")
    return PlanManifest(**raw)


def check_plan(plan: PlanManifest, manifest: EngineManifest, slots: int, machine: Machine) -> EngineShape:
    """The shapes to run ``plan`` with; raises ClientError where it is not this machine's, this engine's or too small."""
    if plan.compute_capability != machine.compute_capability:
        raise _mismatch(
            "compute_capability",
            f"the engine was built for {_sm(plan.compute_capability)}, {machine.device_name} is {_sm(machine.compute_capability)}",
            f"{_REBUILD} on this kind of GPU",
        )
    _check_version(plan, machine)
    expected = EngineShape.of(manifest, slots)
    for key, held, wanted in (
        ("cache_rows", plan.cache_rows, expected.rows),
        ("max_step_tokens", plan.max_step_tokens, expected.max_step_tokens),
        ("decode_tokens", plan.decode_tokens, expected.decode_tokens),
    ):
        if held != wanted:
            raise _mismatch(key, f"{PLAN_MANIFEST_NAME} says {held}, engine.json means {wanted}", _REBUILD)
    if slots > plan.slots:
        raise _mismatch("slots", f"{slots}, the engine was built for {plan.slots}", f"up to {plan.slots}, or {_REBUILD} --slots {slots}")
    return expected


def check_file(folder: Path, plan: PlanManifest) -> None:
    """Raises ClientError unless ``model.plan`` is the file that ``plan`` was written for: there, whole, and no other."""
    file = folder / PLAN_NAME
    try:
        num_bytes = file.stat().st_size
        if num_bytes != plan.plan_bytes:
            raise _mismatch(PLAN_NAME, f"{num_bytes} bytes of {plan.plan_bytes}", f"the whole file: copy it again, or {_REBUILD}")
        found = digest_of(file)
    except OSError as error:
        raise _mismatch(PLAN_NAME, str(file), f"a readable file: {_REBUILD}") from error
    if found != plan.plan_sha256:
        raise _mismatch(PLAN_NAME, f"sha256 {found[:12]}", f"{plan.plan_sha256[:12]}: copy the folder again, or {_REBUILD}")


def digest_of(file: Path) -> str:
    """SHA-256 of a file, read block by block."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_version(plan: PlanManifest, machine: Machine) -> None:
    built, running = _numbers(plan.tensorrt_version), _numbers(machine.tensorrt_version)
    if plan.version_compatible:
        if built[:1] != running[:1] or running < built:
            allowed = f"TensorRT {built[0]}.x from {plan.tensorrt_version} on, or {_REBUILD}"
            raise _mismatch("tensorrt_version", f"built with {plan.tensorrt_version}, running {machine.tensorrt_version}", allowed)
    elif built[:3] != running[:3]:
        allowed = f"TensorRT {plan.tensorrt_version}, or {_REBUILD} (--version-compatible makes plans that later versions run)"
        raise _mismatch("tensorrt_version", f"built with {plan.tensorrt_version}, running {machine.tensorrt_version}", allowed)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _sm(compute_capability: str) -> str:
    return "sm_" + compute_capability.replace(".", "")


def _mismatch(field: str, found: str, allowed: str) -> ClientError:
    return invalid(field, found, allowed)
