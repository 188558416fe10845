"""Positions: an exact cut between what a snapshot sees and the events after it."""

from __future__ import annotations

import asyncio
import base64
import itertools

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

from integration.test_segments import MANY, QUERIES, fill, turned
from sio_pg_adapter import ConfigurationError
from sio_pg_adapter.store.pruner import Pruned
from support.pruning import prune_once
from support.roles import NODE, OWNER
from support.store import Store


def offset_of(store: Store, position: str, namespace: str = "/") -> int:
    return store.manager.node.epochs.offset_of(position, namespace, argument="since")


async def test_sql_and_python_write_the_same_position(store, db):
    epochs = store.manager.node.epochs
    empty = await db.fetchval("SELECT sio_position()")
    assert empty == epochs.position(offset_of(store, empty), "/") == await store.manager.position()
    for namespace in ("/", "/ünï", "/a b"):
        head = await store.emit()
        position = await db.fetchval("SELECT sio_position($1)", namespace)
        assert position == epochs.position(head, namespace) == await store.manager.position(namespace=namespace)
        assert offset_of(store, position, namespace) == head


async def test_a_position_is_that_of_the_snapshot(store, db, pg_dsn):
    """Events of open transactions are above it, even if rolled-back transactions have taken offsets."""
    await store.emit()
    writer, other = await asyncpg.connect(pg_dsn), await asyncpg.connect(pg_dsn)
    async with db.transaction(isolation="repeatable_read", readonly=True):
        before = await store.manager.position(db)
        await store.emit()
        async with other.transaction():
            await other.execute("SELECT sio_emit('e'); SET CONSTRAINTS ALL IMMEDIATE")
        assert await store.manager.position(db) == before
    transaction = writer.transaction()
    await transaction.start()
    head = await store.emit()
    await writer.execute("SELECT sio_emit('open')")
    open_position = await store.manager.position()
    assert offset_of(store, open_position) == head
    await transaction.commit()
    assert offset_of(store, await store.manager.position()) == head + 1
    await writer.close()
    await other.close()


async def test_a_position_counts_from_the_floor_when_nothing_is_stored(pg_dsn, store, db):
    head = await store.emit()
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    async with db.transaction(isolation="repeatable_read"):
        await db.execute("SELECT 1 FROM sio_log")
        assert await prune_once(pg_dsn) == Pruned(records=1)
        assert offset_of(store, await store.manager.position(db)) == head  # the deleted record, or the floor
    assert offset_of(store, await store.manager.position(db)) == head


async def test_a_snapshot_from_before_a_truncate_is_refused_if_its_end_cannot_be_known(pg_dsn, store, db):
    """The snapshot no longer sees the records, and still sees the former floor. An answer would be too low."""
    await turned(db)
    newest = await store.manager.position()
    async with db.transaction(isolation="repeatable_read"):
        await db.execute("SELECT 1 FROM sio_log")
        assert await prune_once(pg_dsn) == Pruned(records=MANY)
        with pytest.raises(asyncpg.SerializationError, match="retention truncated the log"):
            async with db.transaction():
                await store.manager.position(db)
        await store.emit()  # above the snapshot
        with pytest.raises(asyncpg.SerializationError, match="retention truncated the log"):
            async with db.transaction():
                await store.manager.position(db)
    assert offset_of(store, await store.manager.position(db)) == offset_of(store, newest) + 1


async def test_a_snapshot_from_before_a_truncate_still_has_the_other_segment(pg_dsn, store, db):
    await turned(db)
    young = await store.emit()
    async with db.transaction(isolation="repeatable_read"):
        await db.execute("SELECT 1 FROM sio_log")
        await store.emit()
        assert await prune_once(pg_dsn) == Pruned(records=MANY)
        assert offset_of(store, await store.manager.position(db)) == young


async def test_a_snapshot_from_before_a_switch_keeps_its_position(store, db, pg_dsn):
    """A switch truncates the segment that it turns to."""
    await fill(db)
    newest = await store.manager.position()
    other = await asyncpg.connect(pg_dsn)
    async with db.transaction(isolation="repeatable_read"):
        await db.execute("SELECT 1 FROM sio_log")
        assert await other.fetchval(QUERIES["switch_segment"], 325.0) is True
        await store.emit()
        assert await store.manager.position(db) == newest
    await other.close()


async def end(db: asyncpg.Connection) -> int:
    """Return the offset of a position of a log that no node has opened."""
    return int.from_bytes(base64.urlsafe_b64decode(await db.fetchval("SELECT sio_position()"))[:8], "big")


