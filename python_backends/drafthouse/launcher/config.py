"""What a server run is made of: parsed once, checked once, never changed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drafthouse.launcher.errors import LaunchError

MIB = 1 << 20
MAX_PORT = 65535
NEW_SECRET_BYTES = 32
MIN_SECRET_CHARS = 16
_SECRET_FORM = f"a line of at least {MIN_SECRET_CHARS} printable characters, e.g. from `openssl rand -hex 32`"


@dataclass(frozen=True)
class GrpcTls:
    """PEM files of the gRPC port. With ``client_root`` only clients with a certificate signed by it get in.

    Errors: LaunchError (INVALID_ARG) naming the file that is not there, raised by the constructor.
    """

    cert: Path
    key: Path
    client_root: Path | None = None

    def __post_init__(self) -> None:
        for option, file in (("--grpc-tls-cert", self.cert), ("--grpc-tls-key", self.key), ("--grpc-tls-client-root", self.client_root)):
            _require(file is None or file.is_file(), option, file, "a PEM file that can be read")


@dataclass(frozen=True)
class ServerConfig:
    """One run of tritonserver. A port of 0 means: any free one, to be read from `TritonServer` afterwards.

    Errors: LaunchError (INVALID_ARG) naming the field, raised by the constructor.
    """

    model_repository: Path
    host: str = "127.0.0.1"
    """Address all three services listen on; Triton's own default, 0.0.0.0, must be asked for."""
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    load_models: tuple[str, ...] = ("*",)
    """Models loaded at start; `("*",)` is the whole repository, `()` none."""
    log_dir: Path | None = None
    """Where `tritonserver-*.log` goes; None is a folder of the user's below the temporary directory."""
    log_verbose_level: int = 0
    startup_timeout_s: float = 180.0
    exit_timeout_s: int = 5
    """How long Triton waits for running requests and for instances to unload. Short, because an instance whose
    stub died never finishes unloading."""
    thread_pool_size: int = 64
    """Threads of the Python backend that carry BLS calls and response sends; Triton's default of 32 is shared by
    all models."""
    shm_default_bytes: int = MIB
    """Shared memory every model instance starts with; small because there are many instances."""
    shm_growth_bytes: int = MIB
    stub_timeout_s: int = 120
    """How long a model process may take to come up: loading a large engine on two busy cores is slow."""
    tritonserver: Path | None = None
    """The server binary; None looks in the NGC container's place, then in the nvidia-pytriton wheel."""
    lease_file: Path | None = None
    """Holds the lease secret that this server shares with others, so that they may call its drafters; None makes a new one."""
    grpc_tls: GrpcTls | None = None
    """None is an open gRPC port."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables added to the environment of the server and thereby of every model."""

    def __post_init__(self) -> None:
        for name in ("http_port", "grpc_port", "metrics_port"):
            _require(0 <= getattr(self, name) <= MAX_PORT, f"--{name.replace('_', '-')}", getattr(self, name), f"0..{MAX_PORT}")
        for name in ("startup_timeout_s", "exit_timeout_s", "thread_pool_size", "shm_growth_bytes", "stub_timeout_s"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        _require(self.shm_default_bytes >= MIB, "shm_default_bytes", self.shm_default_bytes, f">= {MIB}")
        chosen = [port for port in (self.http_port, self.grpc_port, self.metrics_port) if port]
        _require(len(set(chosen)) == len(chosen), "--http-port, --grpc-port, --metrics-port", chosen, "three different ports")

    def lease_secret(self) -> str:
        """The secret in `lease_file`, or a new one.

        Errors: LaunchError (INVALID_ARG) for a file that cannot be read or holds no secret; the message does not show it.
        """
        if self.lease_file is None:
            return secrets.token_hex(NEW_SECRET_BYTES)
        try:
            secret = self.lease_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError):
            raise LaunchError("INVALID_ARG", field="--lease-file", value=self.lease_file, allowed="a text file that can be read") from None
        _require(len(secret) >= MIN_SECRET_CHARS and secret.isprintable(), "--lease-file", self.lease_file, _SECRET_FORM)
        return secret

    def model_names(self) -> tuple[str, ...]:
        """The models that will be loaded at start: folders of the repository that hold a `config.pbtxt`.

        Errors: LaunchError (INVALID_ARG) when the repository is missing, empty or lacks a named model.
        """
        present = {path.parent.name for path in self.model_repository.glob("*/config.pbtxt")}
        _require(bool(present), "--model-repository", self.model_repository, "a folder of MODEL/config.pbtxt, as `drafthouse build` writes")
        if self.load_models == ("*",):
            return tuple(sorted(present))
        missing = [name for name in self.load_models if name not in present]
        _require(not missing, "load_models", missing, ", ".join(sorted(present)))
        return self.load_models


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise LaunchError("INVALID_ARG", field=field, value=value, allowed=allowed)
