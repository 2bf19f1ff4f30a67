"""Writes `engine.json`, the file beside an engine that the runtime reads as `drafthouse.engine.manifest.EngineManifest`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from drafthouse.core.errors import DrafthouseError
from drafthouse.engine.manifest import MANIFEST_NAME, EngineManifest, read_manifest


def write_manifest(manifest: EngineManifest, folder: Path) -> None:
    """Writes `engine.json` into `folder` in one step, so that it is there only when it is complete."""
    temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST_NAME)


def stored_build_key(folder: Path) -> str | None:
    """The `build_key` of the engine in `folder`; None when there is none that today's runtime can read."""
    try:
        return read_manifest(folder).build_key
    except DrafthouseError:
        return None
