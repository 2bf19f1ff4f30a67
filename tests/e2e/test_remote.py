"""Drafters on other servers, as real ones on further loopback addresses: far away, hung, cut off, killed, and back again."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from drafthouse.engine.contract import EngineError, StepCall, StepResult
from drafthouse.launcher import ServerConfig, TritonServer
from drafthouse.launcher.config import GrpcTls
from drafthouse.launcher.processes import model_process
from drafthouse.launcher.watch import watches_of
from drafthouse.triton.lease import Lease
from drafthouse.triton.remote.drafter import RemoteDrafter
from drafthouse.triton.remote.endpoints import Endpoint
from drafthouse.triton.remote.node import Contact
from drafthouse.triton.remote.settings import TlsFiles
from drafthouse_client import Client, GenerateOptions
from e2e.support import free_port_config
from fakes.certificates import make_certificates, needs_openssl
from fakes.pipeline_harness import async_test
from fakes.slow_wire import SlowWire, slow_wire

PROMPT = "def read_lines(path):\n    "
PROMPTS = [
    json.loads(line)["prompt"] for line in (Path(__file__).parents[1] / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
][::4]
OPTIONS = GenerateOptions(max_tokens=48, min_tokens=48, num_draft_tokens=5, drafters=("code",))
ALONE = replace(OPTIONS, num_draft_tokens=0, drafters=())
LONG = replace(OPTIONS, max_tokens=160, min_tokens=160)
DRAFTERS = "code,math"
NODES = {"127.0.0.2": ("drafter_code", "drafter_math"), "127.0.0.3": ("drafter_code",)}
SLOTS = 8
TIMEOUT_MS = 800
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Cluster:
    """A front without drafters of its own, two nodes, and the wires between."""

    front: TritonServer
    nodes: tuple[TritonServer, ...]
    wires: tuple[SlowWire, ...]
    lease: Path
    client: Client

    def texts(self, options: GenerateOptions, num: int = 1) -> list[tuple[int, ...]]:
        """Token ids of so many requests at a time, each with a prompt of its own."""
        with ThreadPoolExecutor(num) as threads:
            return list(threads.map(lambda i: self.client.generate(f"{PROMPT}# {i}\n", options).output_ids, range(num)))

    def engine(self, name: str) -> Mapping[str, Any]:
        """What the front's statistics say of a drafter."""
        engine: Mapping[str, Any] = self.client.stats()["engines"][name]
        return engine

    def num_nodes(self, name: str = "code") -> int:
        """Nodes of this drafter that answer the front door's statistics."""
        return int(self.engine(name).get("slots_total", 0)) // SLOTS


def link_models(repository: Path, into: Path, models: tuple[str, ...]) -> Path:
    into.mkdir()
    for model in models:
        (into / model).symlink_to(repository / model)
    return into


def link_front(repository: Path, into: Path, parameters: Mapping[str, str]) -> Path:
    """The repository without drafters; `cosine` and `fusion` know of those elsewhere."""
    link_models(repository, into, ("target", "router"))
    for model in ("cosine", "fusion"):
        (into / model).mkdir()
        (into / model / "1").symlink_to(repository / model / "1")
        config = (repository / model / "config.pbtxt").read_text()
        config = re.sub(r'(key: "drafters" value { string_value: ")[^"]*', rf"\g<1>{DRAFTERS}", config)
        config = re.sub(r'(key: "single_drafter" value { string_value: ")[^"]*', r"\g<1>code", config)
        if model == "fusion":
            config += "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in parameters.items())
        (into / model / "config.pbtxt").write_text(config)
    return into


