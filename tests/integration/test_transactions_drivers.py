"""`emit` and `emit_async`: every kind of connection, in one transaction with the application's own statements."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy import orm, text
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

from sio_pg_adapter import (
    AsyncNamespace,
    AsyncPostgresManager,
    ConfigurationError,
    NotSerializable,
    PayloadTooLarge,
    close_room,
    close_room_async,
    disconnect,
    disconnect_async,
    emit,
    emit_async,
    enter_room,
    enter_room_async,
    leave_room,
    leave_room_async,
    migrate,
)

paramstyle = "pyformat"  # of this module, as a driver's has it: see GenericDriver

EVENTS = [
    ("binary", ("ü\0", b"\0\1", {"deep": [b""]}), {"room": "r1"}),
    ("several", [1, None], {"to": ["r1", 'it\'s "r2" \\ %s $1 :p1'], "skip_sid": ["s1", "s2"], "skip_room": "m",
                          "namespace": "/x"}),
    ("all", None, {}),
]  # fmt: skip
ROWS = [
    (["r1"], [], [], "/", ('["binary","\\u00fc\\u0000",{"_placeholder":true,"num":0},'
     '{"deep":[{"_placeholder":true,"num":1}]}]'), b"\0\0\0\2\0\1\0\0\0\0"),
    (["r1", "it's \"r2\" \\ %s $1 :p1"], ["s1", "s2"], ["m"], "/x", '["several",[1,null]]', None),
    ([""], [], [], "/", '["all"]', None),
]  # fmt: skip


def stored(dsn, schema="public"):
    """Return the rows of the log, and the number of rows in the application's table."""
    with psycopg.connect(dsn) as connection:
        name = psycopg.sql.Identifier(schema, "sio_packets")
        rows = connection.execute(
            psycopg.sql.SQL(
                "SELECT coalesce(rooms, ARRAY[room]), coalesce(skip_sids, '{{}}'), coalesce(skip_rooms, '{{}}'),"
                ' namespace, body, parts FROM {} ORDER BY "offset"'
            ).format(name)
        ).fetchall()
        assert connection.execute("SELECT count(*) FROM sio_outbox").fetchone() == (0,)
        return rows, connection.execute("SELECT count(*) FROM orders").fetchone()[0]


@pytest.fixture
def dsn(pg_owner_dsn):
    with psycopg.connect(pg_owner_dsn) as connection:
        connection.execute("CREATE TABLE orders (id integer)")
    return pg_owner_dsn


def url(dsn, driver):
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


class GenericDriver:
    """The connection of any DB-API 2 driver. Its subclass below is in a module without a paramstyle."""

    def __init__(self, connection):
        self._connection = connection

    def cursor(self):
        return self._connection.cursor()


# -- synchronous. Each yields a connection and its functions to execute, commit and roll back ------------------
@contextlib.contextmanager
def with_psycopg(dsn):
    with contextlib.closing(psycopg.connect(dsn)) as c:
        yield c, c.execute, c.commit, c.rollback


@contextlib.contextmanager
def with_psycopg_raw_cursors(dsn):
    with contextlib.closing(psycopg.connect(dsn, cursor_factory=psycopg.RawCursor)) as c:
        yield c, c.execute, c.commit, c.rollback


@contextlib.contextmanager
def with_psycopg_scalars(dsn):
    with contextlib.closing(psycopg.connect(dsn, row_factory=psycopg.rows.scalar_row)) as c:
        yield c, c.execute, c.commit, c.rollback


@contextlib.contextmanager
def with_generic_dicts(dsn):
    with contextlib.closing(psycopg.connect(dsn, row_factory=psycopg.rows.dict_row)) as c:
        wrapped = type("Ours", (GenericDriver,), {"__module__": "app.db"})(c)
        yield wrapped, c.execute, c.commit, c.rollback


@contextlib.contextmanager
def with_generic(dsn):
    with contextlib.closing(psycopg.connect(dsn)) as c:
        wrapped = type("Ours", (GenericDriver,), {"__module__": "app.db"})(c)
        yield wrapped, c.execute, c.commit, c.rollback


