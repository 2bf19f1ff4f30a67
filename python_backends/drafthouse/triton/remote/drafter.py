"""A drafter on other Triton servers: a `fusion.contract.DrafterClient` over one or several nodes that serve the same model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from drafthouse.core.clock import now_ns
from drafthouse.engine.contract import EngineError, RowResult, RowStatus, StepCall, StepResult
from drafthouse.fusion.tardiness import Work, judged
from drafthouse.triton.remote.endpoints import Address, AddressBook, Endpoint, Resolve, resolve
from drafthouse.triton.remote.homes import Homes
from drafthouse.triton.remote.node import Contact, RemoteNode

RESOLVE_EVERY_S = 10.0
RESOLVE_AGAIN_S = 1.0  # after a look-up that failed
RESOLVE_TIMEOUT_S = 5.0  # one look-up of all names

_NOTHING = np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
_ABSENT = RowResult(RowStatus.ABSENT, 0, *_NOTHING)


class RemoteDrafter:
    """Sends each request's rows to the node that holds it, all nodes at once, and puts the answers together.

    Rows of a node that fails are answered ABSENT; with no node left a call fails at once. A request whose node was lost moves to
    another one, which answers NEEDS_PREFILL for what it lacks: so a switch heals by the engine contract. Belongs to one event loop,
    which may stand still between calls: probes, late releases and name look-ups happen beside calls.
    """

    def __init__(self, name: str, endpoints: Sequence[Endpoint], contact: Contact, resolver: Resolve = resolve) -> None:
        self.nodes: list[RemoteNode] = []
        self._name = name
        self._addresses = AddressBook(endpoints, resolver)
        self._contact = contact
        self._homes: Homes[RemoteNode] = Homes()
        self._look_up: asyncio.Task[None] | None = None
        self._next_look_up_ns = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._list(self._addresses.addresses)

    @property
    def name(self) -> str:
        """The drafter's domain name, e.g. ``code``."""
        return self._name

    async def start(self, timeout_s: float) -> None:
        """Find the nodes and ask each whether it is there, for no longer than this; never fails, for they may appear later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                self._tend()
                await self._looked_up()
                self._tend()
                await asyncio.gather(*(node.settled() for node in self.nodes))

    async def close(self) -> None:
        """End all connections."""
        if self._look_up is not None:
            self._look_up.cancel()
        self._addresses.close()
        await asyncio.gather(*(node.close() for node in self.nodes), *self._closing)

    async def step(self, call: StepCall, release_uids: Sequence[int] = ()) -> StepResult:
        """See `EngineClient.step`. A call with neither rows nor releases asks for the slots of every node, also those left out."""
        self._owe(release_uids)
        if call.rows:
            parts = self._placed(call)
            self._tend(busy=parts)
            return await self._work(call, parts)
        if release_uids:
            self._tend(busy=self.nodes)
            return await self._ask([node for node in self.nodes if node.is_up])
        self._tend(busy=self.nodes)
        if self._next_look_up_ns == 0:  # some nodes have only a name so far
            await self._looked_up()
        return await self._ask(self.nodes)

    def _placed(self, call: StepCall) -> dict[RemoteNode, list[int]]:
        """Indices of the call's rows by the node that gets them; a row that no node can take is in none."""
        parts: dict[RemoteNode, list[int]] = {}
        for index, row in enumerate(call.rows):
            node = self._homes.place(row.request_uid, self.nodes)
            if node is not None:
                parts.setdefault(node, []).append(index)
        return parts

    async def _work(self, call: StepCall, parts: dict[RemoteNode, list[int]]) -> StepResult:
        calls = (node.timed_step(replace(call, rows=[call.rows[i] for i in indices])) for node, indices in parts.items())
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answers = [outcome if isinstance(outcome, BaseException) else outcome[0] for outcome in outcomes]
        self._judge({node: outcome[1] for node, outcome in zip(parts, outcomes, strict=True) if not isinstance(outcome, BaseException)})
        rows = [_ABSENT] * len(call.rows)
        for indices, answer in zip(parts.values(), answers, strict=True):
            if isinstance(answer, StepResult):
                for index, row in zip(indices, answer.rows, strict=True):
                    rows[index] = row
                    if row.status == RowStatus.NO_SLOT:
                        self._homes.refused(call.rows[index].request_uid)
        return self._merged(rows, answers)

    def _judge(self, works: dict[RemoteNode, Work]) -> None:
        """Of several nodes, leave out the one whose part of the call took much longer: its requests move to another."""
        if len(works) < 2 or not self._contact.patience_s:
            return
        nodes = list(works)
        verdicts = judged(dict(enumerate(works.values())), (), 1e9 * self._contact.patience_s)
        for index, is_late in verdicts.items():
            nodes[index].was(is_late, works[nodes[index]])

    async def _ask(self, nodes: Sequence[RemoteNode]) -> StepResult:
        """The slots of these nodes, each of which is told what is over."""
        return self._merged([], await asyncio.gather(*(node.status() for node in nodes), return_exceptions=True))

    def _merged(self, rows: Sequence[RowResult], answers: Sequence[StepResult | BaseException]) -> StepResult:
        good = [answer for answer in answers if isinstance(answer, StepResult)]
        if not good:
            troubles = [f"{node}: {node.trouble}" for node in self.nodes] or [self._addresses.trouble]
            raise EngineError(f"{self._name}: no node answers ({'; '.join(troubles)})")
        up = [node for node in self.nodes if node.is_up]
        session_ns = max(answer.session_ns for answer in good)
        return StepResult(rows, good[0].engine_epoch, session_ns, sum(node.slots_free for node in up), sum(node.slots_total for node in up))

    def _owe(self, release_uids: Sequence[int]) -> None:
        for uid in release_uids:
            for node in self._homes.leave(uid) or self.nodes:  # of an unknown request any node may hold something
                node.releases.add(uid)

    def _tend(self, busy: Collection[RemoteNode] = ()) -> None:
        """Start what is due beside calls; ``busy`` nodes get a call now anyway. Returns at once."""
        for node in [node for node in self.nodes if not (node.is_listed or self._is_needed(node))]:
            self.nodes.remove(node)
            task = asyncio.ensure_future(node.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        for node in self.nodes:
            node.tend(is_busy=node in busy)
        is_due = self._look_up is None or (self._look_up.done() and now_ns() >= self._next_look_up_ns)
        if is_due and not self._addresses.is_fixed:
            self._look_up = asyncio.ensure_future(self._find_nodes())

    def _is_needed(self, node: RemoteNode) -> bool:
        return node.is_up and (len(node.releases) > 0 or self._homes.is_used(node))

    async def _looked_up(self) -> None:
        """Waits for the look-up under way to end."""
        if self._look_up is not None:
            await asyncio.wait([self._look_up])

    async def _find_nodes(self) -> None:
        before = self._addresses.trouble
        await self._addresses.look_up(RESOLVE_TIMEOUT_S)
        if self._addresses.trouble not in ("", before):
            logging.getLogger(__name__).warning("nodes of %s cannot be looked up: %s", self._name, self._addresses.trouble)
        self._list(self._addresses.addresses)
        self._next_look_up_ns = now_ns() + int((RESOLVE_AGAIN_S if self._addresses.trouble else RESOLVE_EVERY_S) * 1e9)

    def _list(self, addresses: Sequence[Address]) -> None:
        """A node that is no longer named keeps the requests it holds, and gets no new ones."""
        known = {node.address: node for node in self.nodes}
        for node in self.nodes:
            node.is_listed = node.address in addresses
        self.nodes += [RemoteNode(address, self._contact) for address in addresses if address not in known]
