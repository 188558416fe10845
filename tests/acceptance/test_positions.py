"""From a page to the stream with the real client: a room that it enters from the position of its page."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from support.js_driver import VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_came_after_the_page_arrives_once_through_cuts_and_an_expired_session(
    cluster, js, room, module_dsn, version
):
    """Its auth is that of the page each time. JavaScript keeps its offset in a new session."""
    numbers = itertools.count()

    async def emit(count: int) -> None:
        for _ in range(count):
            await cluster.b.emit("n", next(numbers), room=room)

    await emit(3)
    page, read = await cluster.a.control("position"), next(numbers)
    await emit(30)
    client = await js.connect(cluster.a.url, version=version, auth={"since": {room: page}})
    for how in ("drop", "abort", "drop"):
        await emit(5)
        assert (await client.rejoin(how, url=cluster.b.url))["recovered"]
    await cluster.mark(room, "first")
    events = await client.events_until("first")
    await client.away()
    await emit(5)
    with psycopg.connect(module_dsn) as connection:
        connection.execute("UPDATE sio_sessions SET expires_at = now() WHERE expires_at IS NOT NULL")
    assert not (await client.back(cluster.a.url))["recovered"]
    await emit(5)
    assert (await client.rejoin())["recovered"]
    await cluster.mark(room)
    events += await client.events_until("end")
    assert events == [("n", [n]) for n in range(read + 1, next(numbers))]


async def test_a_client_with_a_position_that_is_lost_is_refused_with_a_message(cluster, js, room, module_dsn):
    page = await cluster.a.control("position")
    await cluster.a.emit("n", 0, room=room)
    with psycopg.connect(module_dsn) as connection:
        connection.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
        connection.execute("SELECT sio_trim(325, 10000)")
    client = await js.create(cluster.a.url, auth={"since": {room: page}})
    await client.do("connect")
    assert (await client.refused())[
        "message"
    ] == "events after the position are no longer stored. Load the page again."