@pytest.mark.parametrize(
    ("records", "truncated", "last"),
    [
        ([], [], 4),
        ([(0, 5), (0, 6)], [], 6),
        ([(1, 5), (1, 6)], [], 6),
        ([(0, 5), (0, 6), (1, 7), (1, 8)], [], 8),
        ([(1, 5), (1, 6), (0, 7), (0, 8)], [], 8),
        ([(0, 5), (1, 7), (1, 8)], [0], 8),
        ([(1, 5), (0, 7), (0, 8)], [1], 8),
        ([(1, 5)], [0], 5),
        ([(0, 5)], [1], 5),
        ([(0, 5)], [0], None),
        ([(1, 5)], [1], None),
        ([], [0], None),
        ([], [1], None),
        ([(0, 5), (1, 7)], [0, 1], None),
    ],
)
async def test_a_snapshot_has_the_last_offset_of_the_segments_that_it_sees(db, connect, records, truncated, last):
    """If a segment was truncated since, the other one has the last offset, or nobody knows it."""
    other = await connect()
    await db.execute("UPDATE sio_log SET floor = 4")
    for segment, offset in records:
        insert = f'INSERT INTO sio_packets_{segment} ("offset", kind, namespace) VALUES ($1, 3, $2)'
        await db.execute(insert, offset, "/")
    async with db.transaction(isolation="repeatable_read"):
        await db.execute("SELECT FROM sio_log")
        await other.execute("SET sio_pg_adapter.retention = 'on'")
        for segment in truncated:
            await other.execute(f"TRUNCATE sio_packets_{segment}")
            await other.execute(
                f'INSERT INTO sio_packets_{segment} ("offset", kind, namespace) VALUES (99, 3, $1)', "/"
            )
        if last is None:
            with pytest.raises(asyncpg.SerializationError, match="retention truncated the log"):
                async with db.transaction():
                    await end(db)
        else:
            assert await end(db) == last


@pytest.mark.parametrize(
    ("floor", "began_after", "last"), [(10, [7], 10), (10, [20], 20), (10, [20, 30], 30), (40, [20, 30], 40)]
)
async def test_a_position_is_not_below_the_floor_or_the_end_of_an_epoch(db, floor, began_after, last):
    """The records of the former epoch may have been deleted by hand."""
    await db.execute("UPDATE sio_log SET floor = $1", floor)
    for epoch, offset in enumerate(began_after, 1):
        await db.execute("INSERT INTO sio_epochs (epoch, key, began_after) VALUES ($1, '', $2)", epoch, offset)
    assert await end(db) == last


async def test_a_position_is_read_on_each_kind_of_connection(store, pg_dsn):
    head = await store.emit()
    manager = store.manager
    connection = await asyncpg.connect(pg_dsn)
    engine = sqlalchemy_asyncio.create_async_engine(pg_dsn.replace("postgresql:", "postgresql+asyncpg:"))
    async with (
        await psycopg.AsyncConnection.connect(pg_dsn, row_factory=psycopg.rows.dict_row) as aconn,
        engine.connect() as core,
        sqlalchemy_asyncio.AsyncSession(engine) as session,
    ):
        for one in (connection, aconn, core, session):
            assert offset_of(store, await manager.position(one)) == head
            assert offset_of(store, await manager.position(one, "/x"), "/x") == head
        await session.execute(sqlalchemy.text("SELECT 1"))
    await engine.dispose()
    await connection.close()
    with psycopg.connect(pg_dsn) as sync, pytest.raises(ConfigurationError, match="connection= takes an asyncpg"):
        await manager.position(sync)


async def test_a_position_has_a_namespace(db):
    with pytest.raises(asyncpg.NullValueNotAllowedError, match="namespace is not null"):
        await db.fetchval("SELECT sio_position(NULL)")


async def test_only_roles_with_the_right_read_a_position(db):
    grants = await db.fetch(
        "SELECT grantee FROM information_schema.role_routine_grants WHERE routine_name = 'sio_position'"
        " ORDER BY grantee DESC"
    )
    assert [row["grantee"] for row in grants] == [OWNER, NODE]


@pytest.mark.parametrize("relay", [False, True])
async def test_all_that_writes_at_once_is_on_one_side_of_a_position(store, start_node, db, pg_owner_dsn, relay):
    """Each snapshot sees exactly the transactions of 4 writers whose events are at or below its position.

    With the relay it sees these, and may see others, whose events are not moved yet. A third of the transactions is
    rolled back.
    """
    if relay:
        await db.execute("SELECT sio_set_relay(true)")
        await start_node()  # it moves the events
    await db.execute("CREATE TABLE state (number integer)")
    numbers = itertools.count()

    async def write() -> None:
        connection = await asyncpg.connect(pg_owner_dsn)
        while too_few():
            n = next(numbers)
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("INSERT INTO state VALUES ($1)", n)
            await connection.execute("SELECT sio_emit('n', to_json($1::integer))", n)
            if n % 3:
                await transaction.commit()
            else:
                await transaction.rollback()
        await connection.close()

    def too_few() -> bool:
        """Whether there are few cuts, or all at one offset, since no event has been moved yet."""
        return len(cuts) < 50 or cuts[0][0] == cuts[-1][0]

    cuts: list[tuple[int, list[int]]] = []
    writers = [asyncio.create_task(write()) for _ in range(4)]
    while too_few():
        row = await db.fetchrow("SELECT sio_position() AS position, (SELECT array_agg(number) FROM state) AS seen")
        cuts.append((offset_of(store, row["position"]), row["seen"] or []))
    for task in writers:
        await task
    for offset, seen in cuts:
        rows = await db.fetch('SELECT (body::json->>1)::integer FROM sio_packets WHERE "offset" <= $1', offset)
        assert {number for (number,) in rows} <= set(seen)
        assert relay or len(rows) == len(seen)
