"""Remote drafters in few words: a client of fake nodes, step calls with defaults, and patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from drafthouse.engine.contract import StepCall, StepRow
from drafthouse.triton.lease import Lease
from drafthouse.triton.remote.drafter import RemoteDrafter
from drafthouse.triton.remote.endpoints import Endpoint, Resolve, parse_endpoints, resolve
from drafthouse.triton.remote.node import Contact, Probing
from fakes.remote_node import FakeNode

VOCAB_SIZE = 1000
CONTACT = Contact("drafter_code", VOCAB_SIZE, Lease(b"0123456789abcdef"), timeout_s=5.0, probing=Probing(5.0, 0.01, 0.05))


def hasty(timeout_s: float) -> Contact:
    """Gives a call up after this time."""
    return replace(CONTACT, timeout_s=timeout_s)


@asynccontextmanager
async def reaching(
    *nodes: FakeNode, contact: Contact = CONTACT, entries: tuple[str, ...] = (), resolver: Resolve = resolve
) -> AsyncIterator[RemoteDrafter]:
    """A started client of these nodes."""
    drafter = RemoteDrafter("code", endpoints_of(*nodes, entries=entries), contact, resolver)
    await drafter.start(5.0)
    try:
        yield drafter
    finally:
        await drafter.close()


def endpoints_of(*nodes: FakeNode, entries: tuple[str, ...] = ()) -> tuple[Endpoint, ...]:
    """The configuration's entries for these nodes, or the given ones."""
    return parse_endpoints("remote.code", entries or [node.entry for node in nodes])


def asks(*uids: int, tokens: tuple[int, ...] = (10, 20), prefix_len: int = 0, num_steps: int = 2) -> StepCall:
    """One drafting call for these requests, whose committed tokens are all alike."""
    return StepCall([StepRow(uid, prefix_len, np.array(tokens, np.int32), len(tokens)) for uid in uids], num_steps, num_candidates=1)


async def until(holds: Callable[[], bool], drafter: RemoteDrafter | None = None) -> None:
    """Wait; with a drafter, by rounds that have nothing to do with the request under test."""
    async with asyncio.timeout(20):
        while not holds():
            if drafter is not None:
                drafter._tend()
            await asyncio.sleep(0.01)
