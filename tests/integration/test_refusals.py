"""Sessions that do not recover: the client gets a new session, with nothing of an old one."""

from __future__ import annotations

import asyncpg
import pytest

from sio_pg_adapter import AsyncNamespace, ConfigurationError, NotSerializable, PayloadTooLarge, emit_async
from support.asgi_client import AsgiClient
from support.pruning import prune_once


async def fresh(node, old, **auth) -> None:
    async with node.client(**auth) as wire:
        assert wire.sid != old.sid and wire.pid not in (None, old.pid)
        assert not node.sio.recovered(wire.sid)
        await node.sio.emit("end")
        assert await wire.events_until("end") == []


@pytest.fixture
async def away(start_node):
    """A client that has got one event, is away and has missed one."""
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e", 1)
        await wire.event()
        await wire.drop()
        await node.sio.emit("e", "missed")
        yield node, wire


async def test_case_48_an_unknown_pid(away):
    node, wire = away
    await fresh(node, wire, pid="x" * 32)
    await fresh(node, wire, pid="x" * 32, offset=wire.offset)
    async with node.client(pid=wire.pid, offset=wire.offset) as again:
        assert again.sid == wire.sid


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: ("A" if text[0] != "A" else "B") + text[1:],
        lambda text: text.swapcase(),
        lambda text: text + "\0",
        lambda text: text + " ",
        lambda text: text[:-1],
    ],
    ids=["last", "first", "case", "NUL", "space", "shorter"],
)
async def test_case_55_pid_or_offset_changed(away, change):
    node, wire = away
    await fresh(node, wire, pid=change(wire.pid), offset=wire.offset)
    await fresh(node, wire, pid=wire.pid, offset=change(wire.offset))
    async with node.client(pid=wire.pid, offset=wire.offset) as again:
        assert again.sid == wire.sid and await again.event() == ["e", "missed"]


@pytest.mark.parametrize(
    "offset", [7, {}, [], True, "", "-1", "1e9", "9" * 400, "x" * 900_000, "٣" * 22, "' OR 1=1 --", "\0" * 22]
)
async def test_cases_16_97_what_is_no_offset(away, db, offset, caplog):
    node, wire = away
    before = await db.fetchrow("SELECT * FROM sio_sessions")
    caplog.clear()
    await fresh(node, wire, pid=wire.pid, offset=offset)
    assert [r.getMessage() for r in caplog.records if "not recovered" in r.getMessage()] != []
    assert await db.fetchrow("SELECT * FROM sio_sessions WHERE sid = $1", wire.sid) == before


@pytest.mark.parametrize(
    "packet", ['0"x"', "0[1]", "0null", '0{"pid":1}', '0{"pid":{}}', '0{"offset":7}', "07", "0{}"]
)
async def test_case_16_odd_connects(start_node, packet):
    node = await start_node()
    async with AsgiClient(node.sio) as wire:
        wire.send(packet)
        assert (await wire.recv()).startswith('0{"sid"')


async def test_case_50_what_was_missed_is_not_stored_any_more(away, db, pg_dsn):
    node, wire = away
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 h'")
    await prune_once(pg_dsn)
    await fresh(node, wire, pid=wire.pid, offset=wire.offset)
    await fresh(node, wire, pid=wire.pid, offset=wire.offset)


async def test_case_51_an_offset_in_the_future(away):
    """It is signed with the right key, as an offset that a lost epoch issued."""
    node, wire = away
    ahead = node.manager.node.epochs.codec.encode(node.manager.node.cursor.offset + 1_000, "/")
    await fresh(node, wire, pid=wire.pid, offset=ahead)


async def test_cases_52_95_pid_and_offset_of_another_namespace(start_node):
    node = await start_node()
    refuse = []

    @node.sio.on("connect", namespace="/admin")
    async def connect(sid, environ, auth):
        return not refuse

    async with node.client() as wire, node.client("/admin") as admin:
        await node.sio.emit("e", 1)
        await node.sio.emit("e", 1, namespace="/admin")
        await wire.event()
        await admin.event("/admin")
        await wire.drop()
        await admin.drop()
        await node.sio.emit("e", "secret")
        await node.sio.emit("e", "top secret", namespace="/admin")
        refuse.append(True)
        async with AsgiClient(node.sio) as other:
            other.send(f'0/admin,{{"pid":"{wire.pid}"}}')
            assert (await other.recv()).startswith("4/admin,")
            assert other.waiting() == []
        refuse.clear()
        async with node.client("/admin", pid=wire.pid, offset=wire.offset) as other:
            assert other.sid not in (wire.sid, admin.sid)
            await node.sio.emit("end", namespace="/admin")
            assert await other.events_until("end", "/admin") == []
        async with node.client(pid=wire.pid, offset=admin.offset) as other:  # the pid is right, the offset is not
            assert other.sid != wire.sid


