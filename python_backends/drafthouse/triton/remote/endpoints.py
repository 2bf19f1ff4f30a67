"""Where a drafter can be reached: what the configuration names, and the addresses that this stands for."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from drafthouse.core.errors import invalid

ALLOWED = "HOST:PORT,HOST:PORT,… with ports 1..65535; an IPv6 address stands in brackets"
MAX_PORT = 65535
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of the configuration: a host name, or an address."""

    host: str
    port: int

    @property
    def is_address(self) -> bool:
        """An IP address, which needs no resolving."""
        try:
            ip_address(self.host)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Address:
    """One node: an IP address and a port, and the name under which its certificate is checked."""

    ip: str
    port: int
    host: str

    @property
    def target(self) -> str:
        """As gRPC takes it, without any resolving of its own."""
        return f"ipv6:[{self.ip}]:{self.port}" if ":" in self.ip else f"ipv4:{self.ip}:{self.port}"

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


Resolve = Callable[[Endpoint], Awaitable[Sequence[str]]]


def parse_endpoints(field: str, entries: Sequence[str]) -> tuple[Endpoint, ...]:
    """Reads HOST:PORT entries of the parameter ``field``. Raises ClientError for another form, a repeated entry, or none."""
    endpoints: list[Endpoint] = []
    for entry in entries:
        found = _ENDPOINT.fullmatch(entry)
        if found is None or not 1 <= int(found["port"]) <= MAX_PORT:
            raise invalid(field, entry, ALLOWED)
        endpoint = Endpoint(found["v6"] or found["host"], int(found["port"]))
        if (found["v6"] and not endpoint.is_address) or endpoint in endpoints:
            raise invalid(field, entry, f"{ALLOWED}, each once")
        endpoints.append(endpoint)
    if not endpoints:
        raise invalid(field, "", ALLOWED)
    return tuple(endpoints)


async def resolve(endpoint: Endpoint) -> Sequence[str]:
    """Every IP address behind a host name, in a thread of the loop's pool. Raises OSError when there is none."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


class AddressBook:
    """The addresses behind a drafter's endpoints, as far as they are known: a name that cannot be looked up keeps its last ones.

    A resolver that hangs holds a thread until it gives up by itself, so a name is never asked for twice at a time: what comes too
    late for one look-up is the answer to the next.
    """

    def __init__(self, endpoints: Sequence[Endpoint], resolver: Resolve = resolve) -> None:
        self._endpoints = tuple(endpoints)
        self._resolver = resolver
        self._known: dict[Endpoint, Sequence[str]] = {endpoint: [endpoint.host] for endpoint in endpoints if endpoint.is_address}
        self._asked: dict[Endpoint, asyncio.Future[Sequence[str]]] = {}
        self.trouble = ""  # why the last look-up of a name failed; empty when all went well

    @property
    def is_fixed(self) -> bool:
        """Addresses only: there is nothing to look up."""
        return all(endpoint.is_address for endpoint in self._endpoints)

    @property
    def addresses(self) -> list[Address]:
        """Every address that is known, each once."""
        found: dict[str, Address] = {}
        for endpoint in self._endpoints:
            for ip in self._known.get(endpoint, ()):
                address = Address(ip, endpoint.port, endpoint.host)
                found.setdefault(str(address), address)
        return list(found.values())

    async def look_up(self, timeout_s: float) -> None:
        """Ask for every name, all at once and for no longer than ``timeout_s``. Never fails: see ``trouble``."""
        names = [endpoint for endpoint in self._endpoints if not endpoint.is_address]
        for endpoint in names:
            if endpoint not in self._asked:
                self._asked[endpoint] = asyncio.ensure_future(self._resolver(endpoint))
        if names:
            await asyncio.wait([self._asked[endpoint] for endpoint in names], timeout=timeout_s)
        troubles = [self._note(endpoint, timeout_s) for endpoint in names]
        self.trouble = "; ".join(trouble for trouble in troubles if trouble)

    def close(self) -> None:
        """Wait for nobody any more."""
        for asked in self._asked.values():
            asked.cancel()

    def _note(self, endpoint: Endpoint, timeout_s: float) -> str:
        """Take in what was found for one name; returns what went wrong."""
        if not self._asked[endpoint].done():
            return f"{endpoint.host}: no answer within {timeout_s:g} s"
        asked = self._asked.pop(endpoint)
        try:
            self._known[endpoint] = asked.result()
        except (OSError, UnicodeError) as error:  # the latter: a label too long for the DNS
            return f"{endpoint.host}: {error}"
        return ""
