"""`enter_room(since=)`: what came for a room after a position, then live, as if the client had been there."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from socketio import exceptions

from integration.test_seam import Deaf
from sio_pg_adapter import AsyncNamespace, ConfigurationError, PositionLost, emit_async
from sio_pg_adapter.log.offsets import Epoch, OffsetCodec
from sio_pg_adapter.log.positions import encode_position
from sio_pg_adapter.log.records import Kind
from support.asgi_client import AsgiClient
from support.nodes import Node
from support.pruning import prune_once
from support.store import kinds_of
from support.waiting import until

AGED = "UPDATE sio_packets SET created_at = created_at - interval '1 hour'"


def entering(node: Node, **rooms: str | None) -> list[str | None]:
    """Have the connect handler enter rooms, each from its position. Return the list of the results."""
    returned: list[str | None] = []

    @node.sio.event
    async def connect(sid, environ, auth):
        for room, position in rooms.items():
            returned.append(await node.sio.enter_room(sid, room, since=position))

    return returned


async def ended(node: Node, *wires: AsgiClient) -> list[list[Any]]:
    """Return the numbers that each client got."""
    await node.sio.emit("end")
    return [[args[0] for _, *args in await wire.events_until("end")] for wire in wires]


async def refused(node: Node, **auth: Any) -> str:
    """Return the message with which a client is refused."""
    async with AsgiClient(node.sio) as wire:
        wire.send(f"0{json.dumps(auth) if auth else ''}")
        answer = await wire.recv()
        assert answer[0] == "4", answer
        return json.loads(answer[1:])["message"]


# -- what the client gets -----------------------------------------------------------------------------------
async def test_events_after_the_position_and_live_events_come_in_one_order(start_node):
    node = await start_node()
    await node.emit_numbers(0, 3, room="doc")
    position = await node.sio.position()
    await node.emit_numbers(3, 2, room="doc")
    await node.emit_numbers(100, 1)  # for everybody that is there
    await node.emit_numbers(5, 1, room=["doc", "other"])
    returned = entering(node, doc=position)

    @node.sio.use
    async def meanwhile(sid, environ, auth):
        await node.emit_numbers(200, 1)
        await node.emit_numbers(6, 1, room="doc")
        await node.emit_numbers(201, 1, room=sid)

    async with node.client() as wire:
        await node.emit_numbers(7, 1, room="doc")
        assert await ended(node, wire) == [[3, 4, 5, 200, 6, 201, 7]]
        assert returned == [position]
        assert sorted(node.sio.rooms(wire.sid)) == sorted([wire.sid, "doc"])


@pytest.mark.usefixtures("short_pages")
async def test_rooms_from_several_positions_and_one_from_now_page_by_page(start_node):
    a, b = await start_node(), await start_node()
    await b.emit_numbers(0, 5, room="x")
    early = await b.sio.position()
    for i in range(1, 4):
        await b.emit_numbers(100 * i, 10, room="x")
        await b.emit_numbers(100 * i + 10, 10, room=["y", "x", "z"])
        await b.emit_numbers(100 * i + 20, 10, room="z")
        await b.emit_numbers(100 * i + 30, 10, room="now")
        if i == 1:
            late = await b.sio.position()
    returned = entering(a, y=late, x=early, z=late, now=None)
    async with a.client() as wire:
        await b.emit_numbers(1_000, 3, room=["now", "x"])
        rounds = [[100 * i + j for j in range(20 if i == 1 else 30)] for i in range(1, 4)]
        assert await ended(b, wire) == [[n for numbers in rounds for n in numbers] + [1_000, 1_001, 1_002]]
        assert returned[:3] == [late, early, late]


@pytest.mark.usefixtures("short_pages")
@pytest.mark.parametrize("received", [0, 1, 10, 30])
async def test_a_drop_in_the_middle_recovers_exactly(start_node, received):
    """The client may have received nothing yet, or its last event may be older than its session."""
    a, b = await start_node(), await start_node()
    await a.emit_numbers(0, 3, room="x")
    first = await a.sio.position()
    await a.emit_numbers(3, 20, room="x")
    await a.emit_numbers(500, 1)
    second = await a.sio.position()
    await a.emit_numbers(23, 20, room=["x", "y"])
    entering(a, x=first, y=second)
    async with AsgiClient(a.sio) as wire:
        wire.stall()
        wire.send("0")
        await wire.held.wait()
        wire.flow()
        wire.pid = json.loads((await wire.recv())[1:])["pid"]
        got = [(await wire.event())[1] for _ in range(received)]
        await wire.drop()
    await b.emit_numbers(43, 5, room="y")
    async with b.client(pid=wire.pid, **({"offset": wire.offset} if received else {})) as again:
        assert b.sio.recovered(again.sid)
        assert [got + rest for rest in await ended(a, again)] == [list(range(3, 48))]


async def test_nothing_is_sent_of_a_room_that_was_left_in_the_handler(start_node):
    """As after a recovery: a handler that takes a client out of a room has decided before the replay."""
    node = await start_node()
    position = await node.sio.position()
    await node.emit_numbers(0, 2, room="x")
    later = await node.sio.position()
    await node.emit_numbers(2, 2, room="x")
    await node.emit_numbers(10, 2, room="y")

    @node.sio.event
    async def connect(sid, environ, auth):
        for room in () if node.sio.recovered(sid) else ("x", "y"):
            await node.sio.enter_room(sid, room, since=position)
            await node.sio.leave_room(sid, room)
        assert await node.sio.enter_room(sid, "x", since=later) == later

    async with node.client() as wire:
        await node.emit_numbers(4, 1, room="x")
        await node.emit_numbers(12, 1, room="y")
        await wire.drop()
        async with node.client(pid=wire.pid) as again:  # as the store has it
            [stored] = await ended(node, again)
    assert stored == [2, 3, 4]


async def test_a_room_that_was_closed_counts_from_there(start_node):
    """It is closed before the position, while the client connects, or before it is entered again."""
    node = await start_node()
    await node.sio.close_room("x")
    position = await node.sio.position()
    await node.emit_numbers(0, 1, room="x")
    await node.sio.close_room("x")
    await node.emit_numbers(1, 1, room="x")

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.enter_room(sid, "x", since=position)
        await node.emit_numbers(2, 1, room="x")
        await node.sio.close_room("x")

    async with node.client() as wire:
        await node.emit_numbers(3, 1, room="x")
        assert await ended(node, wire) == [[0, 1, 2]]


async def test_a_position_above_the_nodes_cursor_is_waited_for(start_node):
    a, b = await start_node(), await start_node()
    deaf = Deaf(a)
    await b.sio.close_room("x")  # below the position, and not applied here yet
    position = await b.sio.position()
    await b.emit_numbers(0, 1, room="x")
    entering(a, x=position)
    async with a.client() as wire:  # it reads the log itself
        deaf.hear()
        assert await ended(b, wire) == [[0]]


async def test_a_class_based_namespace_has_them(start_node):
    node = await start_node()
    position = await node.sio.position(namespace="/chat")
    seen = []

    class Chat(AsyncNamespace):
        async def on_connect(self, sid, environ, auth):
            seen.append(self.last_position(sid))
            assert await self.enter_room(sid, "x", since=position) == position
            seen.append(await self.position())

    node.sio.register_namespace(Chat("/chat"))
    await node.emit_numbers(0, 1, room="x", namespace="/chat")
    async with AsgiClient(node.sio) as wire:
        await wire.connect("/chat")
        assert await wire.event("/chat") == ["e", 0]
    assert seen[0] is None and seen[1] == await node.sio.position(namespace="/chat")


# -- on a recovery ------------------------------------------------------------------------------------------
async def test_after_a_recovery_a_position_changes_nothing(start_node, db, pg_dsn):
    """The handler still has the position of the page, whatever has become of it."""
    node = await start_node()
    entering(node, x=await node.sio.position())
    async with node.client() as wire:
        await node.emit_numbers(0, 2, room="x")
        await wire.event()
        await db.execute(AGED)
        await prune_once(pg_dsn)
        await node.emit_numbers(2, 1, room="x")
        await wire.event()
        await wire.event()
        await wire.drop()
        await node.emit_numbers(3, 2, room="x")
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert node.sio.recovered(again.sid)
            assert await ended(node, again) == [[3, 4]]
            await again.drop()
        entering(node, x=encode_position(1, "/", OffsetCodec([Epoch(0, b"of another log")])))
        async with node.client(pid=wire.pid, offset=again.offset) as third:
            assert node.sio.recovered(third.sid)


async def test_after_a_recovery_another_room_is_not_entered_from_a_position(start_node):
    """The client may be due events there below its offset. Later nothing would show which of them it has."""
    node = await start_node()
    position = await node.sio.position()
    await node.emit_numbers(0, 1, room="x")
    async with node.client() as wire:
        await wire.drop()
    entering(node, x=position)
    assert await refused(node, pid=wire.pid) == (
        "the client has recovered its session, which is not in room 'x'. Load the page again."
    )


# -- what cannot be sent ------------------------------------------------------------------------------------
async def test_a_position_below_the_floor_is_lost(start_node, db, pg_dsn):
    node = await start_node()
    position = await node.sio.position()
    await node.emit_numbers(0, 3, room="x")
    newer = await node.sio.position()
    await db.execute(AGED)
    await prune_once(pg_dsn)
    await node.emit_numbers(3, 1, room="x")
    entering(node, x=position)
    assert await refused(node) == "events after the position are no longer stored. Load the page again."
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
    entering(node, x=newer)
    async with node.client() as wire:
        assert await ended(node, wire) == [[3]]


@pytest.mark.parametrize("reload", [True, False])
async def test_an_application_decides_what_a_client_does_with_a_lost_position(start_node, db, pg_dsn, reload):
    node = await start_node()
    position = await node.sio.position()
    await node.emit_numbers(0, 3, room="x")
    await db.execute(AGED)
    await prune_once(pg_dsn)

    @node.sio.event
    async def connect(sid, environ, auth):
        try:
            await node.sio.enter_room(sid, "x", since=position)
        except PositionLost:
            if reload:
                raise exceptions.ConnectionRefusedError("reload") from None
            await node.sio.enter_room(sid, "x")
            await node.sio.emit("load", room=sid)

    if reload:
        assert await refused(node) == "reload"
        return
    async with node.client() as wire:
        assert await wire.event() == ["load"]
        await node.emit_numbers(3, 1, room="x")
        assert await ended(node, wire) == [[3]]


async def test_no_more_than_max_missed_packets_in_all_rooms_together(start_node):
    node = await start_node(recovery={"max_missed_packets": 5})
    position = await node.sio.position()
    await node.emit_numbers(0, 2, room=["x", "y"])
    await node.emit_numbers(2, 1, room="x")
    await node.emit_numbers(3, 2, room="y")
    entering(node, x=position, y=position)
    async with node.client() as wire:
        assert await ended(node, wire) == [[0, 1, 2, 3, 4]]
    await node.emit_numbers(5, 1, room="y")
    assert (await refused(node)).startswith("there are more than 5 events after the position")
    entering(node, x=position)
    async with node.client() as wire:
        assert await ended(node, wire) == [[0, 1, 2]]


async def test_a_position_of_records_that_were_lost_is_lost(start_node, db):
    node = await start_node()
    kept = await node.sio.position()
    await node.emit_numbers(0, 2, room="x")
    lost = await node.sio.position()
    await node.sio.shutdown()
    head = await db.fetchval('SELECT max("offset") FROM sio_packets')
    await db.execute('DELETE FROM sio_packets WHERE "offset" = $1', head)
    await db.execute("DELETE FROM sio_marker")
    node = await start_node()
    entering(node, x=lost)
    assert await refused(node) == "the position was lost in a crash, restore or failover. Load the page again."
    entering(node, x=kept)
    async with node.client() as wire:
        assert await ended(node, wire) == [[0]]
    await db.execute("UPDATE sio_epochs SET key = sha256(key)")
    node = await start_node()
    entering(node, x=kept)
    assert (await refused(node)).startswith("the position is of an epoch that this log does not have")


@pytest.mark.parametrize("reloaded", [False, True])
async def test_a_page_whose_client_received_what_was_lost_loads_again(start_node, db, reloaded):
    """Its events after the position would come twice. The page that it loads then begins behind the loss."""
    node = await start_node()
    position = await node.sio.position()
    entering(node, doc=position)
    async with node.client() as wire:
        await node.emit_numbers(0, 2, room="doc")
        assert [await wire.event() for _ in range(2)] == [["e", 0], ["e", 1]]
        await wire.drop()
    await node.manager.aclose()
    await db.execute("""DELETE FROM sio_packets WHERE "offset" = (SELECT max("offset") FROM sio_packets);
                        DELETE FROM sio_sessions; DELETE FROM sio_marker""")
    node = await start_node()
    if reloaded:
        position = await node.sio.position()
    entering(node, doc=position)
    presented = {"pid": wire.pid, "offset": wire.offset}
    if not reloaded:
        assert "Load the page again" in await refused(node, **presented)
        return
    async with node.client(**presented) as again:
        await node.emit_numbers(1, 1, room="doc")
        assert await ended(node, again) == [[1]]


async def test_an_epoch_that_begins_while_the_client_connects_loses_its_position(start_node, db):
    """The check under the log's lock, where the session is stored, finds it."""
    node = await start_node()
    await node.emit_numbers(0, 1, room="x")
    position = await node.sio.position()
    tries = []

    @node.sio.event
    async def connect(sid, environ, auth):
        tries.append(await node.sio.enter_room(sid, "x", since=position))
        await db.execute("UPDATE sio_epochs SET key = sha256(key)")

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert await wire.rest() == []
    assert tries == [position] and await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_what_is_deleted_before_the_session_is_stored_closes_the_connection(start_node, db, pg_dsn):
    """The room has no floor for the deleted events. The client comes back, and its handler gets PositionLost."""
    node = await start_node()
    position = await node.sio.position()
    await node.emit_numbers(0, 3, room="x")
    lost = []

    @node.sio.event
    async def connect(sid, environ, auth):
        try:
            await node.sio.enter_room(sid, "x", since=position)
        except PositionLost as e:
            lost.append(str(e))
            raise
        await db.execute(AGED)
        await prune_once(pg_dsn)

    opened = kinds_of(node.manager.node.writer)
    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert await wire.rest() == []
    assert opened.count(Kind.OPEN) == 1
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
    assert await refused(node) == lost[0] == "events after the position are no longer stored. Load the page again."


