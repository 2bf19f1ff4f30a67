"""Configuration of the pipeline: parsed once at the edge, frozen afterwards."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from drafthouse.core.errors import invalid
from drafthouse.scheduling.registry import POLICIES

MAX_DRAFT_TOKENS_LIMIT = 64  # beyond this no draft pays, and a tree would not fit a step call


class Mode(StrEnum):
    """Who drafts."""

    COLLABORATIVE = "collaborative"  # the drafters the router chooses, fused
    SINGLE_DRAFTER = "single_drafter"  # always the same one: the baseline of collaboration
    TARGET_ONLY = "target_only"  # nobody: the baseline of speculation


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Settings of the `cosine` model; each is a parameter of its config.pbtxt under the same name."""

    mode: Mode = Mode.COLLABORATIVE
    single_drafter: str = "general"  # the drafter of mode single_drafter
    collaborators: str = ""  # comma-separated drafters of mode collaborative; "" = all of them
    policy: str = "fcfs"  # see drafthouse.scheduling.registry
    num_draft_tokens: int = 5  # longest draft per round when the request does not say
    max_num_draft_tokens: int = 16  # the most a request may ask for
    route_every: int = 4  # verified rounds of a request from one decision of the router to the next
    slots: int = 0  # requests that run at the same time; 0 = as many as the target has slots
    max_queue_size: int = 64  # requests that may wait beside the running ones
    default_max_tokens: int = 128  # when the request does not say; clipped to the context
    default_deadline_ms: int = 120_000  # bounds what an unnoticed disconnect can cost
    max_prefill_tokens: int = 512  # prompt tokens per round over all requests: what a decode round waits for at most
    target_retry_attempts: int = 30  # calls to a target that does not answer before its requests are given up
    target_retry_delay_ms: int = 20  # before the first retry; doubles up to 25 times that
    max_stalled_rounds: int = 200  # rounds without progress (no slot, cache lost again) before a request is given up

    def __post_init__(self) -> None:
        POLICIES.create(self.policy)
        lowest = {"slots": 0, "max_queue_size": 0, "num_draft_tokens": 0, "max_num_draft_tokens": 0, "target_retry_attempts": 0}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < lowest.get(item.name, 1):
                raise invalid(item.name, value, f"at least {lowest.get(item.name, 1)}")
        if self.max_num_draft_tokens > MAX_DRAFT_TOKENS_LIMIT:
            raise invalid("max_num_draft_tokens", self.max_num_draft_tokens, f"at most {MAX_DRAFT_TOKENS_LIMIT}")
        if self.num_draft_tokens > self.max_num_draft_tokens:
            raise invalid("num_draft_tokens", self.num_draft_tokens, f"at most max_num_draft_tokens ({self.max_num_draft_tokens})")

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> "PipelineConfig":
        """From config.pbtxt parameters; ClientError for an unknown key, a bad value or an unfilled ``${hole}``."""
        known = {item.name: item for item in dataclasses.fields(cls)}
        values: dict[str, object] = {}
        for name, text in parameters.items():
            if name not in known:
                raise invalid(name, text, f"a parameter among {', '.join(sorted(known))}")
            values[name] = _parse_value(name, text, known[name].default)
        return dataclasses.replace(cls(), **values)  # type: ignore[arg-type]  # checked field by field above

    def max_active(self, target_slots: int) -> int:
        """How many requests run at the same time on a target with ``target_slots`` slots."""
        return min(self.slots or target_slots, target_slots)

    def usable_drafters(self, drafter_names: tuple[str, ...]) -> tuple[str, ...]:
        """The drafters that may work in this mode; INVALID_ARG when it names one that is not in ``drafter_names``."""
        if self.mode is Mode.TARGET_ONLY:
            return ()
        if self.mode is Mode.SINGLE_DRAFTER:
            return _known("single_drafter", (self.single_drafter,), drafter_names)
        named = tuple(part.strip() for part in self.collaborators.split(",") if part.strip())
        return _known("collaborators", named, drafter_names) or drafter_names


def _known(field: str, names: tuple[str, ...], drafter_names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in drafter_names:
            raise invalid(field, name, f"one of {', '.join(drafter_names)}")
    return names


def _parse_value(name: str, text: str, default: object) -> object:
    if isinstance(default, Mode):
        if text not in tuple(Mode):
            raise invalid(name, text, f"one of {', '.join(Mode)}")
        return Mode(text)
    if isinstance(default, str):
        return text
    try:
        return int(text)
    except ValueError:
        raise invalid(name, text, "an integer") from None
