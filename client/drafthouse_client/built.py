"""What `drafthouse build` left beside the engines of a model repository on this machine."""

import json
from pathlib import Path
from typing import Any

DEFAULT_REPOSITORY = Path("model_repository")


def engine_manifest(repository: Path, model: str) -> dict[str, Any]:
    """`engine.json` of a built model (precision, num_params, …); {} where the engine was not built by `drafthouse build`."""
    for file in sorted(repository.glob(f"{model}/*/engine.json")):
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return manifest
    return {}


def tokenizer_file(repository: Path) -> Path | None:
    """The target's `tokenizer.json` in a built repository, for colours by token; None when there is none."""
    return next(iter(sorted(repository.glob("cosine/*/tokenizer.json"))), None)