async def test_retention_that_is_at_work_is_waited_for(start_node, db):
    """Retention does not see the session's rooms, and would delete their events without a floor."""
    node = await start_node()
    entering(node, x=await node.sio.position())
    await node.emit_numbers(0, 1, room="x")
    tries = kinds_of(node.manager.node.writer)
    async with AsgiClient(node.sio) as wire:
        async with db.transaction():
            await db.execute("SELECT FROM sio_log FOR UPDATE")
            wire.send("0")
            await until(lambda: tries.count(Kind.OPEN) > 2)
            assert wire.waiting() == []
        assert (await wire.recv())[0] == "0"
        assert await ended(node, wire) == [[0]]


@pytest.mark.usefixtures("short_pages")
async def test_what_is_deleted_before_it_is_sent_ends_the_session(start_node, db, pg_dsn):
    node = await start_node()
    entering(node, x=await node.sio.position())
    await node.emit_numbers(0, 30, room="x")
    page, pages = node.manager.node.sessions.page, []

    async def read(*args):
        pages.append(args)
        if len(pages) == 2:
            await db.execute(AGED)
            await prune_once(pg_dsn)
        return await page(*args)

    node.manager.node.sessions.page = read
    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        connected, *events = await wire.rest()
        assert connected[0] == "0" and len(events) == 7
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