@pytest.fixture(scope="module")
def cluster(repository_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    lease = folder / "lease"
    lease.write_text(secrets.token_hex(32))
    configs = [
        free_port_config(link_models(repository_dir, folder / host, models), host=host, lease_file=lease, log_dir=folder / "log")
        for host, models in NODES.items()
    ]
    with ExitStack() as stack:
        nodes = tuple(start(stack, config) for config in configs)
        wires = tuple(stack.enter_context(slow_wire(node.config.host, node.ports.grpc)) for node in nodes)
        parameters = {
            "remote.code": f"127.0.0.1:{wires[0].port},localhost:{wires[1].port}",
            "remote.math": f"127.0.0.1:{wires[0].port}",
            "remote_lease_file": str(lease),
            "remote_timeout_ms": str(TIMEOUT_MS),
        }
        front = link_front(repository_dir, folder / "front", parameters)
        server = start(stack, free_port_config(front, log_dir=folder / "log"))
        yield Cluster(server, nodes, wires, lease, stack.enter_context(Client(server.grpc_address)))


def start(stack: ExitStack, config: ServerConfig) -> TritonServer:
    """A server that is killed in the end: one whose model was killed takes long to stop in order."""
    server = stack.enter_context(TritonServer(config))
    stack.callback(server.kill)
    return server


@pytest.fixture(autouse=True)
def mended(cluster: Cluster) -> Iterator[None]:
    """Every test leaves short wires and no request behind."""
    yield
    for wire in cluster.wires:
        wire.delay_s = 0.0
    wait_until(lambda: cluster.num_nodes() == 2)
    wait_until(lambda: cluster.engine("code")["slots_free"] == 2 * SLOTS)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        time.sleep(0.1)


def drafts_of(cluster: Cluster, options: GenerateOptions = OPTIONS) -> int:
    """Tokens of one answer that a drafter proposed."""
    return sum(source >= 0 for source in cluster.client.generate(PROMPT, options).token_sources)


@pytest.mark.parametrize("delay_ms", [1, 5, 20])
def test_the_text_does_not_depend_on_the_distance(cluster: Cluster, delay_ms: int) -> None:
    expected = cluster.texts(ALONE, 2)
    for wire in cluster.wires:
        wire.delay_s = delay_ms / 1e3
    assert cluster.texts(OPTIONS, 2) == expected
    assert cluster.texts(replace(OPTIONS, drafters=()), 2) == expected  # both drafters, routed
    wait_until(lambda: drafts_of(cluster) > 0)


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [0, 1, 5, 20])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_text_depends_on_the_distance(cluster: Cluster, delay_ms: int, temperature: float) -> None:
    def texts(options: GenerateOptions) -> list[tuple[int, ...]]:
        chosen = replace(options, max_tokens=48, min_tokens=0, temperature=temperature, top_p=0.95 if temperature else 1.0, seed=7)
        return [cluster.client.generate(prompt, chosen).output_ids for prompt in PROMPTS]

    expected = texts(ALONE)
    for wire in cluster.wires:
        wire.delay_s = delay_ms / 1e3
    assert texts(OPTIONS) == expected
    assert texts(replace(OPTIONS, drafters=())) == expected


async def status_of(node: TritonServer, lease: Lease, tls: TlsFiles | None = None) -> StepResult:
    """What a node answers to somebody with this secret."""
    drafter = RemoteDrafter("code", [Endpoint(node.config.host, node.ports.grpc)], Contact("drafter_code", 4096, lease, 5.0, tls))
    try:
        return await drafter.step(StepCall(()))
    finally:
        await drafter.close()


@async_test
async def test_a_nodes_drafters_answer_only_those_with_the_secret(cluster: Cluster) -> None:
    lease = Lease(cluster.lease.read_bytes())
    for node in cluster.nodes:
        assert (await status_of(node, lease)).slots_total == SLOTS
        with pytest.raises(EngineError, match="field=lease_secret"):
            await status_of(node, Lease(b"somebody else's secret"))
        command_line = Path(f"/proc/{node.pid}/cmdline").read_bytes()
        assert cluster.lease.read_bytes() not in command_line + node.log_file.read_bytes()
    assert cluster.lease.read_bytes() not in cluster.front.log_file.read_bytes()


