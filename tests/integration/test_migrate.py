"""Migrations: up, down, many at once, and in schemas with names that mean harm."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from sio_pg_adapter import cli, migrate
from sio_pg_adapter.errors import ConfigurationError, SchemaMismatch, StoreUnavailable

HOSTILE = [
    'we"ird; drop',
    '"; CREATE TABLE x(); --',
    "it's :a 100% sio.sio_log $$ $sio0$ \\",
    "Ünï; SELECT pg_sleep(9)",
    "x" * 63,
]

# All that a migration may make, by name and without oids, of one schema.
INTROSPECTION = """
WITH mine AS (SELECT oid, nspname FROM pg_namespace WHERE nspname = %s)
SELECT 'relation', c.oid::regclass::text, c.relkind::text || c.relpersistence::text || ' '
       || coalesce(c.reloptions::text, '') || coalesce(obj_description(c.oid, 'pg_class'), '')
       || coalesce(c.relacl::text, '')
  FROM pg_class c JOIN mine ON c.relnamespace = mine.oid
UNION ALL
SELECT 'column', c.oid::regclass || '.' || a.attname, a.attnum || ' ' || format_type(a.atttypid, a.atttypmod)
       || ' ' || a.attnotnull || coalesce(' ' || pg_get_expr(d.adbin, d.adrelid), '')
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN mine ON c.relnamespace = mine.oid
       LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind <> 'i'
UNION ALL
SELECT 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN mine ON c.relnamespace = mine.oid
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(p.oid)
  FROM pg_constraint p JOIN mine ON p.connamespace = mine.oid
UNION ALL
SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(t.oid) || ' ' || tgenabled::text
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN mine ON c.relnamespace = mine.oid
 WHERE NOT tgisinternal
UNION ALL
SELECT 'rule', ev_class::regclass || '.' || rulename, pg_get_ruledef(r.oid) || ' ' || ev_enabled::text
  FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN mine ON c.relnamespace = mine.oid
UNION ALL
SELECT 'inherits', inhrelid::regclass::text, inhparent::regclass::text
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN mine ON c.relnamespace = mine.oid
 WHERE c.relkind = 'r'
UNION ALL
SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '')
  FROM pg_proc p JOIN mine ON p.pronamespace = mine.oid
UNION ALL
SELECT 'type', t.oid::regtype::text, t.typtype::text
  FROM pg_type t JOIN mine ON t.typnamespace = mine.oid
 ORDER BY 1, 2, 3