@pytest.mark.usefixtures("short_pages")
async def test_what_is_deleted_while_the_client_is_away_is_not_skipped(start_node, db, pg_dsn):
    """The floor of the room is kept for a session that entered it from an earlier position."""
    node = await start_node()
    entering(node, x=await node.sio.position())
    await node.emit_numbers(0, 20, room="x")
    async with AsgiClient(node.sio) as wire:
        wire.stall()
        wire.send("0")
        await wire.held.wait()
        wire.flow()
        pid = json.loads((await wire.recv())[1:])["pid"]
        await wire.event()
        await wire.drop()
    await db.execute(AGED)
    await prune_once(pg_dsn)
    assert (await refused(node, pid=pid, offset=wire.offset)).startswith("events after the position are no longer")


# -- what a client proved -----------------------------------------------------------------------------------
async def test_a_client_whose_session_is_over_goes_on_from_what_it_received(start_node, db):
    node = await start_node()
    proved = []

    @node.sio.event
    async def connect(sid, environ, auth):
        proved.append(node.sio.last_position(sid))
        await node.sio.enter_room(sid, "x", since=proved[-1])

    async with node.client() as wire:
        await node.emit_numbers(0, 2, room="x")
        await wire.event()
        await wire.drop()
    await node.emit_numbers(2, 2, room="x")
    async with node.client(pid=wire.pid, offset=wire.offset) as wire:
        assert node.sio.recovered(wire.sid)
        assert [(await wire.event())[1] for _ in range(3)] == [1, 2, 3]
        await wire.drop()
    assert proved == [None, None]
    await node.emit_numbers(4, 2, room="x")
    await db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp()")
    async with node.client(pid=wire.pid, offset=wire.offset) as again:
        assert not node.sio.recovered(again.sid) and proved[2] is not None
        assert node.sio.last_position(again.sid) == proved[2]
        await again.event()
        await again.drop()
    async with node.client(pid=again.pid, offset=again.offset) as third:
        assert node.sio.recovered(third.sid) and proved[3] is None
        assert await ended(node, third) == [[5]]


