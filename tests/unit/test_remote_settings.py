"""The `remote…` parameters: read, checked, and refused by name."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from drafthouse.core.environment import LEASE_VARIABLE, REMOTE_LEASE_VARIABLE
from drafthouse.core.errors import ClientError
from drafthouse.triton.parameters import Parameters
from drafthouse.triton.remote.endpoints import Address, AddressBook, Endpoint, parse_endpoints, resolve
from drafthouse.triton.remote.settings import KNOWN, RemoteSettings, TlsFiles, read_remote, remote_parameters

OWN, OTHER = "0123456789abcdef", "fedcba9876543210"
DRAFTERS = ("code", "math")


@pytest.fixture(autouse=True)
def own_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, OWN)
    monkeypatch.delenv(REMOTE_LEASE_VARIABLE, raising=False)


def read(call_timeout_ms: int = 2000, **values: str) -> RemoteSettings:
    """The settings; `remote__code` stands for `remote.code`."""
    parameters = Parameters({name.replace("__", "."): value for name, value in values.items()})
    settings = read_remote(parameters, DRAFTERS, call_timeout_ms)
    parameters.finish(KNOWN)
    return settings


def test_without_parameters_everything_is_local() -> None:
    settings = read()
    assert (dict(settings.endpoints), settings.tls, settings.max_step_tokens) == ({}, None, None)


def test_endpoints_by_drafter() -> None:
    settings = read(remote__code="node-1.cluster:8001, 10.0.0.7:9001,[fe80::1]:8001", remote_timeout_ms="250", remote_max_step_tokens="32")
    assert settings.endpoints == {"code": (Endpoint("node-1.cluster", 8001), Endpoint("10.0.0.7", 9001), Endpoint("fe80::1", 8001))}
    assert (settings.timeout_s, settings.max_step_tokens) == (0.25, 32)


def test_a_remote_call_ends_before_the_drafter_is_given_up() -> None:
    assert read(call_timeout_ms=300).timeout_s == 0.15
    with pytest.raises(ClientError, match=r"field=remote_timeout_ms value='301' allowed=1\.\.300"):
        read(call_timeout_ms=300, remote_timeout_ms="301")


@pytest.mark.parametrize(
    "entry", ["node", "node:0", "node:65536", "node:port", ":8001", "[node]:8001", "fe80::1:8001", "http://node:8001", "a b:1"]
)
def test_what_is_no_endpoint_is_refused(entry: str) -> None:
    with pytest.raises(ClientError, match=r"field=remote\.code value=.* allowed=HOST:PORT"):
        read(remote__code=entry)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"remote__code": "a:1,a:1"}, "field=remote.code value='a:1' allowed=.*each once"),
        ({"remote__poems": "a:1"}, "field=remote.poems value='a:1' allowed=remote.NAME for a NAME among the drafters"),
        ({"remote_tls": "yes"}, "field=remote_tls value='yes' allowed=off, on"),
        ({"remote_tls_root_file": "x.pem"}, "field=remote_tls_root_file value='x.pem' allowed=nothing, unless remote_tls is on"),
        ({"remote_tls": "on", "remote_tls_root_file": "x.pem"}, "field=remote_tls_root_file value='x.pem' allowed=a PEM file"),
        ({"remote_max_step_tokens": "1"}, "field=remote_max_step_tokens value='1'"),
        ({"remote_lease_file": "nowhere"}, "field=remote_lease_file value='nowhere' allowed=a file that can be read"),
    ],
)
def test_a_wrong_parameter_is_named(values: dict[str, str], words: str) -> None:
    with pytest.raises(ClientError, match=words):
        read(**values)


def test_a_key_needs_its_certificate(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.write_text("PEM")
    with pytest.raises(ClientError, match="field=remote_tls_key_file"):
        read(remote_tls="on", remote_tls_cert_file=str(pem))
    with pytest.raises(ClientError, match="field=remote_tls_cert_file"):
        read(remote_tls="on", remote_tls_key_file=str(pem))
    assert read(remote_tls="on", remote_tls_cert_file=str(pem), remote_tls_key_file=str(pem)).tls == TlsFiles(None, pem, pem)


def test_the_secret_comes_from_a_file_or_the_environment_or_is_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def secret(**values: str) -> bytes:
        return read(**values).lease.section.tobytes()

    assert secret() == OWN.encode()
    monkeypatch.setenv(REMOTE_LEASE_VARIABLE, OTHER)
    assert secret() == OTHER.encode()
    file = tmp_path / "secret"
    file.write_text(f"{OTHER[::-1]}\n")
    assert secret(remote_lease_file=str(file)) == OTHER[::-1].encode()
    assert OTHER not in repr(read())


def test_a_short_secret_is_refused_without_being_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2")
    with pytest.raises(ClientError, match="field=remote_lease_file value='7 bytes' allowed=at least 16 bytes") as caught:
        read(remote_lease_file=str(file))
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(REMOTE_LEASE_VARIABLE, "hunter2")
    with pytest.raises(ClientError, match=f"field={REMOTE_LEASE_VARIABLE}"):
        read()


def test_the_front_door_reads_them_from_fusions_file(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text(
        'parameters { key: "drafters" value { string_value: "code,math" } }\n'
        'parameters { key: "remote.code" value { string_value: "10.0.0.7:9001" } }\n'
        'parameters { key: "remote_timeout_ms" value { string_value: "250" } }\n'
    )
    parameters = remote_parameters(file, DRAFTERS)
    assert read_remote(parameters, DRAFTERS, 2000).endpoints == {"code": (Endpoint("10.0.0.7", 9001),)}
    parameters.finish(KNOWN)
    assert not read_remote(remote_parameters(tmp_path / "nowhere", DRAFTERS), DRAFTERS, 2000).endpoints


def test_a_name_stands_for_all_its_addresses() -> None:
    async def two(endpoint: Endpoint) -> list[str]:
        return ["10.0.0.1", "fe80::2"] if endpoint.host == "drafters" else []

    endpoints = parse_endpoints("remote.code", ["drafters:8001", "10.0.0.1:8001", "10.0.0.1:9001"])
    book = AddressBook(endpoints, two)
    assert [str(address) for address in book.addresses] == ["10.0.0.1:8001", "10.0.0.1:9001"]  # no name is needed for these
    asyncio.run(book.look_up(5.0))
    addresses = book.addresses
    assert [str(address) for address in addresses] == ["10.0.0.1:8001", "[fe80::2]:8001", "10.0.0.1:9001"]
    assert [address.target for address in addresses[:2]] == ["ipv4:10.0.0.1:8001", "ipv6:[fe80::2]:8001"]
    assert addresses[0] == Address("10.0.0.1", 8001, "drafters")


def test_a_name_that_cannot_be_looked_up_keeps_its_addresses_and_harms_no_other() -> None:
    known = {"one": ["10.0.0.1"], "two": ["10.0.0.2"]}

    async def resolver(endpoint: Endpoint) -> list[str]:
        if endpoint.host not in known:
            raise OSError("Name or service not known")
        return known[endpoint.host]

    book = AddressBook(parse_endpoints("remote.code", ["one:1", "two:2"]), resolver)
    asyncio.run(book.look_up(5.0))
    assert (book.trouble, book.is_fixed) == ("", False)
    known |= {"two": ["10.0.0.3"]}
    del known["one"]
    asyncio.run(book.look_up(5.0))
    assert [str(address) for address in book.addresses] == ["10.0.0.1:1", "10.0.0.3:2"]
    assert book.trouble == "one: Name or service not known"


def test_the_real_resolver_knows_this_machine() -> None:
    assert set(asyncio.run(resolve(Endpoint("localhost", 8001)))) & {"127.0.0.1", "::1"}
    with pytest.raises(socket.gaierror):
        asyncio.run(resolve(Endpoint("nowhere.invalid", 8001)))