@needs_openssl
@async_test
async def test_a_node_behind_tls(repository_dir: Path, tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls")
    (tmp_path / "lease").write_text("0123456789abcdef")
    config = free_port_config(
        link_models(repository_dir, tmp_path / "models", ("drafter_code",)),
        host="127.0.0.4",
        lease_file=tmp_path / "lease",
        grpc_tls=GrpcTls(made.cert, made.key, client_root=made.root),
        log_dir=tmp_path,
    )
    with ExitStack() as stack:
        node, lease = start(stack, config), Lease(b"0123456789abcdef")
        assert (await status_of(node, lease, TlsFiles(made.root, made.cert, made.key))).slots_free == SLOTS
        for tls in (None, TlsFiles(made.root)):
            with pytest.raises(EngineError, match="no node answers"):
                await status_of(node, lease, tls)


def freeze(cluster: Cluster, node: int) -> Callable[[], None]:
    """All of it: Triton's Python backend does not survive that only a model's process stands still for a while."""
    group = cluster.nodes[node].pid
    os.killpg(group, signal.SIGSTOP)
    return lambda: os.killpg(group, signal.SIGCONT)


def cut(cluster: Cluster, node: int) -> Callable[[], None]:
    cluster.wires[node].cut()
    return cluster.wires[node].mend


def kill(cluster: Cluster, node: int) -> Callable[[], None]:
    server = cluster.nodes[node]
    pid = model_process(server.pid, "drafter_code")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    watches = watches_of(server, lambda text: None)

    def revive() -> None:
        def is_back() -> bool:
            for watch in watches:
                watch.check()
            return model_process(server.pid, "drafter_code") not in (None, pid)

        wait_until(is_back)

    return revive


@pytest.mark.parametrize("harm", [freeze, cut, kill])
def test_a_node_that_is_lost_in_mid_stream_is_left_out_and_taken_back(
    cluster: Cluster, harm: Callable[[Cluster, int], Callable[[], None]]
) -> None:
    expected = cluster.client.generate(PROMPT, replace(LONG, num_draft_tokens=0, drafters=())).output_ids
    with ThreadPoolExecutor(2) as threads:
        streams = [cluster.client.stream(PROMPT, LONG) for _ in range(2)]  # one on each node
        begun = [list(next(stream).output_ids) for stream in streams]
        heal = harm(cluster, 0)
        try:
            rests = list(threads.map(lambda stream: [token for chunk in stream for token in chunk.output_ids], streams))
            assert [tuple(begin + rest) for begin, rest in zip(begun, rests, strict=True)] == [expected] * 2
            wait_until(lambda: drafts_of(cluster) > 0)  # by the node that is left
        finally:
            heal()
    wait_until(lambda: cluster.num_nodes() == 2)  # `cosine` sees it again, and so does `fusion`:
    kill_other = freeze(cluster, 1)
    try:
        wait_until(lambda: drafts_of(cluster) > 0)
    finally:
        kill_other()
    assert cluster.client.generate(PROMPT, LONG).output_ids == expected


def test_without_any_node_the_target_goes_on_alone(cluster: Cluster) -> None:
    expected = cluster.texts(ALONE)
    for wire in cluster.wires:
        wire.cut()
    try:
        assert cluster.texts(OPTIONS) == expected
        assert drafts_of(cluster) == 0
    finally:
        for wire in cluster.wires:
            wire.mend()
    wait_until(lambda: drafts_of(cluster) > 0)


def test_a_front_reloads_its_fusion_and_finds_the_nodes_again(cluster: Cluster) -> None:
    expected = cluster.texts(ALONE)
    pid = model_process(cluster.front.pid, "fusion")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    def drafted() -> bool:
        assert cluster.texts(OPTIONS) == expected
        return drafts_of(cluster) > 0

    wait_until(drafted)
