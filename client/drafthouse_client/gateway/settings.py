"""What a gateway is told at its start."""

from dataclasses import dataclass, field
from pathlib import Path

from drafthouse.core.errors import invalid
from drafthouse_client.client import DEFAULT_MODEL, DEFAULT_URL

DEFAULT_PORT = 9000
MIB = 1 << 20


@dataclass(frozen=True)
class GatewaySettings:
    """One gateway. Errors: ClientError (INVALID_ARG) naming the field, raised by the constructor."""

    grpc_url: str = DEFAULT_URL
    triton_model: str = DEFAULT_MODEL
    served_name: str = DEFAULT_MODEL
    """The id in `/v1/models`, and what requests must name as their model."""
    tokenizer_dir: Path | None = None
    """Folder of the target's `tokenizer.json`, and its chat template where it has one; None: a plain template, no log probabilities."""
    api_key: str = field(default="", repr=False)
    """The bearer token that calls below `/v1` must carry; empty: none."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages a browser lets call this gateway; empty: none but the gateway's own."""
    max_body_bytes: int = MIB
    max_choices: int = 8
    """Limit of prompts × `n` of one request: every choice is a stream, and a slot, of its own."""
    timeout_s: float = 600.0
    """Limit of one request from start to end."""
    stall_s: float = 30.0
    """How long a client may leave a chunk unread before its request is cancelled."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_choices", "timeout_s", "stall_s"):
            if getattr(self, name) <= 0:
                raise invalid(name, getattr(self, name), "> 0")
        if "*" in self.cors_origins and self.api_key == "":
            raise invalid("cors_origin", "*", "named origins, or an API key as well: any page could use this server")
        if not self.api_key.isascii() or not self.api_key.isprintable():
            raise invalid("api_key", "(not shown)", "printable ASCII: it travels in a header")
