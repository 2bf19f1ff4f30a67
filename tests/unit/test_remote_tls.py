"""Nodes behind TLS: whose certificate is trusted, and who must show one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from drafthouse.engine.contract import EngineError, RowStatus
from drafthouse.triton.remote.endpoints import Endpoint
from drafthouse.triton.remote.settings import TlsFiles
from fakes.certificates import Certificates, make_certificates, needs_openssl
from fakes.pipeline_harness import async_test
from fakes.remote_calls import CONTACT, asks, reaching
from fakes.remote_node import FakeNode

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "theirs")


@asynccontextmanager
async def secured(files: Certificates, client_root: Path | None = None) -> AsyncIterator[FakeNode]:
    node = FakeNode()
    pair = [(files.key.read_bytes(), files.cert.read_bytes())]
    root = None if client_root is None else client_root.read_bytes()
    await node.start(grpc.ssl_server_credentials(pair, root, require_client_auth=root is not None))
    try:
        yield node
    finally:
        await node.stop()


async def statuses(node: FakeNode, tls: TlsFiles | None) -> list[RowStatus]:
    async with reaching(node, contact=replace(CONTACT, tls=tls)) as drafter:
        return [row.status for row in (await drafter.step(asks(1))).rows]


@async_test
async def test_a_trusted_node_takes_part(ours: Certificates) -> None:
    async with secured(ours) as node:
        assert await statuses(node, TlsFiles(ours.root)) == [RowStatus.OK]


@async_test
async def test_others_do_not(ours: Certificates, theirs: Certificates) -> None:
    async with secured(ours) as node:
        for tls in (TlsFiles(theirs.root), TlsFiles(), None):
            with pytest.raises(EngineError, match="no node answers"):
                await statuses(node, tls)
        assert node.num_calls == 0  # the secret was not sent either


@async_test
async def test_a_node_may_ask_for_a_certificate(ours: Certificates, theirs: Certificates) -> None:
    async with secured(ours, client_root=theirs.root) as node:
        assert await statuses(node, TlsFiles(ours.root, theirs.cert, theirs.key)) == [RowStatus.OK]
        for tls in (TlsFiles(ours.root), TlsFiles(ours.root, ours.cert, ours.key)):
            with pytest.raises(EngineError):
                await statuses(node, tls)


@async_test
async def test_a_name_is_checked_although_its_address_is_called(ours: Certificates) -> None:
    async def resolver(endpoint: Endpoint) -> list[str]:
        return ["127.0.0.1"]

    async with secured(ours) as node:
        for host, is_good in (("localhost", True), ("another.name", False)):
            contact = replace(CONTACT, tls=TlsFiles(ours.root))
            async with reaching(entries=(f"{host}:{node.port}",), contact=contact, resolver=resolver) as drafter:
                assert drafter.nodes[0].is_up == is_good


@async_test
async def test_a_file_that_vanished_is_an_engine_error(ours: Certificates, tmp_path: Path) -> None:
    async with secured(ours) as node:
        with pytest.raises(EngineError, match="nowhere"):
            await statuses(node, TlsFiles(tmp_path / "nowhere"))
