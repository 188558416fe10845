"""Roles, databases and pools with settings that real applications have. Each works, or is refused at start by name.

Under each setting clients come and go for a while, and connections break. Then clients recover many times in a row
while others emit (``--field-recoveries``). Nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator

import asyncpg
import psycopg
import pytest
from asyncpg.protocol.protocol import BUILTIN_TYPE_NAME_MAP
from psycopg.conninfo import conninfo_to_dict

from field.recoveries import go, recover, refused, walking
from field.walk import HEAL_WAIT, LONG, Walk
from sio_pg_adapter.store.fitness import PLAIN
from support.roles import grants, node_dsn

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own


# -- isolation levels -------------------------------------------------------------------------------------------
@pytest.fixture(params=["repeatable read", "serializable"])
def strict(request: pytest.FixtureRequest, pg_dsn: str, pg_owner_dsn: str) -> str:
    """All new connections to the database are stricter than read committed."""
    with psycopg.connect(pg_owner_dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{request.param}'")
    return pg_dsn


async def test_a_strict_default_changes_nothing_for_own_connections(
    seconds, seed, strict, pg_owner_dsn, pg_admin_dsn, recoveries
):
    async with walking(seed, pg_owner_dsn, [{"dsn": strict}] * 2) as walk:
        await go(walk, recoveries, pg_admin_dsn)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_strict_pool_is_refused_by_name(pg_dsn, level):
    settings = {"default_transaction_isolation": level}
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=6, server_settings=settings) as pool:
        await refused("default_transaction_isolation", pool=pool)


# -- codecs -----------------------------------------------------------------------------------------------------
def codec_types(dsn: str) -> list[str]:
    """Return the types for which asyncpg has a codec, and takes another one, on this server."""
    with psycopg.connect(dsn) as connection:
        known = connection.execute(
            "SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typelem = 0"
            " AND typtype IN ('b', 'r', 'm') AND typname <> 'unknown'"
        )
        return sorted(BUILTIN_TYPE_NAME_MAP.keys() & {name for (name,) in known})


NEEDED = {"smallint": "int2", "integer": "int4", "bigint": "int8", "boolean": "bool", "double precision": "float8"}
REFUSED = [NEEDED.get(name, name) for name in PLAIN]
"""The types for which the package needs asyncpg's own codecs."""


def pool_with_codecs(dsn: str, names: list[str]) -> asyncpg.Pool:
    """A pool whose connections take and return these types as text in brackets."""

    async def init(connection: asyncpg.Connection) -> None:
        for name in names:
            await connection.set_type_codec(
                name, encoder=lambda value: value[1:-1], decoder=lambda text: f"<{text}>", schema="pg_catalog"
            )

    return asyncpg.create_pool(dsn, min_size=0, max_size=8, init=init)


async def test_codecs_that_are_refused_by_name(pg_dsn):
    for name in REFUSED:
        async with pool_with_codecs(pg_dsn, [name]) as pool:
            await refused("codec for the type", pool=pool)


async def test_codecs_of_a_pool(seconds, seed, pg_template, pg_create, pg_owner_dsn, recoveries):
    """All types at once in a short run, each type alone in a long one."""
    names = codec_types(pg_owner_dsn)
    assert set(REFUSED) < set(names)
    others = [name for name in names if name not in REFUSED]
    for replaced in [[name] for name in others] if seconds >= LONG else [others]:
        with pg_create(pg_template.template_dbname) as dsn:
            nodes = node_dsn(dsn)
            pooling = pool_with_codecs(nodes, replaced)
            async with pooling as pool, walking(seed, dsn, [{"pool": pool}, {"dsn": nodes}]) as walk:
                await go(walk, recoveries, nodes)  # a role may end its own connections


