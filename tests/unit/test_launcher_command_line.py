"""The `drafthouse` command: its table of sub-commands and what it says when one cannot run."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

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
