"""Queries go through PgBouncer, and LISTEN does not. PgBouncer hands out its servers in turn, so nothing of a session
lasts from one transaction to the next, even if a test runs alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

from sio_pg_adapter import ConfigurationError, StoreUnavailable, cli, migrate
from support.pgbouncer import pgbouncer
from support.pruning import prune_once
from support.waiting import until_waiting

Bouncer = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def bouncer(pg_dsn: str) -> Bouncer:
    """A PgBouncer before the test's database, for the time of a `with`, which gives the DSN through it."""

    def start(mode: str = "transaction", dsn: str = pg_dsn, more: str = "") -> AbstractContextManager[str]:
        return pgbouncer(dsn, mode, more)

    return start


async def test_case_90_queries_through_it_and_listen_beside_it(start_node, bouncer, pg_dsn):
    with bouncer() as dsn:
        options = {"dsn": dsn, "manager": {"listen_dsn": pg_dsn}}
        a, b = await start_node(**options), await start_node(**options)
        assert a.manager.database.pooled

        async with a.client() as wire, b.client() as other:
            await b.sio.enter_room(wire.sid, "r")
            await b.sio.save_session(wire.sid, {"user": 7})
            await asyncio.gather(*(node.sio.emit("e", i, room="r") for i in range(50) for node in (a, b)))
            await b.sio.emit("large", "x" * 100_000, room="r")
            await b.sio.emit("end", room="r")
            got = await wire.events_until("end")
            assert sorted(args for name, args in got if name == "e") == sorted([*range(50), *range(50)])
            assert got[-1] == ["large", "x" * 100_000]

            await b.sio.emit("now", volatile=True, room="r")
            assert await wire.recv() == '2["now",null]'
            asked = asyncio.create_task(b.sio.call("q", 1, to=wire.sid, timeout=10))
            question = await wire.recv()
            number = question[1 : question.index("[")]
            wire.send(f"3{number}[42]")
            assert await asked == 42

            await wire.drop()
            await asyncio.gather(*(b.sio.emit("missed", i, room="r") for i in range(30)))
            async with b.client(pid=wire.pid, offset=wire.offset) as again:
                assert again.sid == wire.sid
                assert [await again.event() for _ in range(30)] == [["missed", i] for i in range(30)]
                assert await b.sio.get_session(again.sid) == {"user": 7}
                await a.sio.disconnect(again.sid)
                assert await again.recv() == "1"
            assert other.waiting() == []


async def test_case_90_all_nodes_are_asked_and_rooms_moved_through_it(start_node, bouncer, pg_dsn):
    with bouncer() as dsn:
        options = {"dsn": dsn, "manager": {"listen_dsn": pg_dsn}}
        a, b = await start_node(**options), await start_node(**options)
        b.sio.on_server_event("size", len)
        async with a.client() as here, b.client() as there:
            assert await a.sio.server_count() == 2
            assert await a.sio.server_side_call("size", "x" * 20_000) == {b.manager.node.id: 20_000}
            await asyncio.gather(*(b.sio.sockets_join(None, f"r{i}") for i in range(10)))
            await asyncio.gather(*(a.sio.emit("e", i, room=f"r{i}") for i in range(10)))
            await a.sio.emit("end")
            for wire in (here, there):
                assert sorted(args for _, args in await wire.events_until("end")) == list(range(10))
            assert {s.sid for s in await a.sio.fetch_sockets("r9")} == {here.sid, there.sid}
            await a.sio.disconnect_sockets("r9")
            assert await here.recv() == await there.recv() == "1"


