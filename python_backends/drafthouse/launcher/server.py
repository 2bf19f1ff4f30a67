"""One Triton server, from before its first process to after its last shared-memory region."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from drafthouse.launcher import exec_guard, processes, shared_memory, state
from drafthouse.launcher.command import server_arguments, server_environment
from drafthouse.launcher.config import ServerConfig
from drafthouse.launcher.control import CONTROL_HEADER, GRPC_CONTROL_HEADER, ControlClient, merge_config
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.identity import RunId
from drafthouse.launcher.installation import find_installation
from drafthouse.launcher.libpython import find_libpython
from drafthouse.launcher.ports import Ports, reserve_ports
from drafthouse.launcher.server_log import error_lines, loaded_models, new_log_file

_SHM_BYTES_PER_MODEL = 4 << 20
_GRACE_S = 5.0
"""Beyond Triton's own exit timeout, before the group is killed."""

Progress = Callable[[int, int], None]
"""Called with (models loaded, models expected) while waiting."""


class TritonServer:
    """A context manager: `start` and `wait_ready` on entry, `stop` on exit, whatever happened in between.

    `stop` leaves no process, no shared-memory region and no key of this run, also after a SIGKILL of a stub or of the
    server. When the launcher itself is killed the kernel stops the server, and the next start of the same user sweeps.
    The thread that calls `start` must live as long as the server: the kernel ties the two together. Not thread-safe.
    """

    def __init__(self, config: ServerConfig, *, announce: Callable[[str], None] | None = None) -> None:
        self.config = config
        self.ports = Ports(config.http_port, config.grpc_port, config.metrics_port)
        self.log_file = Path(os.devnull)
        self._announce = announce or (lambda text: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._run = RunId.new()
        self._folder: Path | None = None
        self._key = ""
        self._models: tuple[str, ...] = ()

    def __enter__(self) -> TritonServer:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The server's process; also its process group. Errors: LaunchError (UNAVAILABLE) when not started."""
        return self._started().pid

    @property
    def run_folder(self) -> Path:
        """The run's state folder, gone after `stop`."""
        self._started()
        if self._folder is None:
            raise LaunchError("UNAVAILABLE", field="server", value="stopped", allowed="a started server")
        return self._folder

    @property
    def control_headers(self) -> dict[str, str]:
        """HTTP headers that open the restricted calls. Secret: for requests only, never for messages."""
        return {CONTROL_HEADER: self._key}

    @property
    def grpc_control_headers(self) -> dict[str, str]:
        """gRPC metadata that opens the restricted calls. Secret."""
        return {GRPC_CONTROL_HEADER: self._key}

    @property
    def http_url(self) -> str:
        """`http://HOST:PORT`, without a slash at the end."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.ports.http}"

    @property
    def grpc_address(self) -> str:
        """`HOST:PORT`, as tritonclient.grpc takes it."""
        return f"{self.config.host}:{self.ports.grpc}"

    def shared_memory_regions(self) -> list[Path]:
        """What the run holds in /dev/shm now."""
        return shared_memory.regions(self._run)

    def start(self) -> None:
        """Checks everything that can be checked beforehand, sweeps dead runs, starts the server and returns at once.

        Errors: LaunchError; nothing is left behind by a refused start.
        """
        if self._process is not None:
            raise LaunchError("INVALID_ARG", field="server", value="started before", allowed="one start per TritonServer")
        self._models = self.config.model_names()
        lease_secret = self.config.lease_secret()
        installation = find_installation(self.config.tritonserver)
        libpython = find_libpython(self._announce)
        sweep_stale_runs(self._announce)
        shared_memory.require_space(len(self._models), _SHM_BYTES_PER_MODEL)
        self.ports = reserve_ports(self.config)
        self.log_file = new_log_file(self.config.log_dir)
        self._folder = state.create_run_folder(self._run)
        self._key = state.write_key(self._folder)
        backends = installation.write_backend(self._folder)
        arguments = server_arguments(self.config, installation, self._run, self.ports, backends, self._key)
        environment = server_environment(self.config, libpython, self._folder, lease_secret)
        self._process = self._spawn(arguments, environment)
        state.write_info(self._folder, self.ports, self.log_file)

    def wait_ready(self, timeout_s: float | None = None, progress: Progress | None = None, stop: Callable[[], bool] | None = None) -> bool:
        """Waits until every model serves and returns True; False when `stop` said so first.

        Errors: LaunchError (UNAVAILABLE) with the models' own error lines when the server ended or the time is up.
        """
        process, limit_s = self._started(), self.config.startup_timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + limit_s
        control = self._control()
        while not control.is_ready():
            if stop is not None and stop():
                return False
            if progress is not None:
                progress(len(loaded_models(self.log_file)), len(self._models))
            if process.poll() is not None:
                raise self._failure(f"ended with status {process.returncode}", "models that load")
            if time.monotonic() > deadline_s:
                raise self._failure(f"not ready after {limit_s:g} s", "models that load, or a longer --startup-timeout-s")
            time.sleep(processes.POLL_S)
        if shared_memory.open_to_others(self._run):
            self._announce("Other users of this machine can read this run's shared memory: the kernel takes no seccomp filter.")
        return True

    def is_running(self) -> bool:
        """Does the server process live?"""
        return self._process is not None and self._process.poll() is None

    def load_model(self, name: str, config_override: Mapping[str, Any] | None = None) -> None:
        """Starts a model anew and returns when it serves; running requests end first.

        Without an override it then runs as config.pbtxt says: that undoes earlier overrides and revives a model whose
        process died. An override is merged into the configuration the model runs with (see `merge_config`).
        Errors: LaunchError (UNAVAILABLE) with the server's reason.
        """
        control = self._control()
        if config_override is None:
            # Triton takes a load of a loaded model whose files are unchanged for done.
            control.unload(name, self.config.startup_timeout_s)
            control.load(name, None, self.config.startup_timeout_s)
        else:
            control.load(name, merge_config(control.model_config(name), config_override), self.config.startup_timeout_s)

    def unload_model(self, name: str) -> None:
        """Unloads a model. Errors: LaunchError (UNAVAILABLE) with the server's reason."""
        self._control().unload(name, self.config.startup_timeout_s)

    def stop(self) -> None:
        """Ends the server: asks it, waits its exit timeout and a little, then kills its whole group. Safe to repeat.

        An interrupt while waiting kills at once; the sweep is done either way.
        """
        try:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                self._process.wait(self.config.exit_timeout_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            self._announce("The server did not end by itself (a dead model process holds it up); ending it.")
        finally:
            self.kill()

    def kill_processes(self) -> None:
        """SIGKILLs the server and its stubs and does nothing else, so that a signal handler may call it while `stop` waits."""
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILLs what is left of the server and its stubs and sweeps. Safe to repeat."""
        if self._process is not None:
            processes.kill_group(self._process.pid)
            self._process.wait()
        shared_memory.sweep(self._run)
        if self._folder is not None:
            state.remove_run_folder(self._folder)
            self._folder = None

    def _spawn(self, arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        guard = [sys.executable, "-I", "-S", exec_guard.__file__, str(os.getpid())]
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A session of its own: Ctrl-C in a terminal reaches the launcher only, which then stops the server in order.
            return subprocess.Popen(
                [*guard, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(descriptor)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LaunchError("UNAVAILABLE", field="server", value="not started", allowed="a started server")
        return self._process

    def _control(self) -> ControlClient:
        self._started()
        return ControlClient(self.config.host, self.ports.http, self._key)

    def _failure(self, what: str, allowed: str) -> LaunchError:
        lines = error_lines(self.log_file)
        return LaunchError("UNAVAILABLE", field="server", value=f"{what} (log: {self.log_file})", allowed=allowed, details=lines)


def sweep_stale_runs(announce: Callable[[str], None] = lambda text: None) -> int:
    """Ends the servers and removes the regions and folders of this user's runs whose launcher was killed; returns how many runs."""
    folders = state.stale_run_folders()
    runs = set(folders) | shared_memory.stale_runs()
    for run in runs:
        processes.kill_run(run)
        count = shared_memory.sweep(run)
        if run in folders:
            state.remove_run_folder(folders[run])
        announce(f"Swept a run whose launcher (pid {run.pid}) was killed: {count} shared-memory regions.")
    return len(runs)