@contextlib.contextmanager
def with_sqlalchemy(dsn):
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    with engine.connect() as c:
        yield c, lambda sql: c.execute(text(sql)), c.commit, c.rollback
    engine.dispose()


@contextlib.contextmanager
def with_sqlalchemy_raw(dsn):
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    with contextlib.closing(engine.raw_connection()) as c:
        yield c, c.driver_connection.execute, c.commit, c.rollback
    engine.dispose()


@contextlib.contextmanager
def with_session(dsn):
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    with orm.Session(engine) as c:
        yield c, lambda sql: c.execute(text(sql)), c.commit, c.rollback
    engine.dispose()


@contextlib.contextmanager
def with_scoped_session(dsn):
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    c = orm.scoped_session(orm.sessionmaker(engine))
    yield c, lambda sql: c.execute(text(sql)), c.commit, c.rollback
    c.remove()
    engine.dispose()


SYNC = [
    with_psycopg, with_psycopg_raw_cursors, with_psycopg_scalars, with_generic, with_generic_dicts, with_sqlalchemy,
    with_sqlalchemy_raw, with_session, with_scoped_session,
]  # fmt: skip


@pytest.mark.parametrize("connected", SYNC)
def test_cases_79_80_synchronous(dsn, connected):
    with connected(dsn) as (connection, execute, commit, rollback):
        execute("INSERT INTO orders VALUES (1)")
        emit(connection, "no")
        rollback()
        assert stored(dsn) == ([], 0)
        execute("INSERT INTO orders VALUES (1)")
        for event, data, options in EVENTS:
            emit(connection, event, data, **options)
        assert stored(dsn) == ([], 0)
        commit()
        assert stored(dsn) == (ROWS, 1)
        assert emit(connection, "keyed", key="ü %s :p1 $1") is True
        commit()
        assert emit(connection, "keyed", key="ü %s :p1 $1") is False
        assert emit(connection, "keyed") is None
        rollback()
    assert len(stored(dsn)[0]) == len(ROWS) + 1


# -- asynchronous --------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def with_asyncpg(dsn):
    c = await asyncpg.connect(dsn)
    # as applications do to decode JSON themselves
    await c.set_type_codec("json", encoder=repr, decoder=repr, schema="pg_catalog")
    transaction = []

    async def execute(sql):
        transaction.append(c.transaction())
        await transaction[-1].start()
        await c.execute(sql)

    # lambdas, because the transaction begins later
    yield c, execute, lambda: transaction[-1].commit(), lambda: transaction[-1].rollback()  # noqa: PLW0108
    await c.close()


@contextlib.asynccontextmanager
async def with_asyncpg_pool(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, statement_cache_size=0) as pool, pool.acquire() as c:
        yield c, lambda sql: c.execute("BEGIN; " + sql), lambda: c.execute("COMMIT"), lambda: c.execute("ROLLBACK")


@contextlib.asynccontextmanager
async def with_psycopg_async(dsn):
    c = await psycopg.AsyncConnection.connect(dsn)
    yield c, c.execute, c.commit, c.rollback
    await c.close()


def with_sqlalchemy_async(driver, make):
    @contextlib.asynccontextmanager
    async def connected(dsn):
        engine = sqlalchemy_asyncio.create_async_engine(url(dsn, driver))
        async with make(engine) as c:
            yield c, lambda sql: c.execute(text(sql)), c.commit, c.rollback
        await engine.dispose()

    connected.__name__ = f"with_sqlalchemy_{driver}_{getattr(make, '__name__', 'connection')}"
    return connected


@contextlib.asynccontextmanager
async def scoped(engine):
    c = sqlalchemy_asyncio.async_scoped_session(sqlalchemy_asyncio.async_sessionmaker(engine), asyncio.current_task)
    yield c
    await c.remove()


ASYNC = [with_asyncpg, with_asyncpg_pool, with_psycopg_async] + [
    with_sqlalchemy_async(driver, make)
    for driver in ("asyncpg", "psycopg")
    for make in (sqlalchemy_asyncio.AsyncEngine.connect, sqlalchemy_asyncio.AsyncSession, scoped)
]