async def test_no_last_position_without_a_proof(start_node, db):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e")
        await wire.event()
        await node.sio.disconnect(wire.sid)
    for auth in ({}, {"pid": wire.pid}, {"pid": wire.pid, "offset": "A" * 22}, {"offset": wire.offset}):
        async with node.client(**auth) as again:
            assert node.sio.last_position(again.sid) is None
    async with node.client(pid=wire.pid, offset=wire.offset) as again:
        assert node.sio.last_position(again.sid) is not None
        assert node.sio.last_position(again.sid, "/other") is node.sio.last_position("unknown") is None


async def test_an_offset_that_a_client_kept_from_an_earlier_session_is_not_taken_for_its_new_one(start_node):
    """JavaScript keeps it until the next event. It lies above the position, where the client has received nothing."""
    node = await start_node()
    async with node.client() as wire:
        position = await node.sio.position()
        await node.emit_numbers(0, 3, room="x")
        await node.emit_numbers(3, 1, room=wire.sid)
        await node.emit_numbers(4, 1, room="x")
        await wire.event()
        await node.sio.disconnect(wire.sid)
    entering(node, x=position)
    async with node.client(pid=wire.pid, offset=wire.offset) as second:
        await second.drop()  # it got nothing, as far as it knows
    async with node.client(pid=second.pid, offset=wire.offset) as third:
        assert not node.sio.recovered(third.sid)
        assert node.sio.last_position(third.sid) is None
        assert await ended(node, third) == [[0, 1, 2, 4]]
        await third.drop()
    async with node.client(pid=third.pid, offset=third.offset) as fourth:
        assert node.sio.recovered(fourth.sid)


