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


async def addresses_of(endpoints: Sequence[Endpoint], resolver: Resolve = resolve) -> list[Address]:
    """Every address behind the endpoints, each once. Raises OSError when a name cannot be resolved."""
    addresses: dict[str, Address] = {}
    for endpoint in endpoints:
        for ip in [endpoint.host] if endpoint.is_address else await resolver(endpoint):
            address = Address(ip, endpoint.port, endpoint.host)
            addresses.setdefault(str(address), address)
    return list(addresses.values())
