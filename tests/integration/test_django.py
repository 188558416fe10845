"""The Django application: its migration, settings, checks, management command and server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import psycopg
import pytest

from sio_pg_adapter import AsyncClient, migrate
from support.served_app import TESTS, Served, free_port

TIMEOUT = 20


def manage(dsn, *arguments, **settings):
    """Run manage.py, and return its output and its exit code."""
    env = {**os.environ, "DJANGO_DSN": dsn, "DJANGO_SETTINGS": json.dumps(settings), "NO_COLOR": "1"}
    env.pop("SIO_PG_DSN", None)
    command = [sys.executable, "-W", "error", "-m", "support.django_project", *arguments]
    done = subprocess.run(command, cwd=TESTS, env=env, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr, done.returncode


def tables(dsn, schema="public"):
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s) UNION ALL "
            "SELECT relname, relkind::text FROM pg_class WHERE relnamespace = to_regnamespace(%(schema)s) "
            "AND relname NOT LIKE 'django_%%' AND relname NOT LIKE 'sio_alembic_version%%' ORDER BY 1, 2",
            {"schema": f'"{schema}"'},
        )
        return rows.fetchall()


# -- the migration -------------------------------------------------------------------------------------------------
def test_migrate_makes_the_tables_of_sio_pg_migrate_and_takes_them_back(pg_empty_dsn, pg_migrated_dsn):
    output, code = manage(pg_empty_dsn, "migrate")
    assert code == 0 and "Applying sio_pg.0001_initial... OK" in output, output
    assert tables(pg_empty_dsn) == tables(pg_migrated_dsn) != []
    for check in (("makemigrations", "--check"), ("migrate", "--check")):
        output, code = manage(pg_empty_dsn, *check)
        assert code == 0, output
    output, code = manage(pg_empty_dsn, "sio_pg", "emit", "said", '"100%"', "--json")
    assert (json.loads(output).keys(), code) == ({"offset"}, 0)
    output, code = manage(pg_empty_dsn, "migrate", "sio_pg", "zero")
    assert code == 0, output
    assert tables(pg_empty_dsn) == []
    assert manage(pg_empty_dsn, "migrate", "sio_pg")[1] == 0


def test_tables_that_sio_pg_migrate_has_made_are_left_as_they_are(pg_migrated_dsn):
    before = tables(pg_migrated_dsn)
    output, code = manage(pg_migrated_dsn, "migrate", "sio_pg")
    assert (code, tables(pg_migrated_dsn)) == (0, before), output
    migrate.upgrade(pg_migrated_dsn)  # and the other way round


def test_another_schema(pg_empty_dsn):
    schema = 'chat "1" 100%'
    output, code = manage(pg_empty_dsn, "migrate", "sio_pg", SIO_PG={"SCHEMA": schema})
    assert code == 0, output
    with psycopg.connect(pg_empty_dsn) as connection:
        at = psycopg.sql.Identifier(schema)
        assert connection.execute(psycopg.sql.SQL("SELECT version FROM {}.sio_log").format(at)).fetchone()[0] >= 1
    assert "stored at offset" in manage(pg_empty_dsn, "sio_pg", "emit", "said", SIO_PG={"SCHEMA": schema})[0]
    assert manage(pg_empty_dsn, "migrate", "sio_pg", "zero", SIO_PG={"SCHEMA": schema})[1] == 0


def test_sqlmigrate_prints_the_sql_without_a_look_at_the_tables(pg_empty_dsn):
    forward, code = manage(pg_empty_dsn, "sqlmigrate", "sio_pg", "0001")
    assert code == 0, forward
    backward, code = manage(pg_empty_dsn, "sqlmigrate", "sio_pg", "0001", "--backwards")
    assert code == 0, backward
    with psycopg.connect(pg_empty_dsn, autocommit=True) as connection:
        connection.execute(forward)
        assert connection.execute("SELECT sio_emit('said')").rowcount == 1
        connection.execute(backward)
    assert tables(pg_empty_dsn) == []


def test_only_the_database_that_is_named_gets_the_tables(pg_empty_dsn):
    named = {"swapped": True, "SIO_PG": {"DATABASE": "events"}}
    assert manage(pg_empty_dsn, "migrate", **named)[1] == 0  # SQLite, which gets nothing
    assert tables(pg_empty_dsn) == []
    output, code = manage(pg_empty_dsn, "migrate", "--database", "events", **named)
    assert code == 0, output
    assert tables(pg_empty_dsn) != []
    assert "stored at offset" in manage(pg_empty_dsn, "sio_pg", "emit", "said", **named)[0]


# -- settings -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SIO_PG": {"SHEMA": "chat"}}, "(sio_pg.E001) SIO_PG has no key 'SHEMA'. It takes DATABASE, SCHEMA"),
        ({"SIO_PG": "chat"}, "(sio_pg.E001) SIO_PG takes a dict, not 'chat'"),
        ({"SIO_PG": {"SCHEMA": "pg_chat"}}, "(sio_pg.E001) schema takes a name"),
        ({"SIO_PG": {"DATABASE": "events"}}, "(sio_pg.E001) SIO_PG names the database 'events', which is not in"),
        (
            {"SIO_PG": {"DATABASE": "other"}},
            "(sio_pg.E002) sio_pg_adapter needs PostgreSQL, and the database",
        ),
        ({"swapped": True}, "(sio_pg.E002) sio_pg_adapter needs PostgreSQL, and the database 'default' is SQLite"),
    ],
)
def test_checks(settings, message):
    output, code = manage("dbname=x host=/nowhere port=1 user=x", "check", **settings)
    assert message in output and code == 1


def test_checks_pass_without_the_setting_and_without_a_database():
    output, code = manage("dbname=x host=/nowhere port=1 user=x", "check")
    assert ("no issues" in output, code) == (True, 0)


def test_a_migration_of_another_kind_of_database_is_refused_by_name(pg_empty_dsn):
    output, code = manage(pg_empty_dsn, "migrate", "--skip-checks", swapped=True)
    assert "ConfigurationError" in output and "the database 'default' is SQLite" in output and code == 1


URLS = """
import sys, json
from django.conf import settings
databases = json.loads(sys.argv[1])
settings.configure(DATABASES={"default": databases})
import django; django.setup()
from sio_pg_adapter.django import database_url
print(database_url())
"""


@pytest.mark.parametrize(
    ("database", "url"),
    [
        ({"NAME": "app"}, "postgresql:///app"),
        ({"NAME": "a/b", "USER": "u@", "PASSWORD": "p:/"}, "postgresql://u%40:p%3A%2F@/a%2Fb"),
        ({"NAME": "app", "HOST": "db", "PORT": 5433, "USER": "u"}, "postgresql://u@db:5433/app"),
        ({"NAME": "app", "HOST": "/run/pg", "PORT": "5433"}, "postgresql:///app?host=%2Frun%2Fpg&port=5433"),
        (
            {"NAME": "app", "HOST": "db", "OPTIONS": {"sslmode": "verify-full", "pool": True, "isolation_level": 2}},
            "postgresql://db/app?sslmode=verify-full",
        ),
    ],
)
def test_the_url_of_a_database(database, url):
    given = json.dumps({"ENGINE": "django.db.backends.postgresql", **database})
    done = subprocess.run([sys.executable, "-c", URLS, given], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == url, done.stderr


# -- the management command -----------------------------------------------------------------------------------------
def test_the_management_command(pg_migrated_dsn):
    output, code = manage(pg_migrated_dsn, "sio_pg", "status", "--json", "--timeout", "0.1")
    assert (json.loads(output)["nodes"], code) == ([], 0)
    output, code = manage(pg_migrated_dsn, "sio_pg", "prune")
    assert (output.strip(), code) == ("deleted 0 sessions and 0 records", 0)
    output, code = manage(pg_migrated_dsn, "sio_pg", "emit", "said", "not JSON")
    assert ("is not JSON" in output, code) == (True, 2)
    output, code = manage(pg_migrated_dsn, "sio_pg", "--database", "other", "status")
    assert ("needs PostgreSQL" in output, code) == (True, 1)
    output, code = manage(pg_migrated_dsn, "sio_pg", "migrate")
    assert ("invalid choice: 'migrate'" in output, code) == (True, 2)


# -- the server -----------------------------------------------------------------------------------------------------
async def test_handlers_of_the_asgi_server(pg_migrated_dsn):
    with psycopg.connect(pg_migrated_dsn) as connection:
        connection.execute("CREATE TABLE orders (id int)")
    port, events = free_port(), asyncio.Queue()
    command = ("uvicorn", "support.apps.django_orm_app:app", "--port", str(port), "--timeout-graceful-shutdown", "1")
    async with Served("postgresql://unused", *command, port=port, DJANGO_DSN=pg_migrated_dsn) as served:
        client = AsyncClient()
        client.on("*", lambda *event: events.put_nowait(event))
        await client.connect(served.url, namespaces=["/", "/chat"], transports=["websocket"])

        # a transaction of a handler, with its event, in a thread
        await client.emit("pay", True)
        assert await client.call("pay", False, timeout=TIMEOUT) is False
        assert await asyncio.wait_for(events.get(), TIMEOUT) == ("paid", {"failed": False})
        with psycopg.connect(pg_migrated_dsn) as connection:
            assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)

        # and of a view
        assert await served.get("/order") is None
        assert await asyncio.wait_for(events.get(), TIMEOUT) == ("ordered", {"id": 7})

        # one connection for one call of a handler, which is closed after it
        first, second = await client.call("ask_twice", timeout=TIMEOUT)
        assert first == second
        assert await client.call("others", timeout=TIMEOUT) == []
        assert await client.call("others", namespace="/chat", timeout=TIMEOUT) == []
        threads = await client.call("threads", timeout=TIMEOUT)
        for _ in range(20):
            await client.call("ask_twice", timeout=TIMEOUT)
        assert await client.call("threads", timeout=TIMEOUT) < threads + 10  # the last ones may still be ending
        await client.disconnect()
        await served.stop()
        assert "Application shutdown complete" in served.output()
        assert "RuntimeError: after the emit" in served.output()


async def test_handlers_of_the_wsgi_server(pg_migrated_dsn):
    with psycopg.connect(pg_migrated_dsn) as connection:
        connection.execute("CREATE TABLE orders (id int)")
    port, events = free_port(), asyncio.Queue()
    command = ("gunicorn", "-k", "gthread", "--threads", "8", "-b", f"127.0.0.1:{port}")
    app = "support.apps.django_wsgi_app:app"
    async with Served("postgresql://unused", *command, app, port=port, DJANGO_DSN=pg_migrated_dsn) as served:
        client = AsyncClient()
        client.on("*", lambda *event: events.put_nowait(event))
        await client.connect(served.url, transports=["websocket"])
        await client.emit("pay", True)
        assert await client.call("pay", False, timeout=TIMEOUT) is False
        assert await asyncio.wait_for(events.get(), TIMEOUT) == ("paid", {"failed": False})
        with psycopg.connect(pg_migrated_dsn) as connection:
            assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)
        assert await served.get("/order") is None
        assert await asyncio.wait_for(events.get(), TIMEOUT) == ("ordered", {"id": 7})
        # two threads with a connection each, which is closed after the call
        assert await asyncio.gather(*(client.call("meet", timeout=TIMEOUT) for _ in range(2))) == [True, True]
        assert await client.call("others", timeout=TIMEOUT) == []
        await client.disconnect()
        assert await served.stop() == 0
        assert "RuntimeError: after the emit" in served.output()
