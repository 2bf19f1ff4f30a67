"""Checkpoints by the name they have on the Hugging Face hub: downloaded once, then found in its cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from drafthouse_build.errors import BuildError
from drafthouse_build.tokenizer import TOKENIZER_FILES

# owner/name, with @revision for a branch, a tag or a commit.
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
# Only data: no code, and none of the other formats that the weights may lie there in.
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
)


def checkpoint_folder(source: str | Path, files: Sequence[str] = FILES) -> Path:
    """The folder of a checkpoint that is named by its folder or by its hub id; a folder wins. Of the hub's only `files` are fetched.

    Raises `BuildError` when the hub cannot be reached, or does not give what is asked for. The token, where a checkpoint needs one, is
    that of `hf auth login` or `HF_TOKEN`.
    """
    folder = Path(source)
    found = _HUB_ID.fullmatch(str(source))
    if folder.exists() or found is None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(found["name"], revision=found["revision"], allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise BuildError("UNAVAILABLE", "checkpoint", source, f"an existing folder, or a hub id that can be fetched: {reason}") from error
