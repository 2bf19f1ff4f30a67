"""The modes a decode benchmark compares, and how a running server is switched between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from drafthouse.core.errors import ErrorCode, ServerError
from drafthouse_client import Client
from drafthouse_load.stats import ServerStats, read_when_idle


@dataclass(frozen=True, slots=True)
class Mode:
    """One way of decoding: what the server is told, and what it must then report."""

    name: str  # key in the report
    reported: str  # the `mode` of the server's statistics
    target_parameters: Mapping[str, str] = field(default_factory=dict)  # of the model `target`, beside config.pbtxt


TARGET_ONLY = Mode("target_only", "target_only")
SINGLE_DRAFTER = Mode("single_drafter", "vanilla")
COLLABORATIVE = Mode("collaborative", "cosine")
# The padded baseline pays for byte-identical text: here the target's T = 1 call runs as it is.
TARGET_ONLY_UNPADDED = Mode("target_only_unpadded", "target_only", {"min_step_tokens": "1"})

ALL_MODES = (TARGET_ONLY, SINGLE_DRAFTER, COLLABORATIVE, TARGET_ONLY_UNPADDED)


def block_order(modes: Sequence[Mode], cycles: int) -> list[Mode]:
    """A B C C B A per cycle: whatever drifts steadily (heat, a growing cache) hits every mode alike."""
    return [*modes, *reversed(modes)] * cycles


class ModelControl(Protocol):
    """The part of `drafthouse.launcher.TritonServer` that a switch needs."""

    def load_model(self, name: str, config_override: Mapping[str, Any] | None = None) -> None:
        """Load or reload a model, with these keys of its configuration replaced."""
        ...


class ModeSwitch:
    """Brings an idle server into a mode by load calls, and checks what it then reports."""

    def __init__(self, server: ModelControl, client: Client) -> None:
        self._server = server
        self._client = client
        self._target_parameters: Mapping[str, str] = {}
        self._current: Mode | None = None

    def to(self, mode: Mode) -> ServerStats:
        """Switch, unless the server is in this mode already; returns its statistics.

        Raises:
            ServerError: INTERNAL when the server is busy or reports another mode.
            LaunchError: a load call failed.
        """
        before = read_when_idle(self._client)
        if not before.idle:
            raise ServerError(ErrorCode.INTERNAL, "mode", f"{before.running} requests running", "an idle server")
        if mode is not self._current:
            self._load(mode)
            self._current = mode
        stats = read_when_idle(self._client)
        if stats.mode != mode.reported:
            raise ServerError(ErrorCode.INTERNAL, "mode", stats.mode, mode.reported)
        return stats

    def _load(self, mode: Mode) -> None:
        if mode.target_parameters != self._target_parameters:
            # Without an override the load call reads config.pbtxt again, which undoes the last one.
            override = {"parameters": dict(mode.target_parameters)} if mode.target_parameters else None
            self._server.load_model("target", override)
            self._target_parameters = mode.target_parameters
        self._server.load_model("cosine", {"parameters": {"mode": mode.reported}})