async def test_case_54_the_window_has_passed_by_the_clock_of_the_database(away, db, pg_dsn):
    node, wire = away
    await db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp() - interval '1 s'")
    await fresh(node, wire, pid=wire.pid, offset=wire.offset)
    await db.execute("DELETE FROM sio_sessions WHERE expires_at IS NULL")
    await prune_once(pg_dsn)
    assert await db.fetchval("SELECT count(*) FROM sio_sessions WHERE sid = $1", wire.sid) == 0


async def test_case_44_over_the_cap_is_fresh_and_never_a_part(start_node):
    node = await start_node(recovery={"max_missed_packets": 5})
    for missed, recovers in ((5, True), (6, False)):
        async with node.client() as wire:
            await wire.drop()
            for i in range(missed):
                await node.sio.emit("e", i)
                await node.sio.emit("not for it", room="x")
            if not recovers:
                await fresh(node, wire, pid=wire.pid)
                continue
            async with node.client(pid=wire.pid) as again:
                await node.sio.emit("end")
                assert [args for _, args in await again.events_until("end")] == list(range(missed))


@pytest.mark.parametrize("how", ["DISCONNECT packet", "server, here", "server, elsewhere", "server, while away"])
async def test_cases_27_29_an_ended_session_never_comes_back(start_node, db, how):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        if how == "DISCONNECT packet":
            wire.send("1")
            await wire.drop()
        elif how == "server, here":
            await a.sio.disconnect(wire.sid)
            assert await wire.recv() == "1"
        elif how == "server, elsewhere":
            await b.sio.disconnect(wire.sid)
            assert await wire.recv() == "1"
        else:
            await wire.drop()
            await b.sio.disconnect(wire.sid)
        assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
        for node in (a, b):
            await fresh(node, wire, pid=wire.pid)


async def test_case_28_two_namespaces_recover_on_their_own(start_node):
    node = await start_node()
    refuse = []

    @node.sio.on("connect", namespace="/n")
    async def connect(sid, environ, auth):
        return not refuse

    async with node.client() as wire:
        other_sid, other_pid = await wire.connect("/n")
        await node.sio.save_session(other_sid, {"n": 1}, namespace="/n")
        await wire.drop()
        refuse.append(True)
        async with AsgiClient(node.sio) as again:
            again.send(f'0/n,{{"pid":"{other_pid}"}}')
            assert (await again.recv()).startswith("4/n,")
            assert await again.connect(pid=wire.pid) == (wire.sid, wire.pid)
            assert other_sid != wire.sid


async def test_case_22_the_same_session_many_times_in_a_row(start_node):
    nodes = [await start_node(), await start_node()]
    async with nodes[0].client() as wire:
        await wire.drop()
        auth = {"pid": wire.pid}
        for i in range(12):
            await nodes[i % 2].sio.emit("e", i)
            async with nodes[(i + 1) % 2].client(**auth) as again:
                assert again.sid == wire.sid and await again.event() == ["e", i]
                auth = {"pid": wire.pid, "offset": again.offset}


async def test_a_second_connect_on_one_connection_is_refused_before_anything(start_node):
    node = await start_node()
    async with node.client() as wire:
        wire.send(f'0{{"pid":"{wire.pid}"}}')
        assert (await wire.recv()).startswith("4")
        await node.sio.emit("e")
        assert await wire.event() == ["e"]


# -- names that mean harm --------------------------------------------------------------------------------------
HOSTILE = '"; CREATE TABLE x(); --'