# -- what enter_room returns --------------------------------------------------------------------------------
async def test_the_position_from_which_a_client_is_a_member(start_node):
    """The next event is the first one of the room that it gets."""
    a, b = await start_node(), await start_node()
    await b.sio.emit("e")
    await a.passed(1)
    returned = entering(a, x=None)
    async with a.client() as wire, b.client() as other:
        offset_of = a.manager.node.epochs.offset_of

        async def now() -> int:
            return offset_of(await a.sio.position(), "/", argument="since")

        assert offset_of(returned[0], "/", argument="since") <= await now()
        assert await a.sio.enter_room(wire.sid, "x") == await b.sio.enter_room(wire.sid, "x") == returned[0]
        for node in (a, b):
            entered = await node.sio.enter_room(wire.sid, f"of {id(node)}")
            assert offset_of(entered, "/", argument="since") == await now()
            assert await b.sio.enter_room(wire.sid, f"of {id(node)}") == entered
        assert offset_of(await a.sio.enter_room(wire.sid, wire.sid), "/", argument="since") <= await now()
        await other.drop()
        away = await a.sio.enter_room(other.sid, "x")
        assert offset_of(away, "/", argument="since") == await now()


async def test_a_client_without_a_session_has_a_position_too(start_node):
    node = await start_node(recovery=None)
    gone = []

    @node.sio.event
    async def disconnect(sid, reason):
        gone.append(await node.sio.enter_room(sid, "x"))

    async with node.client() as wire:
        await node.sio.emit("e")
        assert await node.sio.enter_room(wire.sid, "x") == await node.sio.position()
    assert gone == [None]