@pytest.mark.parametrize("through", ["emit_async", "manager", "server"])
@pytest.mark.parametrize("connected", ASYNC)
async def test_case_80_asynchronous(dsn, start_node, connected, through):
    send = emit_async
    if through == "manager":
        manager = AsyncPostgresManager(dsn, write_only=True)

        async def send(connection, event, data=None, **options):
            return await manager.emit(event, data, connection=connection, **options)

    elif through == "server":
        node = await start_node()
        node.sio.register_namespace(AsyncNamespace("/ns"))

        async def send(connection, event, data=None, **options):
            return await node.sio.emit(event, data, connection=connection, **options)

    async with connected(dsn) as (connection, execute, commit, rollback):
        await execute("INSERT INTO orders VALUES (1)")
        await send(connection, "no")
        await rollback()
        await execute("INSERT INTO orders VALUES (1)")
        for event, data, options in EVENTS:
            await send(connection, event, data, **options)
        assert await asyncio.to_thread(stored, dsn) == ([], 0)
        await commit()
        assert await asyncio.to_thread(stored, dsn) == (ROWS, 1)
        await execute("INSERT INTO orders VALUES (2)")
        assert await send(connection, "keyed", key="ü %s :p1 $1") is True
        await commit()
        await execute("INSERT INTO orders VALUES (3)")
        assert await send(connection, "keyed", key="ü %s :p1 $1") is False
        assert await send(connection, "keyed") is None
        await rollback()
    rows, orders = await asyncio.to_thread(stored, dsn)
    assert (len(rows), orders) == (len(ROWS) + 1, 2)


# -- rooms and disconnects -------------------------------------------------------------------------------------
NAME = 'it\'s "r2" \\ %s $1 :p1'
CHANGES = [
    (enter_room, ("s", NAME), {}, (1, "/", [NAME], "s", None)),
    (enter_room, (), {"room": "x", "members_of": [NAME, "y"]}, (6, "/", ["x"], None, f'[{json.dumps(NAME)},"y"]')),
    (leave_room, ("s",), {"room": "x", "namespace": "/x"}, (2, "/x", ["x"], "s", None)),
    (leave_room, (), {"room": "x", "members_of": "ü"}, (7, "/", ["x"], None, '["ü"]')),
    (close_room, (NAME,), {}, (3, "/", [NAME], None, None)),
    (disconnect, ("s", ), {}, (5, "/", [""], "s", None)),
    (disconnect, (), {"room": "x"}, (8, "/", [""], None, '["x"]')),
]  # fmt: skip
ASYNCHRONOUS = {
    enter_room: enter_room_async, leave_room: leave_room_async, close_room: close_room_async,
    disconnect: disconnect_async,
}  # fmt: skip


def changes(dsn):
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            'SELECT kind, namespace, coalesce(rooms, ARRAY[room]), sid, data FROM sio_packets ORDER BY "offset"'
        ).fetchall()


@pytest.mark.parametrize("connected", SYNC)
def test_rooms_and_disconnects_synchronous(dsn, connected):
    with connected(dsn) as (connection, execute, commit, rollback):
        for end in (rollback, commit):
            execute("INSERT INTO orders VALUES (1)")
            for function, arguments, options, _ in CHANGES:
                function(connection, *arguments, **options)
            assert changes(dsn) == []
            end()
    assert changes(dsn) == [row for _, _, _, row in CHANGES]
    assert stored(dsn)[1] == 1


@pytest.mark.parametrize("connected", ASYNC)
async def test_rooms_and_disconnects_asynchronous(dsn, connected):
    async with connected(dsn) as (connection, execute, commit, rollback):
        for end in (rollback, commit):
            await execute("INSERT INTO orders VALUES (1)")
            for function, arguments, options, _ in CHANGES:
                await ASYNCHRONOUS[function](connection, *arguments, **options)
            assert changes(dsn) == []
            await end()
    assert changes(dsn) == [row for _, _, _, row in CHANGES]
    assert stored(dsn)[1] == 1


