"""Prompts by domain, from a file of JSON lines."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from drafthouse.core.errors import invalid

_SHIPPED = "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class DomainPrompt:
    """One prompt and the field it belongs to."""

    domain: str
    prompt: str


def load_prompts(file: Path | None = None) -> list[DomainPrompt]:
    """Prompts of ``file`` (one ``{"domain": …, "prompt": …}`` per line; other keys are ignored), else the shipped set.

    Raises:
        ClientError: INVALID_ARG naming the file and line.
    """
    if file is None:
        return parse_prompts(files("drafthouse_load").joinpath(_SHIPPED).read_text(encoding="utf-8"), _SHIPPED)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise invalid("--prompts", str(file), "a readable UTF-8 file of JSON lines") from error
    return parse_prompts(text, str(file))


def parse_prompts(text: str, name: str) -> list[DomainPrompt]:
    """Prompts from JSON lines; ``name`` is for messages."""
    prompts = [_parse_line(line, f"{name}:{number}") for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not prompts:
        raise invalid("--prompts", name, "at least one prompt")
    return prompts


def _parse_line(line: str, place: str) -> DomainPrompt:
    try:
        record = json.loads(line)
        domain, prompt = record["domain"], record["prompt"]
    except (ValueError, KeyError, TypeError):
        raise invalid("--prompts", place, 'one object per line: {"domain": "…", "prompt": "…"}') from None
    if not (isinstance(domain, str) and isinstance(prompt, str) and domain and prompt):
        raise invalid("--prompts", place, "domain and prompt as strings that are not empty")
    return DomainPrompt(domain, prompt)


def digest(prompts: Sequence[DomainPrompt]) -> str:
    """A short fingerprint of a prompt set, so that two reports can be known to be comparable."""
    lines = "\n".join(json.dumps([prompt.domain, prompt.prompt]) for prompt in prompts)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
