"""A server of this command's own: started with progress, stopped whatever happens."""

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from drafthouse.launcher import TritonServer
from drafthouse.launcher.serve import add_server_options, server_config

_STATUS_OF_SIGTERM = 128 + signal.SIGTERM


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `drafthouse serve`, on free ports unless told otherwise: another server may be up."""
    add_server_options(parser.add_argument_group("server"))  # type: ignore[arg-type]
    parser.set_defaults(http_port=0, grpc_port=0, metrics_port=0)


@contextmanager
def running(args: argparse.Namespace, console: Console) -> Iterator[TritonServer]:
    """Start a server from parsed options, wait until every model serves, stop it at the end.

    SIGTERM ends the block like Ctrl-C does, so that it, too, stops the server.

    Raises:
        LaunchError: the server did not start; nothing is left behind.
    """
    server = TritonServer(server_config(args), announce=lambda text: console.print(text, markup=False))
    before = signal.signal(signal.SIGTERM, _leave)
    began_s = time.monotonic()
    try:
        server.start()
        with console.status("Starting Triton …") as status:
            server.wait_ready(progress=lambda loaded, total: status.update(f"Starting Triton: {loaded} of {total} models loaded"))
        console.print(
            f"Triton is ready after {time.monotonic() - began_s:.1f} s at {server.grpc_address} (log: {server.log_file})", soft_wrap=True
        )
        yield server
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(_STATUS_OF_SIGTERM)