async def test_case_98_hostile_names_are_data(start_node, db):
    node = await start_node(namespaces="*")
    namespace = "/" + HOSTILE.replace(",", "")
    async with node.client(namespace) as wire:
        await node.sio.enter_room(wire.sid, HOSTILE, namespace=namespace)
        await node.sio.emit(HOSTILE, HOSTILE, room=HOSTILE, skip_sid=HOSTILE, namespace=namespace)
        assert await wire.event(namespace) == [HOSTILE, HOSTILE]
        await node.sio.disconnect(HOSTILE, namespace=namespace)
        await wire.drop()
        async with node.client(namespace, pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
    with pytest.raises(asyncpg.UndefinedTableError):
        await db.execute("SELECT FROM x")


@pytest.mark.parametrize("namespace", ["/" + "x" * 512, "/" + "x" * 4_000, "/a\0b"], ids=["513", "4001", "NUL"])
async def test_case_98_a_namespace_that_is_no_name_is_refused_before_any_handler(start_node, db, namespace):
    node = await start_node(namespaces="*")
    called = []

    @node.sio.on("connect", namespace="*")
    async def connect(namespace, sid, environ, auth):
        called.append(sid)

    async with AsgiClient(node.sio) as wire:
        wire.send(f"0{namespace},")
        assert (await wire.recv()).startswith(f"4{namespace},")
    assert called == [] and await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


@pytest.mark.parametrize("namespace", ["/" + "x" * 512, "/a\0b"], ids=["513", "NUL"])
async def test_case_98_a_namespace_that_is_no_name_is_refused_at_the_call(start_node, namespace):
    node = await start_node()
    for call, args in (
        (node.sio.emit, ("e",)),
        (node.sio.enter_room, ("s", "x")),
        (node.sio.leave_room, ("s", "x")),
        (node.sio.close_room, ("x",)),
        (node.sio.disconnect, ("s",)),
    ):
        with pytest.raises((NotSerializable, PayloadTooLarge), match="namespace"):
            await call(*args, namespace=namespace)


# -- to everybody by mistake -----------------------------------------------------------------------------------
async def is_sent_nothing(node, wire) -> None:
    await node.sio.emit("end")
    assert await wire.events_until("end") == []


@pytest.mark.parametrize("to", [0, False, {}, b""])
async def test_who_is_named_wrongly_is_not_everybody(start_node, db, to):
    node = await start_node()
    async with node.client() as wire:
        for call in (
            node.sio.emit("secret", to=to),
            node.sio.emit("secret", room=to),
            node.sio.emit("secret", to=to, room="r"),
            node.sio.emit("secret", to=to, connection=db),
            node.sio.send("secret", to=to),
            node.sio.call("secret", to=to),
            node.sio.broadcast_call("secret", room=to),
            node.manager.emit("secret", 1, to=to),
            emit_async(db, "secret", to=to),
        ):
            with pytest.raises(NotSerializable, match="room takes text"):
                await call
        await is_sent_nothing(node, wire)


@pytest.mark.parametrize("keyword", ["rooms", "skip_sids", "volatil"])
async def test_the_managers_emit_takes_no_keyword_that_it_does_not_know(start_node, keyword):
    node = await start_node()
    async with node.client() as wire:
        with pytest.raises(TypeError, match=keyword):
            await node.manager.emit("secret", 1, **{keyword: ["admins"]})
        await is_sent_nothing(node, wire)


@pytest.mark.parametrize("namespace", [0, False, b"", [], 5])
async def test_a_namespace_of_another_type_is_not_the_default_one(start_node, db, namespace):
    node = await start_node()
    one = AsyncNamespace("/")
    node.sio.register_namespace(one)
    async with node.client() as wire:
        sid = wire.sid
        for on in (node.sio, one):
            for name, args in (
                ("emit", ("secret",)),
                ("send", ("secret",)),
                ("call", ("secret", 1, sid)),
                ("broadcast_call", ("secret",)),
                ("enter_room", (sid, "x")),
                ("leave_room", (sid, "x")),
                ("close_room", ("x",)),
                ("sockets_join", (None, "x")),
                ("disconnect_sockets", (None,)),
                ("fetch_sockets", ()),
                ("fetch_rooms", (sid,)),
                ("get_session", (sid,)),
                ("save_session", (sid, {})),
                ("disconnect", (sid,)),
            ):
                with pytest.raises(NotSerializable, match="namespace takes text"):
                    await getattr(on, name)(*args, namespace=namespace)
            for name in ("recovered", "rooms"):
                with pytest.raises(NotSerializable, match="namespace takes text"):
                    getattr(on, name)(sid, namespace=namespace)
        with pytest.raises(NotSerializable, match="namespace takes text"):
            await emit_async(db, "secret", namespace=namespace)
        await is_sent_nothing(node, wire)


# -- what is refused before the database is asked, or a client -----------------------------------------------------
@pytest.mark.parametrize("sid", [5, b"x", "\0", "\ud800", ["x"], None])
async def test_a_sid_that_is_no_name_is_refused_at_the_call(start_node, sid):
    node = await start_node()
    for call, args in (
        (node.sio.get_session, ()),
        (node.sio.save_session, ({},)),
        (node.sio.fetch_rooms, ()),
        (node.sio.disconnect, ()),
        (node.sio.enter_room, ("x",)),
        (node.sio.leave_room, ("x",)),
    ):
        with pytest.raises(NotSerializable, match="sid"):
            await call(sid, *args)
    with pytest.raises(NotSerializable, match="sid"):
        node.sio.recovered(sid)


async def test_nobody_is_in_or_out_of_the_room_that_means_everybody(start_node):
    node = await start_node()
    async with node.client() as wire:
        for call in (
            node.sio.enter_room(wire.sid, ""),
            node.sio.leave_room(wire.sid, ""),
            node.sio.close_room(""),
        ):
            with pytest.raises(ConfigurationError, match="room takes a name that is not empty"):
                await call


async def test_what_cannot_be_called_or_waited_for_is_refused_before_anything_is_sent(start_node):
    node = await start_node()
    async with node.client() as wire:
        for callback in ("x", False, 0):
            with pytest.raises(ConfigurationError, match="callback takes"):
                await node.sio.emit("e", to=wire.sid, callback=callback)
        for timeout in ("x", True, float("nan"), [1]):
            with pytest.raises(ConfigurationError, match="timeout takes"):
                await node.sio.call("e", to=wire.sid, timeout=timeout)
        await is_sent_nothing(node, wire)