"""


def introspect(dsn: str, schema: str = "public") -> list[tuple[str, str, str]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(INTROSPECTION, [schema]).fetchall()


def schemas(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {name for (name,) in connection.execute("SELECT nspname FROM pg_namespace")}


def test_upgrade_downgrade_upgrade_ends_in_one_schema_and_leaves_nothing_between(pg_empty_dsn):
    before = introspect(pg_empty_dsn)
    migrate.upgrade(pg_empty_dsn)
    once = introspect(pg_empty_dsn)
    assert ("relation", "sio_packets") in {(kind, name) for kind, name, _ in once}

    migrate.upgrade(pg_empty_dsn)  # at head: changes nothing
    assert introspect(pg_empty_dsn) == once

    migrate.downgrade(pg_empty_dsn)
    assert introspect(pg_empty_dsn) == before
    migrate.downgrade(pg_empty_dsn)  # at base: leaves no version table behind either
    assert introspect(pg_empty_dsn) == before

    migrate.upgrade(pg_empty_dsn)
    assert introspect(pg_empty_dsn) == once


def test_case_91_eight_processes_at_once_make_the_tables_once(pg_empty_dsn, pg_migrated_dsn):
    command = [sys.executable, "-m", "sio_pg_adapter", "migrate", "--dsn", pg_empty_dsn]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * 8, said
    assert introspect(pg_empty_dsn) == introspect(pg_migrated_dsn)
    with psycopg.connect(pg_empty_dsn) as connection:
        assert len(connection.execute("SELECT * FROM sio_alembic_version").fetchall()) == 1


@pytest.mark.parametrize("schema", HOSTILE)
def test_case_98_a_hostile_schema_name_is_only_a_name(pg_empty_dsn, schema):
    others = schemas(pg_empty_dsn)
    public = introspect(pg_empty_dsn)
    migrate.upgrade(pg_empty_dsn, schema=schema)
    assert schemas(pg_empty_dsn) == others | {schema}
    assert introspect(pg_empty_dsn) == public
    made = introspect(pg_empty_dsn, schema)

    migrate.upgrade(pg_empty_dsn)  # a second log in the same database
    assert introspect(pg_empty_dsn, schema) == made

    migrate.downgrade(pg_empty_dsn, schema=schema)
    assert introspect(pg_empty_dsn, schema) == []
    migrate.upgrade(pg_empty_dsn, schema=schema)
    assert introspect(pg_empty_dsn, schema) == made


@pytest.mark.parametrize("schema", ["", "a\0b", "x" * 64, "ü" * 32, "pg_x", "\ud800", None])
def test_case_98_what_is_no_name_is_refused_before_connecting(schema):
    for work in (migrate.upgrade, migrate.downgrade):
        with pytest.raises(ConfigurationError, match="63 bytes"):
            work("postgresql://nobody@127.0.0.1:1/nowhere", schema=schema)
    with pytest.raises(ConfigurationError, match="63 bytes"):
        migrate.sql(schema)


@pytest.mark.parametrize("schema", ["public", *HOSTILE])
def test_the_sql_makes_what_upgrade_makes(pg_empty_dsn, pg_create, schema):
    migrate.upgrade(pg_empty_dsn, schema=schema)
    with pg_create("template0") as other:
        with psycopg.connect(other, autocommit=True) as connection:
            connection.execute(migrate.sql(schema))
        assert introspect(other, schema) == introspect(pg_empty_dsn, schema)
        migrate.upgrade(other, schema=schema)  # finds the version that the script left


def test_downgrade_of_a_missing_schema_makes_none(pg_empty_dsn):
    migrate.downgrade(pg_empty_dsn, schema="elsewhere")
    assert "elsewhere" not in schemas(pg_empty_dsn)


async def test_upgrade_under_a_running_loop(pg_empty_dsn, pg_migrated_dsn):
    migrate.upgrade(pg_empty_dsn)
    await asyncio.to_thread(migrate.downgrade, pg_empty_dsn)
    await asyncio.gather(*(asyncio.to_thread(migrate.upgrade, pg_empty_dsn) for _ in range(4)))
    assert introspect(pg_empty_dsn) == introspect(pg_migrated_dsn)


def test_without_a_dsn_the_pg_variables_count(pg_empty_dsn, pg_migrated_dsn, monkeypatch):
    at = psycopg.conninfo.conninfo_to_dict(pg_empty_dsn)
    for name, key in {"HOST": "host", "PORT": "port", "USER": "user", "DATABASE": "dbname"}.items():
        monkeypatch.setenv(f"PG{name}", str(at[key]))
    if "password" in at:
        monkeypatch.setenv("PGPASSWORD", at["password"])
    migrate.upgrade(None)
    assert introspect(pg_empty_dsn) == introspect(pg_migrated_dsn)


def test_a_dsn_of_sqlalchemy_serves_too(pg_empty_dsn, pg_migrated_dsn):
    migrate.upgrade(pg_empty_dsn.replace("postgresql://", "postgresql+asyncpg://"))
    assert introspect(pg_empty_dsn) == introspect(pg_migrated_dsn)


def test_an_unreachable_server_is_store_unavailable(pg_migrated_dsn):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        dsn = f"postgresql://app@127.0.0.1:{taken.getsockname()[1]}/app"
        with pytest.raises(StoreUnavailable, match="cannot connect") as error:
            migrate.upgrade(dsn)
        assert not error.value.may_be_stored
        assert cli.main(["migrate", "--dsn", dsn]) == 1
    database = psycopg.conninfo.conninfo_to_dict(pg_migrated_dsn)["dbname"]
    with pytest.raises(StoreUnavailable, match="does not exist"):
        migrate.upgrade(pg_migrated_dsn.replace(database, "no_such_database"))


@pytest.mark.parametrize("dsn", ["http://localhost/app", "postgresql://app@localhost:port/app"])
def test_a_wrong_dsn_is_a_configuration_error(dsn):
    with pytest.raises(ConfigurationError, match="DSN"):
        migrate.upgrade(dsn)


def test_a_connection_lost_on_the_way_is_store_unavailable(pg_empty_dsn, pg_admin):
    """Terminated while it waits for the lock that another migration holds."""
    with psycopg.connect(pg_empty_dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [migrate.lock_key("public")])

        async def upgrade_and_cut():
            upgrading = asyncio.create_task(asyncio.to_thread(migrate.upgrade, pg_empty_dsn))
            while not pg_admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND wait_event = 'advisory'",
                [other.info.dbname],
            ).fetchall():
                await asyncio.sleep(0.01)
            await upgrading

        with pytest.raises(StoreUnavailable, match="lost during the migration"):
            asyncio.run(upgrade_and_cut())


def test_tables_of_a_later_version_are_a_schema_mismatch(pg_migrated_dsn):
    with psycopg.connect(pg_migrated_dsn) as connection:
        connection.execute("UPDATE sio_alembic_version SET version_num = 'sio9999'")
    with pytest.raises(SchemaMismatch, match="sio9999"):
        migrate.upgrade(pg_migrated_dsn)


def test_a_role_that_may_not_create_is_told_so(pg_empty_dsn, pg_admin):
    role = "siopg_may_not"
    pg_admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        dsn = make_url(pg_empty_dsn).set(username=role)
        with pytest.raises(ConfigurationError, match="permission denied"):
            migrate.upgrade(dsn, schema="elsewhere")
    finally:
        pg_admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_the_command_line(pg_empty_dsn, pg_migrated_dsn, monkeypatch, capsys):
    monkeypatch.setenv("SIO_PG_DSN", pg_empty_dsn)
    assert cli.main(["migrate"]) == 0
    assert introspect(pg_empty_dsn) == introspect(pg_migrated_dsn)
    assert cli.main(["migrate", "--schema", ""]) == 1
    assert capsys.readouterr().err.startswith("sio-pg: schema takes a name")
    assert cli.main(["migrate", "--sql", "--schema", "chat"]) == 0
    assert "CREATE SCHEMA IF NOT EXISTS chat;" in capsys.readouterr().out


@pytest.mark.parametrize("schema", ["public", HOSTILE[0]])
def test_a_migration_switches_the_relay_or_leaves_it(pg_empty_dsn, schema):
    with psycopg.connect(pg_empty_dsn, autocommit=True) as connection:
        for relay, state in ((None, 0), (False, 0), (True, 1), (None, 1), (False, 2), (True, 1)):
            migrate.upgrade(pg_empty_dsn, schema=schema, relay=relay)
            query = sql.SQL("SELECT last_value FROM {}").format(sql.Identifier(schema, "sio_relay_state"))
            assert connection.execute(query).fetchone() == (state,)
    with pytest.raises(ConfigurationError, match="relay"):
        migrate.upgrade(pg_empty_dsn, schema=schema, relay="on")


def test_the_command_line_switches_the_relay(pg_empty_dsn, capsys):
    with psycopg.connect(pg_empty_dsn, autocommit=True) as connection:
        connection.execute(migrate.sql(relay=True))
        assert connection.execute("SELECT last_value FROM sio_relay_state").fetchone() == (1,)
        for option, state, words in (("--no-relay", 2, "the relay is off"), ("--relay", 1, "the relay is on")):
            assert cli.main(["migrate", "--dsn", pg_empty_dsn, option]) == 0
            assert words in capsys.readouterr().out
            assert connection.execute("SELECT last_value FROM sio_relay_state").fetchone() == (state,)
