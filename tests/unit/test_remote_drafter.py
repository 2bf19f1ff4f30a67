"""Drafters on several nodes: who is asked, what is released where, and how answers are put together."""

from __future__ import annotations

import asyncio

import pytest

from drafthouse.engine.contract import EngineError, RowStatus, StepCall
from drafthouse.triton.lease import Lease
from drafthouse.triton.remote import drafter as drafter_module
from drafthouse.triton.remote import homes as homes_module
from drafthouse.triton.remote.endpoints import Endpoint, parse_endpoints
from drafthouse.triton.remote.homes import Homes
from drafthouse.triton.remote.node import Contact
from fakes.drafter_scripted import ScriptedDrafter, counts
from fakes.pipeline_harness import async_test
from fakes.remote_calls import CONTACT, VOCAB_SIZE, asks, reaching, until
from fakes.remote_node import FakeNode, serving


def few_slots(slots: int) -> FakeNode:
    return FakeNode(ScriptedDrafter("code", counts(), slots=slots))


@async_test
async def test_a_call_crosses_the_wire_and_comes_back() -> None:
    node = FakeNode()
    async with serving(node), reaching(node) as drafter:
        result = await drafter.step(asks(7, 2**64 - 1, num_steps=3), [5])
    assert [row.status for row in result.rows] == [RowStatus.OK] * 2
    assert [row.sampled.tolist() for row in result.rows] == [[21, 22, 23]] * 2
    assert (result.slots_free, result.slots_total) == (6, 8)
    assert drafter.name == "code"
    assert set(node.models) == {"drafter_code"}
    (call,) = [call for call in node.drafter.calls if call.uids]
    assert (call.uids, call.released) == ((7, 2**64 - 1), (5,))


@async_test
async def test_requests_are_spread_and_each_stays_where_its_cache_is() -> None:
    nodes = FakeNode(), FakeNode()
    async with serving(*nodes), reaching(*nodes) as drafter:
        first = await drafter.step(asks(1, 2, 3, 4))
        again = await drafter.step(asks(4, 3, 2, 1, tokens=(20,), prefix_len=1))
    assert [row.status for row in (*first.rows, *again.rows)] == [RowStatus.OK] * 8
    assert [sorted(node.drafter.held) for node in nodes] == [[1, 3], [2, 4]]
    assert (again.slots_free, again.slots_total) == (12, 16)
    assert again.session_ns == 2000  # the slower of the two, not their sum


@async_test
async def test_answers_come_back_in_the_order_of_the_rows() -> None:
    nodes = FakeNode(ScriptedDrafter("code", counts(1))), FakeNode(ScriptedDrafter("code", counts(5)))
    async with serving(*nodes), reaching(*nodes) as drafter:
        result = await drafter.step(asks(1, 2, 3, num_steps=1))
    assert [row.sampled.tolist() for row in result.rows] == [[21], [25], [21]]


@async_test
async def test_a_full_node_gets_no_new_requests() -> None:
    nodes = few_slots(1), few_slots(4)
    async with serving(*nodes), reaching(*nodes) as drafter:
        await drafter.step(asks(1))
        await drafter.step(asks(1, 2))
        await drafter.step(asks(1, 2, 3, 4))
        assert [sorted(node.drafter.held) for node in nodes] == [[1], [2, 3, 4]]
        refused = await drafter.step(asks(1, 2, 3, 4, 5, 6))
        assert sorted(row.status for row in refused.rows) == [RowStatus.OK] * 5 + [RowStatus.NO_SLOT]
        await drafter.step(StepCall(()), [1, 2])
        healed = await drafter.step(asks(3, 4, 5, 6))
    assert [row.status for row in healed.rows] == [RowStatus.OK] * 4


@async_test
async def test_a_release_reaches_the_node_that_holds_the_request() -> None:
    nodes = FakeNode(), FakeNode()
    async with serving(*nodes), reaching(*nodes) as drafter:
        await drafter.step(asks(1, 2))
        result = await drafter.step(StepCall(()), [1])
        assert [sorted(node.drafter.held) for node in nodes] == [[], [2]]
        assert (result.rows, result.slots_free) == ([], 15)
        assert all(1 not in call.released for call in nodes[1].drafter.calls)
        await drafter.step(StepCall(()), [77])  # of a request that an earlier fusion knew: any node may hold it
        assert all(77 in node.drafter.calls[-1].released for node in nodes)


