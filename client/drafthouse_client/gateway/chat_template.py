"""From messages to one prompt, by the target's own chat template, rendered in Jinja's sandbox as `transformers` does it.

A target without a template is a model that continues text. It gets the messages' texts, one below the other, and goes on from there: role
marks that it never saw in training would only lead it astray.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from drafthouse.core.errors import invalid

DEFAULT_TEMPLATE = "{{ messages | map(attribute='content') | join('\n') }}"
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template with the special tokens it may write.

    Raises:
        ClientError: INVALID_ARG for a template that does not compile (at the start), or refuses these messages (`render`).
    """

    def __init__(self, source: str = DEFAULT_TEMPLATE, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.is_default = source == DEFAULT_TEMPLATE
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise invalid("chat_template", str(error), "a template that Jinja can compile") from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt up to where the assistant's words begin."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._special_tokens)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise invalid("messages", None, f"what the model's chat template takes: {error}") from error


def read_template(folder: Path) -> ChatTemplate:
    """The template in a tokenizer's folder: `chat_template.jinja`, else in `tokenizer_config.json`, else the default one."""
    config_file, template_file = folder / _CONFIG, folder / _TEMPLATE
    config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    source = template_file.read_text(encoding="utf-8") if template_file.is_file() else _named_default(config.get("chat_template"))
    return ChatTemplate(source or DEFAULT_TEMPLATE, _special_tokens(config))


def _named_default(written: object) -> str | None:
    """A template is a text, or several with names."""
    if isinstance(written, list):
        return next((str(entry["template"]) for entry in written if entry["name"] == "default"), None)
    return written if isinstance(written, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
    return {name: value for name, value in contents.items() if isinstance(value, str)}


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
