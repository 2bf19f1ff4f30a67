"""The modes that are compared: CoSine, CoSine without one of its parts, and what it competes with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from drafthouse.core.errors import ErrorCode, ServerError, invalid
from drafthouse.pipeline.config import PipelineConfig
from drafthouse_client import Client
from drafthouse_load.modes import ModelControl
from drafthouse_load.stats import read_when_idle

SWITCHES = ("routing", "fusion", "overlap", "adaptation", "tetris")
FIXED_K = tuple(range(1, 9))  # draft tokens per request and round, among which an arm without adaptation gets its best
COSINE = "cosine"
TARGET_ONLY = "target_only"
VANILLA = "vanilla"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of serving: a mode of `cosine`, perhaps with a part switched off."""

    name: str  # key in the report
    mode: str
    without: str = ""  # the switch that is off
    has_fixed_k: bool = False  # does not adapt: gets its best fixed number of draft tokens

    def parameters(self, base: Mapping[str, str], num_draft_tokens: int | None) -> dict[str, str]:
        """The parameters of `cosine` for this arm: every one that another arm changes is named, because overrides add up."""
        own = {"mode": self.mode} | ({self.without: "off"} if self.without else {})
        if num_draft_tokens is not None:
            own["num_draft_tokens"] = str(num_draft_tokens)
        return {**base, **own}


ARMS = (
    Arm(TARGET_ONLY, TARGET_ONLY),
    Arm(VANILLA, VANILLA, has_fixed_k=True),
    Arm("specinfer", "specinfer", has_fixed_k=True),
    Arm("pipeline_only", "pipeline_only", has_fixed_k=True),
    Arm(COSINE, COSINE),
    *(Arm(f"cosine_without_{part}", COSINE, part, has_fixed_k=part == "adaptation") for part in SWITCHES),
)


def arms_named(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names, in the order of `ARMS`. Raises ClientError for an unknown name."""
    known = {arm.name: arm for arm in ARMS}
    for name in names:
        if name not in known:
            raise invalid("--modes", name, f"of {', '.join(known)}")
    return tuple(arm for arm in ARMS if arm.name in names)


def base_parameters(configured: Mapping[str, str]) -> dict[str, str]:
    """What `cosine` is configured with, for each parameter that an arm may change.

    Args:
        configured: the parameters in the repository's config.pbtxt.
    """
    defaults = {item.name: str(item.default) for item in fields(PipelineConfig)}
    return {name: configured.get(name, defaults[name]) for name in ("mode", *SWITCHES, "num_draft_tokens")}


class ArmSwitch:
    """Brings an idle server into an arm by a load call of `cosine`; all other models stay as they are."""

    def __init__(self, server: ModelControl, client: Client, base: Mapping[str, str]) -> None:
        self._server = server
        self._client = client
        self._base = base

    def to(self, arm: Arm, num_draft_tokens: int | None) -> None:
        """Switch to a front door that has learned nothing yet.

        Raises:
            ServerError: INTERNAL when the server is busy or reports another mode.
            LaunchError: the load call failed.
        """
        before = read_when_idle(self._client)
        if not before.idle:
            raise ServerError(ErrorCode.INTERNAL, "mode", f"{before.running} requests running", "an idle server")
        # Anew for every block, also of the same arm: what was learned in one must not help the next.
        self._server.load_model("cosine", {"parameters": arm.parameters(self._base, num_draft_tokens)})
        reported = read_when_idle(self._client).mode
        if reported != arm.mode:
            raise ServerError(ErrorCode.INTERNAL, "mode", reported, arm.mode)
