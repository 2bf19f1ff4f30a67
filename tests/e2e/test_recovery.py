"""A killed process behind the server: the text stays the same, and the model comes back by itself."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drafthouse.launcher import TritonServer
from drafthouse_client import Client, GenerateOptions
from e2e.support import free_port_config

PROMPT = "def read_lines(path):\n    "
LONG = GenerateOptions(max_tokens=160, min_tokens=160, num_draft_tokens=5)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def fragile(repository_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of its own: these tests kill parts of it."""
    with TritonServer(free_port_config(repository_dir, log_dir=tmp_path_factory.mktemp("log"))) as running:
        yield running


@pytest.fixture(scope="module")
def expected(fragile: TritonServer) -> tuple[int, ...]:
    """What the target says when nothing is killed."""
    with Client(fragile.grpc_address) as client:
        return client.generate(PROMPT, LONG).output_ids


def stub_pid(server: TritonServer, model: str) -> int:
    """The newest live process that runs this model of this server."""
    group = os.getpgid(server.pid)
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            alive = os.getpgid(int(folder.name)) == group and (folder / "stat").read_bytes().rsplit(b") ", 1)[1][:1] != b"Z"
        except OSError:
            continue
        if alive and b"triton_python_backend_stub" in command and f"/{model}/1/model.py".encode() in command:
            found.append(int(folder.name))
    assert found, f"no process runs {model}"
    return max(found)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.1)


@pytest.mark.parametrize("model", ["drafter_code", "fusion", "router", "target"])
def test_the_text_survives_a_kill_in_mid_stream(fragile: TritonServer, expected: tuple[int, ...], model: str) -> None:
    with Client(fragile.grpc_address) as client:
        stream = client.stream(PROMPT, LONG)
        ids = list(next(stream).output_ids)
        victim = stub_pid(fragile, model)
        os.kill(victim, signal.SIGKILL)
        for chunk in stream:
            ids.extend(chunk.output_ids)
        assert tuple(ids) == expected
        # The next request finds a whole system again: same text, and a new process behind the model.
        assert client.generate(PROMPT, LONG).output_ids == expected
        wait_until(lambda: client.generate(PROMPT, LONG).output_ids == expected and stub_pid(fragile, model) != victim)
        stats = client.stats()
        assert (stats["running"], stats["queue_len"]) == (0, 0)


def test_a_pinned_drafter_that_died_drafts_again(fragile: TritonServer, expected: tuple[int, ...]) -> None:
    options = GenerateOptions(max_tokens=160, min_tokens=160, num_draft_tokens=5, drafters=("code",))
    with Client(fragile.grpc_address) as client:
        os.kill(stub_pid(fragile, "drafter_code"), signal.SIGKILL)

        def drafted() -> bool:
            completion = client.generate(PROMPT, options)
            assert completion.output_ids == expected
            return any(source >= 0 for source in completion.token_sources)

        wait_until(drafted)
