"""Parameters of OpenAI's API that this server does not have: refused by name, accepted with the values that change nothing."""

from collections.abc import Mapping
from typing import Any

UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""Name → values with which it has no effect; null is always one."""


def without_neutral(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body less those unsupported parameters that ask for nothing; what is left of them is to be refused."""
    return {name: value for name, value in body.items() if name not in UNSUPPORTED or not _is_neutral(value, UNSUPPORTED[name])}


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    # False equals 0 in Python, not in JSON.
    return value is None or any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in neutral)


def describe(schema: dict[str, Any]) -> None:
    """Adds them to a JSON schema, with the values that are accepted."""
    for name, neutral in UNSUPPORTED.items():
        schema["properties"][name] = {"enum": [*neutral, None], "title": name, "description": "Not supported: no other value is accepted."}
