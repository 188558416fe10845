"""PgBouncer in each of its modes: it works, or it is refused at start by name. It is killed and restarted as well."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from psycopg.conninfo import conninfo_to_dict

from field.recoveries import go, refused, walking
from field.silence import Direction, Trap
from support.pgbouncer import pgbouncer

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own

STARTUP = "ignore_startup_parameters = extra_float_digits"


async def walk_through(
    mode: str, seed: int, pg_dsn: str, owner_dsn: str, admin_dsn: str, recoveries: int, *, listens: bool
) -> None:
    """Walk with two nodes behind it, restart it under load, and recover many times."""
    with contextlib.ExitStack() as first:
        dsn = first.enter_context(pgbouncer(pg_dsn, mode, STARTUP))
        options = {"dsn": dsn} if listens else {"dsn": dsn, "listen_dsn": pg_dsn}
        async with walking(seed, owner_dsn, [options] * 2) as walk:
            await go(walk, recoveries, admin_dsn)
            async with walk.load():
                first.close()
                await walk.broken()
                more = f"{STARTUP}\nlisten_port = {conninfo_to_dict(dsn)['port']}"
                first.enter_context(pgbouncer(pg_dsn, mode, more))
                await walk.healed()


async def test_session_mode(seconds, seed, pg_dsn, pg_owner_dsn, pg_admin_dsn, recoveries):
    await walk_through("session", seed, pg_dsn, pg_owner_dsn, pg_admin_dsn, recoveries, listens=True)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_modes_without_listen(seconds, seed, pg_dsn, pg_owner_dsn, pg_admin_dsn, recoveries, mode):
    await walk_through(mode, seed, pg_dsn, pg_owner_dsn, pg_admin_dsn, recoveries, listens=False)


async def test_an_append_whose_answer_is_lost_may_be_stored(seconds, seed, pg_dsn, pg_owner_dsn, monkeypatch):
    """Its backend cannot be named, so nobody can find out whether it is stored."""
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_INTERVAL", 3600)  # it would send statements, too
    with pgbouncer(pg_dsn, "transaction", STARTUP) as dsn:
        async with Trap(dsn).running() as trap:
            options = {"dsn": trap.dsn, "listen_dsn": pg_dsn}
            async with walking(seed, pg_owner_dsn, [options]) as walk:
                for at in itertools.count(1):
                    await walk.emit(walk.nodes[0])  # on a connection that is new, if one was lost
                    trap.arm(at, Direction.TO_CLIENT)
                    await walk.emit(walk.nodes[0])
                    if not trap.sprung.is_set():
                        break
                    trap.heal()
                trap.heal()
                assert at > 1
                walk.clients[0].drop()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_listen_in_a_mode_without_it_is_refused_by_name(pg_dsn, mode, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.store.pooler.LISTENS_WITHIN", 0.5)
    with pgbouncer(pg_dsn, mode) as dsn:
        await refused("listen_dsn=", dsn=dsn)