# -- what is refused ------------------------------------------------------------------------------------------
async def test_a_malformed_position_is_refused_before_anything_is_stored(start_node, db):
    node = await start_node()
    other = await node.sio.position(namespace="/other")
    async with node.client() as wire:
        await node.sio.emit("e")
        await wire.event()
    errors = []

    @node.sio.event
    async def connect(sid, environ, auth):
        for since in (other, wire.offset, wire.pid, "", 7, "x" * 36):
            with pytest.raises((ConfigurationError, PositionLost)) as caught:
                await node.sio.enter_room(sid, "x", since=since)
            errors.append(str(caught.value))
        return False

    before = await db.fetchval('SELECT max("offset") FROM sio_packets')
    await refused(node)
    assert errors[0].startswith("since has a position of another namespace than '/'")
    assert [e.startswith("since takes a position") for e in errors] == [False, True, True, True, True, False]
    assert errors[5].startswith("the position is of an epoch that this log does not have")
    assert await db.fetchval('SELECT max("offset") FROM sio_packets') == before


@pytest.mark.parametrize("position", ["x", {"a": 1}, ""])
async def test_a_client_with_a_malformed_position_is_refused_and_nothing_is_logged(start_node, position, caplog):
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.enter_room(sid, "x", since=auth["position"])

    assert (await refused(node, position=position)).startswith("since takes a position")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_a_position_is_refused_elsewhere(start_node):
    node = await start_node()
    position = await node.sio.position()
    late = asyncio.Event()
    tasks = []
    count_since, counted = node.manager.node.sessions.count_since, asyncio.Event()

    async def count(*args):
        counted.set()
        await late.wait()
        return await count_since(*args)

    node.manager.node.sessions.count_since = count

    async def enter(sid) -> None:
        await late.wait()
        await node.sio.enter_room(sid, "x", since=position)

    @node.sio.event
    async def connect(sid, environ, auth):
        tasks.append(asyncio.create_task(enter(sid)))
        tasks.append(asyncio.create_task(node.sio.enter_room(sid, "x", since=position)))
        await counted.wait()  # that one began in time, and its handler does not wait for it
        with pytest.raises(ConfigurationError, match="since= works in the connect handler or a middleware, for the"):
            await node.sio.enter_room("another", "x", since=position)

    @node.sio.event
    async def disconnect(sid, reason):
        tasks.append(asyncio.create_task(enter(sid)))
        await asyncio.wait([tasks[-1]])

    async with node.client() as wire:
        late.set()
        await wire.drop()
        for task in tasks:
            with pytest.raises(ConfigurationError, match="since= works in the connect handler or a middleware"):
                await task


async def test_a_room_of_another_client_is_not_entered(start_node):
    node = await start_node()
    async with node.client() as other:
        position = await node.sio.position()

        @node.sio.event
        async def connect(sid, environ, auth):
            with pytest.raises(ValueError, match="cannot enter a sid room"):
                await node.sio.enter_room(sid, other.sid, since=position)

        async with node.client():
            pass


@pytest.mark.parametrize("options", [
    {"recovery": None}, {"recovery": {"accepts": lambda *_: False}}, {"always_connect": True}
])  # fmt: skip
async def test_a_position_needs_a_session_that_is_still_to_be_stored(start_node, options):
    node = await start_node(**options)
    position = await node.sio.position()
    messages = []

    @node.sio.event
    async def connect(sid, environ, auth):
        try:
            await node.sio.enter_room(sid, "x", since=position)
        except ConfigurationError as e:
            messages.append(str(e))

    async with node.client():
        named = "always_connect" if "always_connect" in options else "connection_state_recovery"
        assert [named in message for message in messages] == [True]


async def test_the_events_of_a_transaction_are_on_one_side(start_node, db):
    """What the connection's snapshot sees is at or below its position."""
    node = await start_node()
    await db.execute("CREATE TABLE docs (body text)")
    async with db.transaction():
        await db.execute("INSERT INTO docs VALUES ('a')")
        await emit_async(db, "e", "a", room="doc")
    async with db.transaction(isolation="repeatable_read", readonly=True):
        docs = [row["body"] for row in await db.fetch("SELECT body FROM docs")]
        await node.sio.emit("e", "b", room="doc")
        position = await node.sio.position(connection=db)
    entering(node, doc=position)
    async with node.client() as wire:
        assert docs + (await ended(node, wire))[0] == ["a", "b"]


async def test_a_client_that_is_disconnected_while_it_connects_leaves_nothing(start_node, db):
    node = await start_node()
    position = await node.sio.position()

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.disconnect(sid)
        await node.sio.enter_room(sid, "x", since=position)

    assert await refused(node) == "Connection refused by server"
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