@async_test
async def test_a_node_without_work_is_told_beside_the_round() -> None:
    nodes = FakeNode(), FakeNode()
    async with serving(*nodes), reaching(*nodes) as drafter:
        await drafter.step(asks(1, 2))
        nodes[0].hangs = True  # it is node 1's round: nobody waits for node 0
        await drafter.step(asks(2), [1])
        nodes[0].resume()
        await until(lambda: not nodes[0].drafter.held)


@async_test
async def test_status_asks_every_node() -> None:
    nodes = FakeNode(), few_slots(3)
    async with serving(*nodes), reaching(*nodes) as drafter:
        await drafter.step(asks(1))
        result = await drafter.step(StepCall(()))
    assert (result.slots_free, result.slots_total) == (10, 11)


@async_test
async def test_without_a_start_the_first_status_finds_the_nodes() -> None:
    node = FakeNode()
    async with serving(node):
        drafter = drafter_module.RemoteDrafter("code", [Endpoint("127.0.0.1", node.port)], CONTACT)
        assert (await drafter.step(StepCall(()))).slots_total == 8
        await drafter.close()


@async_test
async def test_the_first_status_finds_nodes_that_have_only_a_name_beside_those_with_an_address() -> None:
    nodes = FakeNode(), FakeNode()
    async with serving(*nodes):
        entries = (nodes[0].entry, f"localhost:{nodes[1].port}")
        drafter = drafter_module.RemoteDrafter("code", parse_endpoints("remote.code", entries), CONTACT)
        assert (await drafter.step(StepCall(()))).slots_total == 16
        await drafter.close()


@async_test
async def test_a_wrong_secret_keeps_a_node_out_and_is_not_told() -> None:
    node = FakeNode()
    contact = Contact("drafter_code", VOCAB_SIZE, Lease(b"another secret, as long"), 5.0)
    async with serving(node), reaching(node, contact=contact) as drafter:
        with pytest.raises(EngineError, match="field=lease_secret") as caught:
            await drafter.step(asks(1))
    assert "another secret" not in str(caught.value)
    assert node.drafter.calls == []


@async_test
async def test_names_are_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_module, "RESOLVE_EVERY_S", 0.0)
    monkeypatch.setattr(drafter_module, "RESOLVE_AGAIN_S", 0.0)
    node = FakeNode()
    answers: list[list[str] | OSError] = [["127.0.0.1"]]

    async def resolver(endpoint: Endpoint) -> list[str]:
        assert endpoint.host == "drafters.cluster"
        if isinstance(answers[-1], OSError):
            raise answers[-1]
        return answers[-1]

    def listed() -> list[str]:
        return [node.address.ip for node in drafter.nodes if node.is_listed]

    async with serving(node), reaching(entries=(f"drafters.cluster:{node.port}",), resolver=resolver) as drafter:
        assert [row.status for row in (await drafter.step(asks(1))).rows] == [RowStatus.OK]
        answers.append(OSError("the DNS is away"))  # nobody is lost for that
        await drafter.step(asks(1))
        await until(lambda: drafter._addresses.trouble != "", drafter)
        assert listed() == ["127.0.0.1"]
        answers.append(["127.0.0.9"])
        await until(lambda: listed() == ["127.0.0.9"], drafter)
        assert (await drafter.step(asks(1))).rows[0].status == RowStatus.OK  # keeps what it holds
        with pytest.raises(EngineError):
            await drafter.step(asks(2))  # but gets nothing new, and the new one is not there
        await drafter.step(StepCall(()), [1])
        await until(lambda: [node.address.ip for node in drafter.nodes] == ["127.0.0.9"], drafter)


@async_test
async def test_a_name_that_means_nothing_yet_is_an_engine_error() -> None:
    async def resolver(endpoint: Endpoint) -> list[str]:
        raise OSError("Name or service not known")

    async with reaching(entries=("nowhere:8001",), resolver=resolver) as drafter:
        for call in (asks(1), StepCall(())):
            with pytest.raises(EngineError, match="Name or service not known"):
                await drafter.step(call)


