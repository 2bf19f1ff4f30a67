"""What a run may be made of, and what is refused before anything starts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from drafthouse.launcher.config import ServerConfig
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.ports import reserve_ports


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"http_port": 70000}, "--http-port"),
        ({"grpc_port": -1}, "--grpc-port"),
        ({"http_port": 9000, "metrics_port": 9000}, "--http-port, --grpc-port, --metrics-port"),
        ({"startup_timeout_s": 0}, "startup_timeout_s"),
        ({"exit_timeout_s": 0}, "exit_timeout_s"),
        ({"thread_pool_size": 0}, "thread_pool_size"),
        ({"shm_default_bytes": 4096}, "shm_default_bytes"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(LaunchError) as refused:
        ServerConfig(Path("models"), **changed)
    assert refused.value.code == "INVALID_ARG"
    assert refused.value.field == field
    assert str(refused.value).startswith(f"INVALID_ARG field={field} value=")


def test_several_ports_may_be_left_to_chance() -> None:
    config = ServerConfig(Path("models"), http_port=0, grpc_port=0, metrics_port=0)
    ports = reserve_ports(config)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert all(1024 <= port <= 65535 for port in (ports.http, ports.grpc, ports.metrics))


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_in_use_is_named_with_its_option(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, option[2:].replace("-", "_"): port}
        with pytest.raises(LaunchError) as refused:
            reserve_ports(ServerConfig(Path("models"), **ports))
    assert refused.value.field == option
    assert f"value={port} (in use on 127.0.0.1)" in str(refused.value)


@pytest.mark.parametrize("host", ["192.0.2.7", "no such host"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(LaunchError) as refused:
        reserve_ports(ServerConfig(Path("models"), host=host, http_port=0, grpc_port=0, metrics_port=0))
    assert refused.value.field == "--host"


def make_model(repository: Path, name: str) -> None:
    (repository / name).mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"')


def test_the_whole_repository_is_loaded_unless_told_otherwise(tmp_path: Path) -> None:
    for name in ("target", "cosine"):
        make_model(tmp_path, name)
    (tmp_path / "notes").mkdir()
    assert ServerConfig(tmp_path).model_names() == ("cosine", "target")
    assert ServerConfig(tmp_path, load_models=("target",)).model_names() == ("target",)


def test_a_repository_without_models_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LaunchError, match="field=--model-repository"):
            ServerConfig(folder).model_names()


def test_a_model_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    make_model(tmp_path, "cosine")
    with pytest.raises(LaunchError, match=r"value=\['cosin'\] allowed=cosine"):
        ServerConfig(tmp_path, load_models=("cosin",)).model_names()


def test_a_secret_is_new_for_every_run_or_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef\n")
    assert ServerConfig(Path("models"), lease_file=file).lease_secret() == "0123456789abcdef"
    config = ServerConfig(Path("models"))
    assert len(config.lease_secret()) == 64
    assert config.lease_secret() != config.lease_secret()


@pytest.mark.parametrize("content", [b"", b"too short", b"0123456789abcdef\x000", b"0123456789abcd\xff\xff", None])
def test_a_file_without_a_secret_is_refused_and_not_shown(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "lease"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(LaunchError) as refused:
        ServerConfig(Path("models"), lease_file=file).lease_secret()
    assert refused.value.field == "--lease-file"
    assert "0123" not in str(refused.value)
    assert "too short" not in str(refused.value)