# -- Django, which is configured once, in a process of its own ----------------------------------------------------
DJANGO = """
import sys
import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

at = conninfo_to_dict(sys.argv[1])
postgres = {"ENGINE": "django.db.backends.postgresql", "NAME": at["dbname"], "HOST": at["host"], "PORT": at["port"],
            "USER": at["user"], "PASSWORD": at.get("password", "")}
sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": postgres, "other": sqlite})
django.setup()
from django.db import connection, connections, transaction
from sio_pg_adapter import ConfigurationError, emit

class Undo(Exception):
    pass

try:
    with transaction.atomic():
        connection.cursor().execute("INSERT INTO orders VALUES (1)")
        emit(connection, "no")
        raise Undo
except Undo:
    pass
with transaction.atomic():
    connection.cursor().execute("INSERT INTO orders VALUES (1)")
    emit(connection, "100%", {"id": 7}, room="user:7")
    connection.check_constraints()  # as Django's own tests do
emit(connections["default"], "autocommit", b"binary")
try:
    emit(connections["other"], "no")
except ConfigurationError:
    print("refused")
"""


def test_case_79_django(dsn):
    done = subprocess.run([sys.executable, "-c", DJANGO, dsn], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr
    assert stored(dsn) == (
        [
            (["user:7"], [], [], "/", '["100%",{"id":7}]', None),
            ([""], [], [], "/", '["autocommit",{"_placeholder":true,"num":0}]', b"\0\0\0\6binary"),
        ],
        1,
    )


def test_nothing_is_imported_to_find_out(dsn):
    code = (
        "import sys; from sio_pg_adapter import emit\n"
        "import psycopg; before = set(sys.modules); c = psycopg.connect(sys.argv[1]); emit(c, 'x'); c.commit()\n"
        "c.close(); print({'django', 'sqlalchemy.orm', 'sqlalchemy.ext.asyncio'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code, dsn], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


# -- delivered ---------------------------------------------------------------------------------------------------
async def test_case_79_an_emitter_in_another_process_is_heard_and_replayed(start_node, pg_dsn):
    code = """
import sys
import psycopg
from sio_pg_adapter import emit
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    emit(connection, "from elsewhere", {"id": 7}, room=sys.argv[2])
"""
    node = await start_node()

    async def elsewhere(sid):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, pg_dsn, sid)
        assert await process.wait() == 0

    async with node.client() as wire:
        await elsewhere(wire.sid)
        assert await wire.event() == ["from elsewhere", {"id": 7}]
        await wire.drop()
        await elsewhere(wire.sid)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert await again.event() == ["from elsewhere", {"id": 7}]
        async with AsyncPostgresManager(pg_dsn, write_only=True) as manager:
            await manager.emit("written", None, room=wire.sid)
        async with node.client(pid=wire.pid, offset=again.offset) as once_more:
            assert await once_more.event() == ["written"]


async def test_with_connection_emit_waits_for_nothing(start_node, db):
    """The cursor cannot pass an uncommitted record, and the manager's own connections are not needed."""
    node = await start_node()
    async with db.transaction(), asyncio.timeout(2):
        await node.sio.emit("x", connection=db)
    unstarted = AsyncPostgresManager("postgresql://nobody@127.0.0.1:1/nowhere", write_only=True)
    await unstarted.emit("y", None, connection=db)
    assert await db.fetchval("SELECT count(*) FROM sio_packets") == 2


# -- refused, before anything is sent ------------------------------------------------------------------------------
class Thing:
    pass


@pytest.mark.parametrize(
    ("event", "data", "options", "error", "says"),
    [
        ("e", {"a": {"b": Thing()}}, {}, NotSerializable, r"\['b'\]"),
        ("e", float("nan"), {}, NotSerializable, "nan"),
        ("e\0", None, {}, NotSerializable, "event"),
        (7, None, {}, NotSerializable, "event"),
        ("e", None, {"room": 7}, NotSerializable, "room"),
        ("e", None, {"room": ["a", "\ud800"]}, NotSerializable, "room"),
        ("e", None, {"namespace": "/" + "x" * 512}, PayloadTooLarge, "namespace"),
        ("e", None, {"skip_sid": "x" * 513}, PayloadTooLarge, "skip_sid"),
        ("e", None, {"skip_room": "x" * 513}, PayloadTooLarge, "skip_room"),
        ("e", None, {"skip_room": ["m", 7]}, NotSerializable, "skip_room"),
        ("e", None, {"schema": "a\0"}, ConfigurationError, "schema"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_the_transaction_goes_on(dsn, event, data, options, error, says):
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO orders VALUES (1)")
        with pytest.raises(error, match=says):
            emit(connection, event, data, **options)
    assert stored(dsn) == ([], 1)


async def test_other_objects_are_refused_with_what_is_taken(dsn, start_node):
    sync = psycopg.connect(dsn)
    for connection in (None, object(), "postgresql://app:secret@db/app", psycopg.connect):
        with pytest.raises(ConfigurationError, match="psycopg Connection, an SQLAlchemy Connection or Session") as e:
            emit(connection, "x")
        assert "secret" not in str(e.value)
        with pytest.raises(ConfigurationError, match="asyncpg Connection") as e:
            await emit_async(connection, "x")
        assert "secret" not in str(e.value)
        with pytest.raises(ConfigurationError, match=r"leave_room\(\) takes a psycopg Connection"):
            leave_room(connection, "s", "x")
        with pytest.raises(ConfigurationError, match=r"leave_room_async\(\) and connection= take an asyncpg"):
            await leave_room_async(connection, "s", "x")
    with pytest.raises(ConfigurationError, match=r"Use emit\(\)"):
        await emit_async(sync, "x")
    with pytest.raises(ConfigurationError, match=r"Use disconnect\(\)"):
        await disconnect_async(sync, "s")
    with contextlib.closing(sqlite3.connect(":memory:")) as other, pytest.raises(sqlite3.OperationalError):
        emit(other, "x")  # a DB-API 2 connection, whose own error is clear
    sync.close()
    app = await asyncpg.connect(dsn)
    with pytest.raises(ConfigurationError, match=r"Use emit_async\(\)"):
        emit(app, "x")
    node = await start_node()
    for options in ({"callback": print}, {"volatile": True}, {"ignore_queue": True}):
        with pytest.raises(ConfigurationError, match="connection="):
            await node.sio.emit("x", room="r", connection=app, **options)
    await app.close()


def test_the_databases_errors_pass_through(dsn):
    with psycopg.connect(dsn) as connection:
        with pytest.raises(psycopg.errors.UndefinedFunction):
            emit(connection, "x", schema="information_schema")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            emit(connection, "x")


UNMIGRATED = "Run `sio-pg migrate --schema chat`"


@pytest.mark.parametrize("connected", [with_psycopg, with_sqlalchemy])
def test_the_error_of_a_database_that_is_not_migrated_names_the_command(pg_empty_dsn, connected):
    with connected(pg_empty_dsn) as (connection, *_), pytest.raises(Exception, match="chat") as raised:
        emit(connection, "x", schema="chat")
    assert any(UNMIGRATED in note for note in raised.value.__notes__)


@pytest.mark.parametrize("connected", ASYNC)
async def test_the_asynchronous_error_of_a_database_that_is_not_migrated_names_the_command(pg_empty_dsn, connected):
    async with connected(pg_empty_dsn) as (connection, *_):
        with pytest.raises(Exception, match="chat") as raised:
            await emit_async(connection, "x", schema="chat")
    assert any(UNMIGRATED in note for note in raised.value.__notes__)


@pytest.mark.parametrize("schema", ["it's :a 100% %s $1 :p1", '"; CREATE TABLE x(); --', ".sio_emit_encoded($1, %s"])
async def test_case_98_a_hostile_schema_is_only_a_name(dsn, schema):
    await asyncio.to_thread(migrate.upgrade, dsn, schema=schema)
    with psycopg.connect(dsn) as connection:
        emit(connection, "1", schema=schema)
        emit(GenericDriver(connection), "2", schema=schema)
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    with engine.begin() as connection:
        emit(connection, "3", schema=schema)
    engine.dispose()
    app = await asyncpg.connect(dsn)
    await emit_async(app, "4", schema=schema)
    await app.close()
    bodies = [row[4] for row in stored(dsn, schema)[0]]
    assert bodies == ['["1"]', '["2"]', '["3"]', '["4"]']
    assert stored(dsn)[0] == []