class SlowResolver:
    """Answers with the loopback when it is let, and counts how often it was asked."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.gate = asyncio.Event()

    async def __call__(self, endpoint: Endpoint) -> list[str]:
        """See `endpoints.Resolve`."""
        self.num_asked += 1
        await self.gate.wait()
        return ["127.0.0.1"]


@async_test
async def test_a_resolver_that_hangs_holds_up_nobody_and_is_not_asked_again_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESOLVE_EVERY_S", "RESOLVE_AGAIN_S"):
        monkeypatch.setattr(drafter_module, name, 0.0)
    monkeypatch.setattr(drafter_module, "RESOLVE_TIMEOUT_S", 0.02)
    node, resolver = FakeNode(), SlowResolver()
    async with serving(node), reaching(entries=(f"drafters.cluster:{node.port}",), resolver=resolver) as drafter:
        for call in (asks(1), StepCall(())):
            with pytest.raises(EngineError, match=r"drafters\.cluster: no answer within 0\.02 s"):
                await drafter.step(call)
        look_up = drafter._look_up
        await until(lambda: drafter._look_up is not look_up, drafter)  # it is looked up again, but not asked twice
        assert resolver.num_asked == 1
        resolver.gate.set()  # what was asked first serves the look-up of now
        await until(lambda: any(node.is_up for node in drafter.nodes), drafter)
        assert (await drafter.step(asks(1))).rows[0].status == RowStatus.OK
        resolver.gate.clear()
        look_up = drafter._look_up
        await until(lambda: drafter._addresses.trouble != "" and drafter._look_up is not look_up, drafter)
        assert (await drafter.step(asks(1, 2))).rows[1].status == RowStatus.OK  # the last good address stays


@async_test
async def test_a_name_that_hangs_keeps_no_address_out() -> None:
    node, resolver = FakeNode(), SlowResolver()
    async with serving(node):
        entries = (f"drafters.cluster:{node.port}", node.entry)
        drafter = drafter_module.RemoteDrafter("code", parse_endpoints("remote.code", entries), CONTACT, resolver)
        await drafter.start(0.1)  # ends by its own limit
        await until(lambda: drafter.nodes[0].is_up, drafter)
        assert (await drafter.step(asks(1))).rows[0].status == RowStatus.OK
        await drafter.close()


def test_between_rounds_the_loop_stands_still() -> None:
    """As in the fusion model: the loop runs during calls only."""
    node, loop = FakeNode(), asyncio.new_event_loop()
    loop.run_until_complete(node.start())

    async def draft() -> list[int]:
        async with reaching(node) as drafter:
            return (await drafter.step(asks(1))).rows[0].sampled.tolist()

    assert loop.run_until_complete(draft()) == [21, 22]
    loop.run_until_complete(node.stop())
    loop.close()


class Host:
    def __init__(self, name: str) -> None:
        self.name, self.is_up, self.is_listed, self.slots_free = name, True, True, 8


def test_homes() -> None:
    a, b = Host("a"), Host("b")
    homes: Homes[Host] = Homes()
    assert [homes.place(uid, [a, b]) for uid in (1, 2, 3)] == [a, b, a]
    a.is_up = False
    assert homes.place(1, [a, b]) is b  # moved
    a.is_up = True
    assert homes.place(1, [a, b]) is b  # and it stays there
    assert homes.leave(1) == [a, b]  # both may hold it
    assert list(homes.leave(1)) == []
    b.is_listed = False
    assert (homes.place(2, [a, b]), homes.place(9, [a, b])) == (b, a)
    assert (homes.is_used(b), homes.is_used(a)) == (True, True)
    a.is_up = b.is_up = False
    assert homes.place(2, [a, b]) is None


def test_requests_that_nobody_ends_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes_module, "CAPACITY", 4)
    a = Host("a")
    homes: Homes[Host] = Homes()
    for uid in range(7):
        homes.place(uid, [a])
    assert (list(homes.leave(2)), list(homes.leave(3))) == ([], [a])
