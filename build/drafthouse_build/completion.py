"""A config.json with what its family leaves to `transformers` filled in: defaults, older spellings, one form for rotary embedding.

A checkpoint's config.json holds what differed from the defaults of the library it was written with, in that library's spelling. Only
`transformers` knows those, so its configuration classes read it. Weights and graphs are none of its business, torch is not needed, and
code that comes with a checkpoint is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drafthouse_build.errors import BuildError
from drafthouse_build.families import FAMILIES, architecture_of


def complete_config(folder: Path, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of `folder`'s config.json as `transformers` understands them; `raw` itself where the family needs no completion.

    Raises `BuildError` where `transformers` is missing or refuses the file.
    """
    architecture = architecture_of(raw)
    if architecture not in FAMILIES or not FAMILIES[architecture].is_completed:
        return raw
    try:
        from transformers import AutoConfig
    except ImportError as error:
        allowed = f"an installed transformers: it reads the configuration of {architecture} (pip install 'drafthouse[train]')"
        raise BuildError("UNAVAILABLE", "transformers", "not installed", allowed) from error
    try:
        completed: dict[str, Any] = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).to_dict()
    # What a wrong entry raises differs from entry to entry and from version to version.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BuildError("INVALID_ARG", "config.json", folder / "config.json", f"what transformers reads for it: {reason}") from error
    # What begins with an underscore is where the file was found, and other things that are no part of the model.
    return {name: value for name, value in completed.items() if not name.startswith("_")} | {"architectures": raw["architectures"]}
