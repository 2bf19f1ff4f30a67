"""The `drafthouse` command: its table of sub-commands and what it says when one cannot run."""

from __future__ import annotations

import argparse
import importlib.util
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from drafthouse.launcher import ServerConfig
from drafthouse.launcher.config import GrpcTls
from drafthouse.launcher.errors import LaunchError
from drafthouse.launcher.serve import StopSignals, add_cluster_options, add_server_options, cluster_config, server_config
from drafthouse_client import cli


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: str(command.name))
def test_every_sub_command_has_its_module(command: cli.SubCommand) -> None:
    assert importlib.util.find_spec(command.module) is not None


def test_the_help_names_every_sub_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(command.name in said for command in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["sevre"], ["--sevre"]])
def test_wrong_usage_is_status_2_and_names_the_choices(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: drafthouse" in capsys.readouterr().err


def test_a_sub_command_gets_its_own_options_and_gives_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(cli.SubCommand, "load", lambda command: lambda argv: heard.extend([command.name, *argv]) or 7)
    assert cli.main(["serve", "--http-port", "1", "--help"]) == 7
    assert heard == ["serve", "--http-port", "1", "--help"]


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_torch(command: cli.SubCommand) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr(cli.SubCommand, "load", without_torch)
    assert cli.main(["train-demo"]) == 1
    assert "allowed=pip install 'drafthouse[train]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_not_mistaken_for_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(cli.COMMANDS[0], module="drafthouse.no_such_module")
    monkeypatch.setattr(cli, "COMMANDS", (broken,))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        cli.main([broken.name])


def test_signals_are_counted_and_the_handlers_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    with signals.installed():
        assert not signals.requested()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.count == 2
    assert signals.requested()
    assert signal.getsignal(signal.SIGTERM) == before


def test_under_nohup_a_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().installed():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_every_option_of_serve_reaches_the_configuration() -> None:
    parser = argparse.ArgumentParser()
    add_server_options(parser)
    assert server_config(parser.parse_args([])) == ServerConfig(Path("model_repository"))
    first = "--model-repository m --host ::1 --http-port 1 --grpc-port 2 --metrics-port 3 --log-dir l"
    second = "--log-verbose-level 4 --startup-timeout-s 5 --exit-timeout-s 6 --thread-pool-size 7 --tritonserver t"
    words = f"{first} {second}".split()
    assert server_config(parser.parse_args(words)) == ServerConfig(
        Path("m"),
        host="::1",
        http_port=1,
        grpc_port=2,
        metrics_port=3,
        log_dir=Path("l"),
        log_verbose_level=4,
        startup_timeout_s=5.0,
        exit_timeout_s=6,
        thread_pool_size=7,
        tritonserver=Path("t"),
    )


def cluster_words(*words: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    add_server_options(parser)
    add_cluster_options(parser)
    return cluster_config(parser.parse_args(words))


def test_a_server_of_a_cluster_has_a_secret_and_a_certificate(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.write_text("PEM")
    assert cluster_words("--lease-file", "secret").lease_file == Path("secret")
    config = cluster_words("--grpc-tls-cert", str(pem), "--grpc-tls-key", str(pem), "--grpc-tls-client-root", str(pem))
    assert config.grpc_tls == GrpcTls(pem, pem, pem)
    assert (cluster_words().lease_file, cluster_words().grpc_tls) == (None, None)
    for words, field in ((["--grpc-tls-cert", str(pem)], "--grpc-tls-key"), (["--grpc-tls-client-root", str(pem)], "--grpc-tls-cert")):
        with pytest.raises(LaunchError) as refused:
            cluster_words(*words)
        assert refused.value.field == field
    with pytest.raises(LaunchError) as refused:
        cluster_words("--grpc-tls-cert", str(pem), "--grpc-tls-key", str(tmp_path / "nowhere"))
    assert refused.value.field == "--grpc-tls-key"
