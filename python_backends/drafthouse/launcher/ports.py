"""Ports: found free, or refused before anything is started."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from drafthouse.launcher.config import ServerConfig
from drafthouse.launcher.errors import LaunchError


@dataclass(frozen=True)
class Ports:
    """The three ports one server listens on."""

    http: int
    grpc: int
    metrics: int


def reserve_ports(config: ServerConfig) -> Ports:
    """Checks every port that was asked for and picks free ones for those given as 0.

    All three are held open together while choosing, so they differ. Another process may still take one before Triton
    does; Triton then fails to start and says so.
    Errors: LaunchError (UNAVAILABLE) naming the option and the port in use; INVALID_ARG for an address that is not ours.
    """
    with ExitStack() as held:
        http = _bind(held, config.host, config.http_port, "--http-port")
        grpc = _bind(held, config.host, config.grpc_port, "--grpc-port")
        metrics = _bind(held, config.host, config.metrics_port, "--metrics-port")
    return Ports(http=http, grpc=grpc, metrics=metrics)


def require_free(host: str, port: int, port_option: str, host_option: str) -> None:
    """Checks a port that another program is to listen on. Errors as `reserve_ports`."""
    with ExitStack() as held:
        _bind(held, host, port, port_option, host_option)


def free_port(host: str) -> int:
    """A port that nobody listens on now. Errors as `reserve_ports`."""
    with ExitStack() as held:
        return _bind(held, host, 0, "port")


def _bind(held: ExitStack, host: str, port: int, option: str, host_option: str = "--host") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    # As Triton does: a port in TIME_WAIT after an earlier run is free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
            reason = "in use" if error.errno == errno.EADDRINUSE else "not permitted"
            raise LaunchError(
                "UNAVAILABLE", field=option, value=f"{port} ({reason} on {host})", allowed=f"a free port, for example {option} 0 for any"
            ) from error
        raise LaunchError("INVALID_ARG", field=host_option, value=host, allowed="an address of this machine") from error
    return int(listener.getsockname()[1])
