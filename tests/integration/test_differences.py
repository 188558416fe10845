"""docs/differences.md: each row that can be observed, on python-socketio's server and on this package's."""

from __future__ import annotations

import pytest
import socketio

from sio_pg_adapter import AsyncServer
from support.asgi_client import AsgiClient, Closed


@pytest.fixture
async def both(start_node):
    """python-socketio's server, which keeps everything in memory, and this package's."""
    theirs = socketio.AsyncServer(async_mode="asgi", monitor_clients=False)
    return theirs, (await start_node()).sio


async def observed(both, observe):
    """What is seen of the one and of the other."""
    results = []
    for sio in both:
        async with AsgiClient(sio) as wire:
            try:
                results.append(await observe(sio, wire))
            except Exception as e:  # noqa: BLE001 - is compared
                results.append(type(e).__name__)
    return results


@pytest.mark.parametrize(
    ("name", "value", "theirs"),
    [("e", float("nan"), '2["e",NaN]'), ("e", float("inf"), '2["e",Infinity]'), (5, 1, "2[5,1]")],
)
async def test_values_and_names_that_json_does_not_have_are_refused(both, name, value, theirs):
    async def emit(sio, wire):
        await wire.connect()
        await sio.emit(name, value)
        return await wire.recv()

    assert await observed(both, emit) == [theirs, "NotSerializable"]


async def test_rooms_are_text(both):
    async def enter(sio, wire):
        sid, _ = await wire.connect()
        await sio.enter_room(sid, 7)
        return sio.rooms(sid)

    theirs, ours = await observed(both, enter)
    assert 7 in theirs and ours in {"NotSerializable", "ConfigurationError"}


async def test_a_connect_handler_that_raises_closes_the_connection(both, expected_errors):
    expected_errors += ["message async handler error", "its client comes back"]

    async def connect(sio, wire):
        @sio.event
        async def connect(sid, environ, auth):
            raise RuntimeError("a bug")

        wire.send("0")
        if not isinstance(sio, AsyncServer):  # it says nothing, and goes on with the connection
            wire.send("0/unknown,")
        return (await wire.recv()).partition(",")[0]

    assert await observed(both, connect) == ["4/unknown", "Closed"]


async def test_a_packet_that_cannot_be_read_closes_the_connection(both, expected_errors):
    expected_errors += ["message async handler error"]

    async def send(sio, wire):
        sid, _ = await wire.connect()
        wire.send("9")
        await sio.emit("next", to=sid)
        return (await wire.recv())[:8]

    assert await observed(both, send) == ['2["next"', Closed.__name__]


async def test_a_session_is_what_it_was_when_it_was_saved(both):
    async def change_later(sio, wire):
        sid, _ = await wire.connect()
        session = {"n": 1}
        await sio.save_session(sid, session)
        session["n"] = 2
        return await sio.get_session(sid)

    assert await observed(both, change_later) == [{"n": 2}, {"n": 1}]


async def test_an_event_has_an_offset(both):
    async def emit(sio, wire):
        await wire.connect()
        await sio.emit("e", 1)
        return (await wire.recv()).count(",")

    assert await observed(both, emit) == [1, 2]


async def test_a_client_of_another_node_or_one_that_is_away_has_a_session(both):
    async def look(sio, wire):
        sid, _ = await wire.connect()
        await sio.save_session(sid, {"n": 1})
        await wire.drop()
        return await sio.get_session(sid)

    assert await observed(both, look) == ["KeyError", {"n": 1}]
