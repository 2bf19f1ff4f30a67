"""The log: five hundred lines in, the few that matter out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from drafthouse.launcher import server_log
from drafthouse.launcher.errors import LaunchError

HEAD = """\
W1120 09:41:47.000001 10 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1120 09:41:47.000002 10 server.cc:241] "CudaDriverHelper has not been initialized."
I1120 09:41:47.000003 10 model_lifecycle.cc:472] "loading: echo:1"
I1120 09:41:47.000004 10 model_lifecycle.cc:839] "successfully loaded 'echo'"
"""
FAILED = (
    """E1120 09:41:48.000001 10 model_lifecycle.cc:642] "failed to load 'broken' version 1: Internal: RuntimeError: no engine"""
    + "".join(rf"\n  /models/broken/1/model.py({line}): initialize" for line in range(30))
    + '\\nlast line"\n'
)
AGAIN = """\
E1120 09:41:49.000001 10 model_repository_manager.cc:703] "failed to load 'broken' again"
I1120 09:41:50.000001 10 x.cc:1] "bye"
"""


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def test_the_loaded_models_are_read_while_the_log_grows(log_file: Path) -> None:
    assert server_log.loaded_models(log_file) == set()
    log_file.write_text(HEAD)
    assert server_log.loaded_models(log_file) == {"echo"}


def test_a_model_that_fails_is_told_once_and_shortly(log_file: Path) -> None:
    log_file.write_text(HEAD + FAILED + AGAIN)
    lines = server_log.error_lines(log_file)
    assert "failed to load 'broken' version 1: Internal: RuntimeError: no engine" in lines[0]
    assert lines[-1] == 'last line"'
    assert "  …" in lines
    assert len(lines) == 14


def test_models_that_fail_alike_are_all_named_but_explained_once(log_file: Path) -> None:
    record = """E1120 09:41:48.000001 10 x.cc:1] "failed to load '{0}' version 1: Internal: no engine\\nAt:\\n  model.py(3)\\n"\n"""
    log_file.write_text("".join(map(record.format, ("code", "math", "docs"))))
    lines = server_log.error_lines(log_file)
    assert [line.split("'")[1] for line in lines if "failed to load" in line] == ["code", "math", "docs"]
    assert [line.strip() for line in lines if "failed to load" not in line] == ["At:", "model.py(3)"]


def test_frames_of_the_import_system_are_left_out(log_file: Path) -> None:
    frames = r"\n  <frozen importlib._bootstrap>(241): _call_with_frames_removed" * 20
    log_file.write_text(f"E1120 09:41:48.000001 10 x.cc:1] \"failed to load 'code' version 1: Internal: no engine{frames}\n")
    assert len(server_log.error_lines(log_file)) == 1


def test_without_a_failed_model_the_errors_are_told(log_file: Path) -> None:
    message = 'E1120 09:41:48.000001 10 main.cc:295] "failed to start HTTP service: Unavailable - Socket in use"'
    log_file.write_text(HEAD + message + "\n")
    assert server_log.error_lines(log_file) == (message,)


def test_without_any_error_the_end_of_the_log_is_told(log_file: Path) -> None:
    log_file.write_text(HEAD)
    assert server_log.error_lines(log_file) == tuple(HEAD.splitlines())
    log_file.write_text("")
    assert server_log.error_lines(log_file) == ()


def test_a_usage_error_of_the_server_itself_is_told(log_file: Path) -> None:
    log_file.write_text("tritonserver: unrecognized option '--no-such'\nUsage: tritonserver [options]\n")
    assert server_log.error_lines(log_file)[0] == "tritonserver: unrecognized option '--no-such'"


def test_very_long_lines_and_very_many_models_are_cut(log_file: Path) -> None:
    record = "E1120 09:41:48.000001 10 x.cc:1] \"failed to load 'm{0}' version 1: " + "x" * 2000 + "\n"
    log_file.write_text("".join(record.format(index) for index in range(200)))
    lines = server_log.error_lines(log_file)
    assert len(lines) == 60
    assert max(map(len, lines)) == 400


def test_only_the_newest_logs_are_kept_in_our_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(server_log.KEPT_LOGS + 3):
        newest = server_log.new_log_file(None)
        newest.touch()
    assert len(list(newest.parent.glob("*.log"))) == server_log.KEPT_LOGS
    assert newest.exists()


def test_a_folder_of_the_operators_is_made_and_never_tidied(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "logs"
    for _ in range(server_log.KEPT_LOGS + 3):
        server_log.new_log_file(folder).touch()
    assert len(list(folder.glob("*.log"))) == server_log.KEPT_LOGS + 3


def test_a_log_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="INVALID_ARG field=--log-dir"):
        server_log.new_log_file(tmp_path / "file" / "logs")
