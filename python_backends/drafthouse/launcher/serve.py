"""`drafthouse serve`: options in, a server that stays up, an exit status out."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from drafthouse.launcher.config import GrpcTls, ServerConfig
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.gateway import OFF, GatewayConfig, GatewayProcess
from drafthouse.launcher.server import TritonServer
from drafthouse.launcher.server_log import error_lines
from drafthouse.launcher.watch import FrontDoorWatch, watches_of

_WATCH_S = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """The first signal asks for a stop, the second kills the server where it stands."""

    def __init__(self) -> None:
        self.count = 0
        self.server: TritonServer | None = None
        self.gateway: GatewayProcess | None = None

    def requested(self) -> bool:
        """Has a signal arrived?"""
        return self.count > 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            for child in (self.gateway, self.server):
                if child is not None:
                    child.kill_processes()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles SIGINT, SIGTERM and SIGHUP inside the block; a SIGHUP that is ignored, as under nohup, stays so."""
        chosen = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in chosen}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The options of a server, with the defaults of `ServerConfig`; other commands that start one add them too."""
    default = ServerConfig(Path("model_repository"))
    option = parser.add_argument
    option("--model-repository", type=Path, default=default.model_repository, help="folder of models (default: %(default)s)")
    option("--host", default=default.host, help="address to listen on (default: %(default)s)")
    option("--http-port", type=int, default=default.http_port, help="0 is any free port (default: %(default)s)")
    option("--grpc-port", type=int, default=default.grpc_port, help="(default: %(default)s)")
    option("--metrics-port", type=int, default=default.metrics_port, help="(default: %(default)s)")
    option("--log-dir", type=Path, help="where the server's log goes (default: a folder of yours in the temporary directory)")
    option("--log-verbose-level", type=int, default=default.log_verbose_level, help="Triton's --log-verbose (default: %(default)s)")
    option("--startup-timeout-s", type=float, default=default.startup_timeout_s, help="(default: %(default)s)")
    option(
        "--exit-timeout-s",
        type=int,
        default=default.exit_timeout_s,
        help="how long running requests may take to end (default: %(default)s)",
    )
    option("--thread-pool-size", type=int, default=default.thread_pool_size, help="of the Python backend (default: %(default)s)")
    option("--tritonserver", type=Path, help="server binary (default: the container's, else the nvidia-pytriton wheel's)")


def server_config(arguments: argparse.Namespace) -> ServerConfig:
    """A `ServerConfig` from parsed options. Errors: LaunchError (INVALID_ARG)."""
    return ServerConfig(
        model_repository=arguments.model_repository,
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        log_dir=arguments.log_dir,
        log_verbose_level=arguments.log_verbose_level,
        startup_timeout_s=arguments.startup_timeout_s,
        exit_timeout_s=arguments.exit_timeout_s,
        thread_pool_size=arguments.thread_pool_size,
        tritonserver=arguments.tritonserver,
    )


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """The options of a server whose drafters others may call."""
    option = parser.add_argument
    option("--lease-file", type=Path, help="secret that servers share whose drafters work together (default: a new one for this run)")
    option("--grpc-tls-cert", type=Path, help="PEM file: the gRPC port's certificate (default: no TLS)")
    option("--grpc-tls-key", type=Path, help="PEM file: the key of that certificate")
    option("--grpc-tls-client-root", type=Path, help="PEM file: only clients whose certificate it signed get in (default: all)")


def cluster_config(arguments: argparse.Namespace) -> ServerConfig:
    """As `server_config`, with the options of `add_cluster_options`. Errors: LaunchError (INVALID_ARG)."""
    return replace(server_config(arguments), lease_file=arguments.lease_file, grpc_tls=_grpc_tls(arguments))


def add_gateway_options(parser: argparse.ArgumentParser) -> None:
    """The options of the OpenAI gateway beside the server; `drafthouse gateway` has all of them."""
    option = parser.add_argument
    option("--gateway-port", default=OFF, help=f"serve OpenAI's API here, too; 0 and {OFF} are no gateway (default: %(default)s)")
    option("--gateway-host", default=GatewayConfig().host, help="address the gateway listens on (default: %(default)s)")


def _grpc_tls(arguments: argparse.Namespace) -> GrpcTls | None:
    cert, key, client_root = arguments.grpc_tls_cert, arguments.grpc_tls_key, arguments.grpc_tls_client_root
    if cert is None and key is None and client_root is None:
        return None
    if cert is None or key is None:
        missing = "--grpc-tls-cert" if cert is None else "--grpc-tls-key"
        raise LaunchError("INVALID_ARG", field=missing, value=None, allowed="a PEM file; TLS needs both --grpc-tls-cert and --grpc-tls-key")
    return GrpcTls(cert, key, client_root)


def main(argv: Sequence[str]) -> int:
    """Serves until a signal. Exit status: 0 after a stop that was asked for, 1 when the server failed or could not start."""
    parser = argparse.ArgumentParser(prog="drafthouse serve", description="Start Triton with a model repository and keep it up.")
    add_server_options(parser)
    add_cluster_options(parser)
    add_gateway_options(parser)
    console, signals = Console(stderr=True), StopSignals()
    with signals.installed():
        try:
            arguments = parser.parse_args(argv)
            config, gateway = cluster_config(arguments), GatewayConfig.parse(arguments.gateway_host, arguments.gateway_port)
            gateway.check(config)
            server = TritonServer(config, announce=lambda text: console.print(text, markup=False))
            return _serve(server, gateway, signals, console)
        except LaunchError as error:
            console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            return 1


def _serve(server: TritonServer, gateway: GatewayConfig, signals: StopSignals, console: Console) -> int:
    began_s = time.monotonic()
    try:
        server.start()
        signals.server = server
        if not console.is_terminal:
            # There is no spinner then, so a line says what takes so long.
            console.print("Starting Triton …")
        with console.status("Starting Triton …") as status:
            ready = server.wait_ready(
                progress=lambda loaded, total: status.update(f"Starting Triton: {loaded} of {total} models loaded"), stop=signals.requested
            )
        if ready:
            console.print(f"Ready after {time.monotonic() - began_s:.1f} s: {server.http_url} (HTTP), {server.grpc_address} (gRPC).")
            console.print(f"Log: {server.log_file}. Ctrl-C stops it.", soft_wrap=True)
            signals.gateway = _start_gateway(gateway, server, console)
        _watch(server, signals, console)
        return 0 if signals.requested() else _report_end(server, console)
    finally:
        if signals.requested():
            console.print("Stopping; a second signal kills.")
        if signals.gateway is not None:
            signals.gateway.stop()
        server.stop()


def _watch(server: TritonServer, signals: StopSignals, console: Console) -> None:
    """Until the server ends or a signal arrives: what dies and can be started again is."""
    watches: list[FrontDoorWatch | GatewayProcess] = [*watches_of(server, announce=lambda text: console.print(text, markup=False))]
    if signals.gateway is not None:
        watches.append(signals.gateway)
    while server.is_running() and not signals.requested():
        for watch in watches:
            watch.check()
        time.sleep(_WATCH_S)


def _start_gateway(config: GatewayConfig, server: TritonServer, console: Console) -> GatewayProcess | None:
    if not config.port:
        return None
    gateway = GatewayProcess(config, server.grpc_address, server.config.model_repository, lambda text: console.print(text, markup=False))
    gateway.start()
    console.print(f"OpenAI API: {gateway.url}/v1.", soft_wrap=True)
    return gateway


def _report_end(server: TritonServer, console: Console) -> int:
    console.print(
        f"UNAVAILABLE field=server value=ended by itself (log: {server.log_file}) allowed=a running server", style="red", soft_wrap=True
    )
    for line in error_lines(server.log_file):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1
