"""The `remote…` parameters of `fusion`: which drafters live on other servers, and how those are reached."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drafthouse.core.environment import REMOTE_LEASE_VARIABLE
from drafthouse.core.errors import ServerError, invalid
from drafthouse.fusion.fuser import FusionOptions
from drafthouse.triton.lease import MIN_SECRET_BYTES, Lease
from drafthouse.triton.parameters import Parameters, parameter_in
from drafthouse.triton.remote.endpoints import Endpoint, parse_endpoints

PREFIX = "remote."
OPTIONS = (
    "remote_lease_file",
    "remote_timeout_ms",
    "remote_max_step_tokens",
    "remote_tls",
    "remote_tls_root_file",
    "remote_tls_cert_file",
    "remote_tls_key_file",
)
KNOWN = f"{PREFIX}NAME for a NAME among the drafters, {', '.join(OPTIONS)}"
_TLS_FILES = OPTIONS[4:]
MAX_TIMEOUT_MS = 600_000


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS connection; None: the system's root certificates, and no certificate of our own."""

    root: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Drafters on other servers. Without any, nothing else in here matters."""

    endpoints: Mapping[str, tuple[Endpoint, ...]]  # by drafter
    timeout_s: float  # for one call of a round
    max_step_tokens: int | None  # None: as the target's
    tls: TlsFiles | None
    lease: Lease = field(repr=False)
    patience_s: float = FusionOptions().patience_s  # see there


def read_remote(parameters: Parameters, drafters: Sequence[str], call_timeout_ms: int) -> RemoteSettings:
    """Takes the `remote…` parameters out of ``parameters``.

    A remote call ends before fusion gives the whole drafter up (``call_timeout_ms``), so that of several nodes only the one that
    hangs is left out. Raises ClientError naming the parameter that is wrong.
    """
    endpoints = {}
    for name in drafters:
        if entries := parameters.names(PREFIX + name):
            endpoints[name] = parse_endpoints(PREFIX + name, entries)
    return RemoteSettings(
        endpoints=endpoints,
        timeout_s=parameters.integer("remote_timeout_ms", max(1, call_timeout_ms // 2), 1, call_timeout_ms) / 1e3,
        max_step_tokens=parameters.integer("remote_max_step_tokens", 0, 2, 1 << 20) or None,
        tls=_read_tls(parameters),
        lease=_read_lease(parameters.text("remote_lease_file", "")),
    )


def remote_parameters(config_file: Path, drafters: Sequence[str]) -> Parameters:
    """The `remote…` parameters of `fusion`'s config.pbtxt as it lies on disk, for `cosine`, which only looks at the engines."""
    names = [*(PREFIX + name for name in drafters), *OPTIONS]
    found = {name: parameter_in(config_file, name) for name in names} if config_file.is_file() else {}
    return Parameters({name: value for name, value in found.items() if value is not None})


def _read_tls(parameters: Parameters) -> TlsFiles | None:
    switch = parameters.choice("remote_tls", "off", ("off", "on"))
    files: dict[str, Path | None] = {}
    for name in _TLS_FILES:
        text = parameters.text(name, "")
        if text and switch == "off":
            raise invalid(name, text, "nothing, unless remote_tls is on")
        if text and not Path(text).is_file():
            raise invalid(name, text, "a PEM file that can be read")
        files[name] = Path(text) if text else None
    root, cert, key = files.values()
    if (cert is None) != (key is None):
        raise invalid("remote_tls_key_file" if key is None else "remote_tls_cert_file", "", "a file, as the other one of the two is given")
    return TlsFiles(root, cert, key) if switch == "on" else None


def _read_lease(file: str) -> Lease:
    """The secret of the run that the drafters live in: from a file, else from the environment, else it is this run's own."""
    if not file:
        secret = os.environ.get(REMOTE_LEASE_VARIABLE, "")
        return _checked(REMOTE_LEASE_VARIABLE, secret.encode()) if secret else Lease.from_environment()
    try:
        return _checked("remote_lease_file", Path(file).read_bytes().strip())
    except OSError as error:
        raise invalid("remote_lease_file", file, "a file that can be read") from error


def _checked(name: str, secret: bytes) -> Lease:
    try:
        return Lease(secret)
    except ServerError as error:  # its message names the variable of this run's own secret
        raise invalid(name, f"{len(secret)} bytes", f"at least {MIN_SECRET_BYTES} bytes") from error
