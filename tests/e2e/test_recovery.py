"""A killed process behind the server: the text stays the same, and the model comes back by itself."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from drafthouse.launcher import TritonServer
from drafthouse.launcher.processes import model_process
from drafthouse.launcher.watch import FrontDoorWatch
from drafthouse_client import Client, GenerateOptions
from e2e.support import free_port_config

PROMPT = "def read_lines(path):\n    "
LONG = GenerateOptions(max_tokens=160, min_tokens=160, num_draft_tokens=5)
ENDLESS = GenerateOptions(max_tokens=400, min_tokens=400, num_draft_tokens=5)
NUM_SLOTS = 8
"""As the committed repository says."""
PATIENCE_S = 120.0


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
    pid = model_process(server.pid, model)
    assert pid is not None, f"no process runs {model}"
    return pid


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


@pytest.fixture
def fresh(repository_dir: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """A server none of whose processes has been killed before."""
    with TritonServer(free_port_config(repository_dir, log_dir=tmp_path)) as running:
        yield running


def test_a_dead_front_door_is_reloaded_and_serves_at_once(fresh: TritonServer, expected: tuple[int, ...]) -> None:
    """The streams that were lost held every slot; nobody will ever release those, and new requests must not wait for them."""
    told: list[str] = []
    watch = FrontDoorWatch(fresh, told.append)
    watch.check()
    assert told == []
    with ExitStack() as clients, ThreadPoolExecutor(NUM_SLOTS) as threads:
        lost = [clients.enter_context(Client(fresh.grpc_address)) for _ in range(NUM_SLOTS)]
        streams = [clients.enter_context(closing(client.stream(PROMPT, ENDLESS))) for client in lost]
        list(threads.map(next, streams))
        target = lost[0].stats()["engines"]["target"]
        assert (target["slots_free"], target["slots_total"]) == (0, NUM_SLOTS)
        os.kill(stub_pid(fresh, "cosine"), signal.SIGKILL)
        wait_until(lambda: model_process(fresh.pid, "cosine") is None)

        def is_back() -> bool:
            watch.check()
            return told[-1:] == ["cosine is back."]

        wait_until(is_back)
        with Client(fresh.grpc_address) as client:
            # Nothing of what was lost is held; a rehearsal may hold slots of its own for a while.
            wait_until(lambda: {engine["slots_free"] for engine in client.stats()["engines"].values()} == {NUM_SLOTS})
            answers = threads.map(lambda _: client.generate(PROMPT, LONG).output_ids, range(NUM_SLOTS))
            assert set(answers) == {expected}
    assert len(told) == 2, told
