"""Starts, watches and ends the Triton server (`drafthouse serve`)."""

from drafthouse.launcher.config import ServerConfig
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.server import TritonServer, sweep_stale_runs
from drafthouse.launcher.state import RunInfo, live_runs

__all__ = ["LaunchError", "RunInfo", "ServerConfig", "TritonServer", "live_runs", "sweep_stale_runs"]
