"""Finding the server, its stub and libpython."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from drafthouse.launcher import exec_guard, installation, libpython
from drafthouse.launcher.errors import LaunchError

VERSION = ".".join(map(str, sys.version_info[:2]))


def make_server(root: Path, *, versions: tuple[str, ...] = (VERSION,)) -> Path:
    backend = root / "backends" / "python"
    stubs = [root / "python_backend_stubs" / version for version in versions] or [backend]
    for folder in (root / "bin", backend, *stubs):
        folder.mkdir(parents=True, exist_ok=True)
    files = [root / "bin/tritonserver", backend / "libtriton_python.so", backend / "triton_python_backend_utils.py"]
    for path in (*files, *(folder / "triton_python_backend_stub" for folder in stubs)):
        path.touch(mode=0o755)
    return root / "bin/tritonserver"


def test_the_wheels_server_is_found_with_the_stub_of_this_python() -> None:
    pytest.importorskip("pytriton", reason="needs the cpu-server extra")
    found = installation.find_installation()
    assert os.access(found.binary, os.X_OK)
    assert found.stub.parent.name in (VERSION, "python")


@pytest.mark.parametrize("versions", [(VERSION,), ()], ids=["wheel", "container"])
def test_the_backend_folder_is_made_of_links(tmp_path: Path, versions: tuple[str, ...]) -> None:
    binary = make_server(tmp_path / "server", versions=versions)
    backends = installation.find_installation(binary).write_backend(tmp_path / "run")
    links = {path.name: path for path in (backends / "python").iterdir()}
    assert set(links) == {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"}
    assert all(path.is_symlink() and path.exists() for path in links.values())


def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"UNAVAILABLE field=tritonserver value=.*nowhere"):
        installation.find_installation(tmp_path / "nowhere")


def test_without_any_server_both_ways_to_get_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "CONTAINER_ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "pytriton", raising=False)
    with pytest.raises(LaunchError, match=r"allowed=the NGC container, or: pip install 'drafthouse\[cpu-server\]'"):
        installation.find_installation()


def test_a_server_without_a_stub_for_this_python_names_those_it_has(tmp_path: Path) -> None:
    binary = make_server(tmp_path, versions=("3.8", "3.10"))
    with pytest.raises(LaunchError, match=rf"value=Python {VERSION}, without .* allowed=Python 3.8, 3.10 with"):
        installation.find_installation(binary)


@pytest.fixture
def no_libpython(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose Python has no shared library; returns the environment's prefix."""
    monkeypatch.setattr(libpython, "running_python_folders", lambda: [tmp_path / "nowhere"])
    monkeypatch.setattr(libpython, "system_library", lambda: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    return tmp_path / "venv"


def make_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_this_pythons_own_library_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / libpython.LIBRARY).touch()
    monkeypatch.setattr(libpython, "running_python_folders", lambda: [tmp_path])
    assert libpython.find_libpython(pytest.fail) == tmp_path / libpython.LIBRARY


def test_debians_package_is_unpacked_once_and_then_found(no_libpython: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    make_tool(tools, "apt-get", f'test "$*" = "download {libpython.PACKAGE}" && touch {libpython.PACKAGE}_amd64.deb')
    make_tool(tools, "dpkg", f'mkdir -p "$3/usr/lib/x" && echo library > "$3/usr/lib/x/{libpython.LIBRARY}"')
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    heard: list[str] = []
    found = libpython.find_libpython(heard.append)
    assert found.read_text() == "library\n"
    assert found.is_relative_to(no_libpython)
    assert len(heard) == 1
    assert libpython.find_libpython(heard.append) == found
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("apt_get", "said"),
    [
        ("echo 'E: Unable to locate package' >&2; exit 100", "E: Unable to locate package"),
        ("true", "not found"),
        (None, "apt-get"),
    ],
    ids=["unknown package", "nothing downloaded", "no apt-get"],
)
def test_only_then_the_command_to_run_is_named(
    no_libpython: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt_get: str | None, said: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if apt_get is not None:
        make_tool(tools, "apt-get", apt_get)
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(LaunchError) as refused:
        libpython.find_libpython(lambda text: None)
    assert said in str(refused.value)
    assert f"sudo apt-get install {libpython.PACKAGE}" in str(refused.value)
    assert not list(no_libpython.rglob("*.so*"))


def test_the_guard_becomes_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", exec_guard.__file__, str(os.getpid()), "/bin/echo", "one", "two"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "one two\n"


def test_the_guard_starts_nothing_when_the_launcher_is_gone_already() -> None:
    command = [sys.executable, "-I", "-S", exec_guard.__file__, str(os.getppid()), "/bin/echo", "never"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "never" not in done.stdout
    assert "launcher ended" in done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the guard's filter is written for these")
def test_behind_the_guard_no_file_is_opened_to_others_by_its_descriptor(tmp_path: Path) -> None:
    """What Boost does when Triton makes a region: create, then fchmod 0644. Modes that keep others out are set as asked."""
    code = (
        "import os, sys; file = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o644);"
        "modes = [os.fchmod(file, mode) or oct(os.fstat(file).st_mode & 0o777) for mode in (0o644, 0o606, 0o400)]; print(*modes)"
    )
    guard = [sys.executable, "-I", "-S", exec_guard.__file__, str(os.getpid())]
    done = subprocess.run([*guard, sys.executable, "-c", code, str(tmp_path / "region")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0o600", "0o600", "0o400"]
