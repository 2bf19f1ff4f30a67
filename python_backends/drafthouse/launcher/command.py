"""The command line and the environment of one server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from drafthouse.core.environment import LEASE_VARIABLE
from drafthouse.launcher.config import GrpcTls, ServerConfig
from drafthouse.launcher.control import CONTROL_HEADER, RESTRICTED_APIS
from drafthouse.launcher.identity import RunId
from drafthouse.launcher.installation import Installation
from drafthouse.launcher.ports import Ports

_PYTHON = "--backend-config=python,"


def server_arguments(config: ServerConfig, installation: Installation, run: RunId, ports: Ports, backends: Path, key: str) -> list[str]:
    """The arguments of tritonserver, the program itself first.

    The key is among them, because Triton takes it in no other way: users of this machine who may read this user's
    /proc/PID/cmdline (by default: all) can see it while the server runs. On a shared machine mount /proc with hidepid.
    """
    return [
        str(installation.binary),
        f"--model-repository={config.model_repository.resolve()}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in config.load_models),
        f"--http-address={config.host}",
        f"--http-port={ports.http}",
        f"--grpc-address={config.host}",
        f"--grpc-port={ports.grpc}",
        *_tls_arguments(config.grpc_tls),
        f"--metrics-address={config.host}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={config.exit_timeout_s}",
        # Our configurations are complete; completing them would start every model's Python one more time (1.1 s each).
        "--disable-auto-complete-config",
        f"--log-verbose={config.log_verbose_level}",
        # An open load call runs foreign code: it may carry a model.py. The others read or write memory and files.
        f"--http-restricted-api={RESTRICTED_APIS}:{CONTROL_HEADER}={key}",
        f"--grpc-restricted-protocol={RESTRICTED_APIS}:{CONTROL_HEADER}={key}",
        f"{_PYTHON}shm-region-prefix-name={run.prefix}",
        f"{_PYTHON}shm-default-byte-size={config.shm_default_bytes}",
        f"{_PYTHON}shm-growth-byte-size={config.shm_growth_bytes}",
        f"{_PYTHON}stub-timeout-seconds={config.stub_timeout_s}",
        f"{_PYTHON}thread-pool-size={config.thread_pool_size}",
    ]


def _tls_arguments(tls: GrpcTls | None) -> list[str]:
    if tls is None:
        return []
    arguments = ["--grpc-use-ssl=true", f"--grpc-server-cert={tls.cert.resolve()}", f"--grpc-server-key={tls.key.resolve()}"]
    if tls.client_root is not None:
        arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={tls.client_root.resolve()}"]
    return arguments


def server_environment(config: ServerConfig, libpython: Path, run_folder: Path, lease_secret: str) -> dict[str, str]:
    """The environment of the server and, through it, of every model.

    The stub finds its packages by the first `python3` on PATH, so that must be the environment we run in. Only the one
    library is put on the loader's path, not the folder it lies in, which may hold other versions of anything.
    """
    library_folder = run_folder / "lib"
    library_folder.mkdir()
    (library_folder / libpython.name).symlink_to(libpython)
    inherited = dict(os.environ)
    return {
        **inherited,
        "PATH": _joined(str(Path(sys.executable).parent), inherited.get("PATH")),
        "LD_LIBRARY_PATH": _joined(str(library_folder), inherited.get("LD_LIBRARY_PATH")),
        "PYTHONUNBUFFERED": "1",
        LEASE_VARIABLE: lease_secret,
        **config.environment,
    }


def _joined(first: str, rest: str | None) -> str:
    return f"{first}:{rest}" if rest else first