# -- a role -------------------------------------------------------------------------------------------------------
@pytest.fixture
def quiet_dsn(pg_owner_dsn: str, pg_admin_dsn: str) -> Iterator[str]:
    """A role with the documented rights of nodes. Its sessions show no activity, and may end no other role's."""
    name = f"sio_node_{secrets.token_hex(4)}"
    with psycopg.connect(pg_admin_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
        admin.execute(f"ALTER ROLE {name} SET track_activities = off")
        admin.execute(grants(name))
    at = conninfo_to_dict(pg_owner_dsn)
    yield f"postgresql://{name}:x@/{at['dbname']}?host={at['host']}&port={at['port']}"
    with psycopg.connect(pg_admin_dsn, autocommit=True) as admin:
        admin.execute(f"DROP OWNED BY {name}")
        admin.execute(f"DROP ROLE {name}")


async def test_a_role_that_may_end_no_backends_and_shows_no_activity(
    seconds, seed, quiet_dsn, pg_owner_dsn, pg_admin_dsn, recoveries
):
    async with walking(seed, pg_owner_dsn, [{"dsn": quiet_dsn}] * 2) as walk:
        await go(walk, recoveries, pg_admin_dsn)


# -- settings ---------------------------------------------------------------------------------------------------
SETTINGS = [
    {"search_path": "nowhere, pg_catalog"},
    {"statement_timeout": "300ms", "lock_timeout": "100ms"},
    {"idle_in_transaction_session_timeout": "100ms", "idle_session_timeout": "200ms"},
    {"bytea_output": "escape", "standard_conforming_strings": "off", "array_nulls": "off"},
    {"DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard", "TimeZone": "Pacific/Chatham"},
    {"client_min_messages": "debug5", "extra_float_digits": "-15"},
    {"transform_null_equals": "on", "quote_all_identifiers": "on", "xmloption": "document"},
    {"plan_cache_mode": "force_generic_plan", "enable_indexscan": "off", "enable_nestloop": "off", "jit": "on"},
    {"default_transaction_deferrable": "on", "synchronous_commit": "off", "row_security": "on", "work_mem": "64kB"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
async def test_settings_of_a_pool(seconds, seed, pg_dsn, pg_owner_dsn, pg_admin_dsn, settings, recoveries):
    """The pool serves one node whole, LISTEN included."""
    pooling = asyncpg.create_pool(pg_dsn, min_size=0, max_size=8, server_settings=settings)
    async with pooling as pool, walking(seed, pg_owner_dsn, [{"pool": pool}, {"dsn": pg_dsn}]) as walk:
        await go(walk, recoveries, pg_admin_dsn)


REMEMBERED = 20
"""How many events a node has in memory."""


async def read_pages(walk: Walk) -> None:
    """Let a client recover on the first node, after it has missed more than the node has in memory."""
    client, before = walk.clients[0], walk.clients[0].recoveries
    client.choose = lambda: walk.nodes[0]
    client.stay_away()
    for _ in range(REMEMBERED + 1):
        await walk.emit(walk.nodes[1])
    client.come_back()
    async with asyncio.timeout(HEAL_WAIT):
        while client.recoveries == before:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def ending_pool(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool whose end does not wait for ever for a connection that is not given back."""
    pool = await asyncpg.create_pool(dsn, min_size=0, max_size=8)
    try:
        yield pool
    finally:
        await asyncio.wait_for(pool.close(), HEAL_WAIT)


async def test_a_pool_whose_connections_are_all_in_use(seconds, seed, pg_dsn, pg_owner_dsn, recoveries, monkeypatch):
    """Handlers hold each connection that the node does not keep, and others wait for one. The node needs none.

    Not even for what a client missed that is not in memory any more.
    """
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", REMEMBERED)
    monkeypatch.setattr("sio_pg_adapter.store.sessions.CARRIED_EVENTS", 0)
    async with ending_pool(pg_dsn) as pool, walking(seed, pg_owner_dsn, [{"pool": pool}, {"dsn": pg_dsn}]) as walk:

        async def acquire() -> asyncpg.Connection:
            return await pool.acquire()

        handlers = [asyncio.create_task(acquire(), name=f"handler {i}") for i in range(8)]
        async with asyncio.timeout(HEAL_WAIT):
            while pool.get_idle_size() or pool.get_size() < pool.get_max_size():
                await asyncio.sleep(0.01)
        try:
            await recover(walk, recoveries)
            await read_pages(walk)
        finally:
            for handler in handlers:
                handler.cancel()
            for connection in await asyncio.gather(*handlers, return_exceptions=True):
                if not isinstance(connection, BaseException):
                    await pool.release(connection)


async def test_a_pool_that_only_reads_is_refused_by_name(pg_dsn):
    settings = {"default_transaction_read_only": "on"}
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=8, server_settings=settings) as pool:
        await refused("default_transaction_read_only", pool=pool)
