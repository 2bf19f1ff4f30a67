"""Configuration of the pipeline: parsed once at the edge, frozen afterwards."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from drafthouse.core.errors import invalid
from drafthouse.pipeline.modes import MODES, Mode, Overlap, Switches, Trees
from drafthouse.scheduling.estimates.registry import LENGTH_PREDICTORS
from drafthouse.scheduling.policies.registry import POLICIES

MAX_SIBLINGS = 7  # an engine returns at most a few candidates per node
MAX_DRAFT_TOKENS_LIMIT = 64  # beyond this no draft pays, and a tree would not fit a step call


BY_MODE = "mode"  # a switch that is not set
ON_OFF = {"on": True, "off": False}


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Settings of the `cosine` model; each is a parameter of its config.pbtxt under the same name."""

    mode: Mode = Mode.COSINE
    single_drafter: str = "general"  # the drafter of modes vanilla and pipeline_only
    collaborators: str = ""  # comma-separated drafters of modes cosine and specinfer; "" = all of them
    routing: str = BY_MODE  # on or off, and so the next four: one part of the mode turned by itself (`pipeline.modes.Switches`)
    fusion: str = BY_MODE
    overlap: str = BY_MODE  # on, off or auto
    adaptation: str = BY_MODE
    tetris: str = BY_MODE
    max_verified_tokens: int = 0  # of one verification over all requests, with adaptation; 0 = no limit
    rehearsal: str = "off"  # on: when first idle, see what the stages take (two seconds on a laptop), for adaptation
    policy: str = "fcfs"  # see drafthouse.scheduling.policies.registry
    length_predictor: str = "histogram"  # for policies that ask how long a text will be; see drafthouse.scheduling.estimates.registry
    starvation_limit_ms: int = 30_000  # whoever took part in no round for so long goes before everybody else
    num_draft_tokens: int = 5  # draft tokens per round without adaptation; with it, what it begins with. 0 = only for requests that ask
    max_num_draft_tokens: int = 16  # the most a request may ask for, and that adaptation goes up to
    num_siblings: int = 1  # candidates beside a drafter's own token that become branches; 0 = none. Chains only where weights are int8
    max_drafters: int = 2  # of one request at a time, in mode cosine
    max_tree_nodes: int = 24  # of one request's draft
    route_every: int = 4  # verified rounds of a request from one decision of the router to the next
    slots: int = 0  # requests that keep their caches at the same time; 0 = as many as the target has slots
    max_batch: int = 0  # requests that take part in one round; 0 = as many as there are slots
    max_queue_size: int = 64  # requests that may wait beside as many as there are slots
    default_max_tokens: int = 128  # when the request does not say; clipped to the context
    default_deadline_ms: int = 120_000  # bounds what an unnoticed disconnect can cost
    max_prefill_tokens: int = 512  # prompt tokens per round over all requests: what a decode round waits for at most
    target_retry_attempts: int = 30  # calls to a target that does not answer before its requests are given up
    target_retry_delay_ms: int = 20  # before the first retry; doubles up to 25 times that
    max_stalled_rounds: int = 200  # rounds without progress (no slot, cache lost again) before a request is given up

    def __post_init__(self) -> None:
        lowest = dict.fromkeys(
            (
                "slots",
                "max_batch",
                "max_queue_size",
                "num_draft_tokens",
                "max_num_draft_tokens",
                "num_siblings",
                "max_verified_tokens",
                "target_retry_attempts",
            ),
            0,
        )
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < lowest.get(item.name, 1):
                raise invalid(item.name, value, f"at least {lowest.get(item.name, 1)}")
        if self.max_num_draft_tokens > MAX_DRAFT_TOKENS_LIMIT:
            raise invalid("max_num_draft_tokens", self.max_num_draft_tokens, f"at most {MAX_DRAFT_TOKENS_LIMIT}")
        if self.num_draft_tokens > self.max_num_draft_tokens:
            raise invalid("num_draft_tokens", self.num_draft_tokens, f"at most max_num_draft_tokens ({self.max_num_draft_tokens})")

        allowed: dict[str, tuple[str, ...]] = {
            **dict.fromkeys(("routing", "fusion", "adaptation", "tetris"), (BY_MODE, *ON_OFF)),
            "rehearsal": tuple(ON_OFF),
            "overlap": (BY_MODE, *Overlap),
            "policy": POLICIES.names,
            "length_predictor": LENGTH_PREDICTORS.names,
        }
        for name, names in allowed.items():
            if getattr(self, name) not in names:
                raise invalid(name, getattr(self, name), f"one of {', '.join(names)}")
        if self.num_siblings > MAX_SIBLINGS:
            raise invalid("num_siblings", self.num_siblings, f"at most {MAX_SIBLINGS}")

    @property
    def switches(self) -> Switches:
        """The mode's switches, with those that were set by themselves."""
        switches = MODES[self.mode]
        changes: dict[str, object] = {
            name: ON_OFF[getattr(self, name)] for name in ("routing", "adaptation", "tetris") if getattr(self, name) != BY_MODE
        }
        if self.fusion != BY_MODE:
            changes["trees"] = Trees.FUSED if ON_OFF[self.fusion] else Trees.CHAIN
        if self.overlap != BY_MODE:
            changes["overlap"] = Overlap(self.overlap)
        return dataclasses.replace(switches, **changes)  # type: ignore[arg-type]  # names and types as above

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
        """How many requests keep their caches at the same time on a target with ``target_slots`` slots."""
        return min(self.slots or target_slots, target_slots)

    def usable_drafters(self, drafter_names: tuple[str, ...]) -> tuple[str, ...]:
        """The drafters that may work in this mode; INVALID_ARG when it names one that is not in ``drafter_names``."""
        switches = self.switches
        if not switches.drafts:
            return ()
        if not switches.all_drafters:
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
