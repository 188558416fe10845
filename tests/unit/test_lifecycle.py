"""One node at a time: starts and stops in any order, and as often as it may come."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.lifecycle import Lifecycle


class Node:
    """A stand-in for all that a node opens and closes."""

    def __init__(self, log, fails=None, gate=None):
        self.log, self.fails, self.gate = log, fails, gate
        self.endings = self

    async def start(self):
        self.log.append("start")
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails

    async def say_goodbye(self):
        self.log.append("goodbye")
        await asyncio.sleep(0)

    async def stop(self):
        self.log.append("stop")
        await asyncio.sleep(0)


class Nodes:
    """Makes the nodes of a lifecycle.

    :ivar failures: what the next starts raise, in order. ``None`` is a start that succeeds.
    """

    def __init__(self):
        self.log = []
        self.made = []
        self.failures = []
        self.gate = None

    def __call__(self):
        self.made.append(Node(self.log, self.failures.pop(0) if self.failures else None, self.gate))
        return self.made[-1]


@pytest.fixture
def nodes():
    return Nodes()


async def test_a_second_start_returns_the_running_node(nodes):
    life = Lifecycle(nodes)
    await life.start()
    first = life.node
    await life.start()
    assert await life.started() is life.node is first is nodes.made[0]
    assert nodes.log == ["start"]


async def test_starts_at_the_same_time_make_one_node(nodes):
    life = Lifecycle(nodes)
    first, _, second = await asyncio.gather(life.started(), life.start(), life.started())
    assert first is second is nodes.made[0] and nodes.log == ["start"]


async def test_a_node_that_is_still_starting_is_not_used(nodes):
    nodes.gate = asyncio.Event()
    life = Lifecycle(nodes)
    starting = asyncio.create_task(life.start())
    await asyncio.sleep(0)
    assert nodes.log == ["start"] and life.node is None
    nodes.gate.set()
    await starting
    assert life.node is nodes.made[0]


async def test_a_stop_lets_the_clients_go_first_and_a_second_stop_does_nothing(nodes):
    life = Lifecycle(nodes)
    await life.start()
    await life.aclose()
    assert nodes.log == ["start", "goodbye", "stop"] and life.node is None
    await life.aclose()
    await asyncio.gather(life.aclose(), life.aclose())
    assert nodes.log == ["start", "goodbye", "stop"]


async def test_stops_at_the_same_time_stop_once(nodes):
    life = Lifecycle(nodes)
    await life.start()
    await asyncio.gather(life.aclose(), life.aclose())
    assert nodes.log == ["start", "goodbye", "stop"]


async def test_clients_that_are_let_go_still_have_their_node(nodes):
    life, seen = Lifecycle(nodes), []
    await life.start()
    node = life.node

    async def say_goodbye():
        seen.append(life.node)

    node.say_goodbye = say_goodbye
    await life.aclose()
    assert seen == [node]


async def test_after_a_stop_only_a_start_starts_a_node(nodes):
    life = Lifecycle(nodes)
    await life.start()
    await life.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await life.started()
    assert len(nodes.made) == 1
    await life.start()
    assert life.node is nodes.made[1]
    assert await life.started() is nodes.made[1]


async def test_a_stop_before_a_start_keeps_the_first_use_from_starting_a_node(nodes):
    life = Lifecycle(nodes)
    await life.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await life.started()
    assert nodes.made == []
    await life.start()
    assert life.node is nodes.made[0]


async def test_a_stop_during_a_start_stops_what_has_started(nodes):
    nodes.gate = asyncio.Event()
    life = Lifecycle(nodes)
    starting = asyncio.create_task(life.start())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(life.aclose())
    await asyncio.sleep(0)
    nodes.gate.set()
    await stopping
    assert nodes.log == ["start", "goodbye", "stop"] and life.node is None
    await asyncio.wait((starting,))


async def test_a_first_use_that_waits_for_a_start_makes_no_node_after_a_stop(nodes):
    nodes.gate, nodes.failures = asyncio.Event(), [StoreUnavailable("away")]
    life = Lifecycle(nodes)
    first = asyncio.create_task(life.started())
    second = asyncio.create_task(life.started())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(life.aclose())
    await asyncio.sleep(0)
    nodes.gate.set()
    errors = await asyncio.gather(first, second, return_exceptions=True)
    await stopping
    assert [str(error).partition(" (")[0] for error in errors] == ["away", "the manager was closed"]
    assert len(nodes.made) == 1


async def test_a_start_that_fails_leaves_no_node_and_the_next_makes_another(nodes):
    nodes.failures = [StoreUnavailable("away")]
    life = Lifecycle(nodes)
    with pytest.raises(StoreUnavailable, match="away"):
        await life.start()
    assert life.node is None
    assert await life.started() is nodes.made[1]


async def test_a_start_that_fails_does_not_fail_the_one_behind_it(nodes):
    nodes.failures = [StoreUnavailable("away")]
    life = Lifecycle(nodes)
    first, second = await asyncio.gather(life.start(), life.start(), return_exceptions=True)
    assert isinstance(first, StoreUnavailable) and second is None
    assert life.node is nodes.made[1]


async def test_a_node_that_cannot_be_made_is_not_started():
    def refuse():
        raise ValueError("no server")

    life = Lifecycle(refuse)
    with pytest.raises(ValueError, match="no server"):
        await life.start()
    assert life.node is None
    await life.aclose()


def test_a_node_starts_again_in_another_event_loop(nodes):
    life = Lifecycle(nodes)

    async def run():
        # two wait for each other: only then a lock of asyncio belongs to an event loop
        await asyncio.gather(life.start(), life.start())
        await asyncio.gather(life.aclose(), life.aclose())

    asyncio.run(run())
    asyncio.run(run())
    assert nodes.log == ["start", "goodbye", "stop"] * 2


async def test_a_start_that_waits_for_a_stop_is_not_joined_by_a_second_one(nodes):
    """The lock outlives the stop. All callers wait for the same one, those that come later included."""
    life = Lifecycle(nodes)
    await life.start()
    stopping = asyncio.create_task(life.aclose())
    await asyncio.sleep(0)
    nodes.gate = asyncio.Event()
    first = asyncio.create_task(life.start())
    await stopping
    second = asyncio.create_task(life.start())
    await asyncio.sleep(0)
    nodes.gate.set()
    await asyncio.gather(first, second)
    assert life.node is nodes.made[1]
    assert len(nodes.made) == 2
