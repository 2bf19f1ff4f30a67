"""What the servers of the end-to-end tests have in common."""

from __future__ import annotations

from pathlib import Path

from drafthouse.launcher import ServerConfig

FIXTURES = Path(__file__).parent / "fixtures"
"""Models small enough to test the launcher with."""


def free_port_config(repository: Path, **changed: object) -> ServerConfig:
    """A configuration for a test: any free ports, a short exit."""
    defaults: dict[str, object] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "exit_timeout_s": 2}
    return ServerConfig(repository, **{**defaults, **changed})  # type: ignore[arg-type]