async def test_case_90_listen_through_it_is_refused_at_the_start(start_node, bouncer, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.store.pooler.LISTENS_WITHIN", 0.5)
    with bouncer() as dsn:
        for options in ({"dsn": dsn}, {"manager": {"listen_dsn": dsn}}):
            with pytest.raises(ConfigurationError, match="listen_dsn="):
                await start_node(**options)
        async with asyncpg.create_pool(dsn, min_size=0, statement_cache_size=0) as pool:
            with pytest.raises(ConfigurationError, match="listen_dsn="):
                await start_node(dsn=None, manager={"pool": pool})


async def test_a_stricter_isolation_level_is_refused_by_name_through_it(start_node, bouncer, pg_dsn, db):
    """Nothing that is set on a connection lasts there."""
    name = await db.fetchval("SELECT current_database()")
    await db.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    with bouncer() as dsn, pytest.raises(ConfigurationError, match="default_transaction_isolation"):
        await start_node(dsn=dsn, manager={"listen_dsn": pg_dsn})


async def test_case_90_a_pool_of_the_applications_through_it(start_node, bouncer, pg_dsn):
    with bouncer() as dsn:
        async with asyncpg.create_pool(dsn, min_size=0, statement_cache_size=0) as pool:
            a = await start_node(dsn=None, manager={"pool": pool, "listen_dsn": pg_dsn})
            b = await start_node()
            assert a.manager.database.pooled and not b.manager.database.pooled
            async with a.client() as one, b.client() as two:
                for i in range(20):
                    await (a, b)[i % 2].sio.emit("e", i)
                for wire in (one, two):
                    assert [await wire.event() for _ in range(20)] == [["e", i] for i in range(20)]
            await a.sio.shutdown()


async def test_listen_through_session_mode_works(start_node, bouncer):
    with bouncer("session", more="ignore_startup_parameters = extra_float_digits") as dsn:
        a, b = await start_node(dsn=dsn), await start_node(dsn=dsn)
        async with b.client() as wire:
            await a.sio.emit("e", 1)
            assert await wire.event() == ["e", 1]


async def test_a_commit_lost_behind_it_may_be_stored_and_is_not_repeated(start_node, bouncer, pg_dsn, db, superuser):
    """Its backend cannot be named, so it cannot be ended: it might still commit after anything that is tried."""
    with bouncer() as dsn:
        node = await start_node(dsn=dsn, manager={"listen_dsn": pg_dsn})
        async with node.client() as wire:
            async with db.transaction():
                await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
                emit = asyncio.create_task(node.sio.emit("lost"))
                await superuser.execute("SELECT pg_terminate_backend($1)", await until_waiting(db))
                with pytest.raises(StoreUnavailable) as error:
                    await emit
                assert error.value.may_be_stored
            await node.sio.emit("next")
            assert await wire.event() == ["next"]
        bodies = [json.loads(row["body"]) for row in await db.fetch("SELECT body FROM sio_packets WHERE kind = 0")]
        assert bodies == [["next"]]


async def test_the_node_goes_on_when_the_pooler_was_restarted(start_node, bouncer, pg_dsn):
    with contextlib.ExitStack() as first:
        dsn = first.enter_context(bouncer())
        port = conninfo_to_dict(dsn)["port"]
        node = await start_node(dsn=dsn, manager={"listen_dsn": pg_dsn})
        async with node.client() as wire:
            await node.sio.emit("e", 1)
            first.close()
            with bouncer(more=f"listen_port = {port}"):
                for i in range(2, 4):
                    with contextlib.suppress(StoreUnavailable):
                        await node.sio.emit("e", i)
                await node.sio.emit("end")
                assert (await wire.events_until("end"))[0] == ["e", 1]
                await node.sio.shutdown()


async def test_migrate_and_prune_through_it(bouncer, pg_empty_dsn):
    with bouncer(dsn=pg_empty_dsn, more="min_pool_size = 0\ndefault_pool_size = 2") as dsn:
        command = [sys.executable, "-m", "sio_pg_adapter", "migrate", "--dsn", dsn, "--schema"]
        for schema in ("a", "b", "c"):  # a process each, as after a deployment: its statement names start over
            await asyncio.to_thread(subprocess.run, [*command, schema], check=True, capture_output=True)
            assert (await prune_once(dsn, schema=schema)).records == 0
        await asyncio.to_thread(migrate.downgrade, dsn, schema="a")


async def test_the_command_line_through_it_needs_a_direct_connection_to_listen(start_node, bouncer, pg_dsn, capsys):
    node = await start_node()
    with bouncer() as through:

        async def run(*argv: str) -> tuple[int, str, str]:
            code = await asyncio.to_thread(cli.main, [argv[0], "--dsn", through, *argv[1:]])
            said = capsys.readouterr()
            return code, said.out, said.err

        code, out, _ = await run("status", "--json")
        (one,) = json.loads(out)["nodes"]
        assert (code, one["state"], one["cursor"]) == (0, "live", None) and "--listen-dsn" in json.loads(out)["note"]
        code, out, _ = await run("status", "--json", "--listen-dsn", pg_dsn)
        (one,) = json.loads(out)["nodes"]
        assert (code, one["cursor"]) == (0, node.manager.node.cursor.offset) and json.loads(out)["note"] is None
        code, out, err = await run("tail")
        assert (code, out, err.count("\n")) == (1, "", 1) and "--listen-dsn" in err
        code, out, _ = await run("emit", "e", "1")
        assert code == 0 and out.startswith("stored at offset ")
