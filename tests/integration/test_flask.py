"""Flask: Flask-SocketIO's extension, its test client, transactions of Flask-SQLAlchemy, and Flask-Migrate."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import flask
import psycopg
import pytest
from sqlalchemy import make_url

from sio_pg_adapter import AsyncClient, ConfigurationError, PostgresManager
from sio_pg_adapter.flask import SocketIO
from support.apps import flask_app
from support.served_app import TESTS, Served, free_port

TIMEOUT = 20


@pytest.fixture
def app(pg_owner_dsn):
    made = flask_app.create_app(pg_owner_dsn)
    with made.app_context():
        flask_app.db.create_all()
    yield made
    flask_app.socketio.server.shutdown()
    with made.app_context():
        flask_app.db.engine.dispose()
    flask_app.socketio.server_options.pop("client_manager")


@pytest.fixture
def client(app):
    made = flask_app.socketio.test_client(app, auth={"user": "ada"})
    assert [event["name"] for event in made.get_received()] == ["hello"]
    return made


def orders(dsn):
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT count(*) FROM orders").fetchone()[0]


def names(client, namespace=None):
    return [event["name"] for event in client.get_received(namespace)]


# -- handlers -------------------------------------------------------------------------------------------------------
def test_an_emit_is_part_of_the_transaction_of_flask_sqlalchemy(app, client, pg_owner_dsn):
    client.emit("order", True)
    assert (names(client), orders(pg_owner_dsn)) == ([], 0)
    sid, namespace = client.emit("order", False, callback=True)
    assert client.get_received() == [{"name": "ordered", "args": [{"by": {"user": "ada"}}], "namespace": "/"}]
    assert (orders(pg_owner_dsn), namespace) == (1, "/")
    assert "customers" in flask_app.socketio.server.rooms(sid)


def test_an_emit_of_a_view_is_part_of_its_transaction(app, client, pg_owner_dsn):
    with app.test_client() as http:
        http.post("/order?fails=1")
        assert names(client) == []
        http.post("/order")
        assert names(client) == ["ordered"]
    assert orders(pg_owner_dsn) == 1


def test_send_volatile_and_keys(client):
    for _ in range(2):
        client.emit("say", "once")
    received = sorted(event["name"] for event in client.get_received())
    # a volatile event is dropped while others wait for the client
    assert [name for name in received if name != "typing"] == ["message", "message", "said"]


def test_error_handlers_and_class_based_namespaces(app, client):
    assert client.emit("fail", callback=True) == "of the application"
    chat = flask_app.socketio.test_client(app, namespace="/chat")
    assert chat.emit("say", "text", callback=True, namespace="/chat") == "text"
    assert names(chat, "/chat") == ["said"]
    chat.disconnect("/chat")
    assert not chat.is_connected("/chat")


def test_close_room(client):
    flask_app.socketio.close_room("all")
    flask_app.socketio.emit("lost", to="all")
    assert names(client) == []


# -- options --------------------------------------------------------------------------------------------------------
def refuses(match, config=None, **options):
    app = flask.Flask("refused")
    app.config.update(config or {})
    with pytest.raises(ConfigurationError, match=match):
        SocketIO(app, **options)


def test_options_that_are_refused():
    refuses("takes no message_queue=", message_queue="redis://")
    refuses("async_mode='eventlet' is not supported", async_mode="eventlet")
    refuses("begins with postgresql://", {"SQLALCHEMY_DATABASE_URI": "sqlite://"})
    refuses("no key 'max'", connection_state_recovery={"max": 1})
    refuses("takes PostgresManager", client_manager=object())
    with pytest.raises(ConfigurationError, match="takes a Flask application"):
        SocketIO().init_app(None)


def test_where_the_database_comes_from(pg_owner_dsn):
    url = make_url(pg_owner_dsn).set(drivername="postgresql+psycopg")
    for config, options in (
        ({"SQLALCHEMY_DATABASE_URI": url}, {}),
        ({"SQLALCHEMY_DATABASE_URI": "sqlite://"}, {"database": pg_owner_dsn}),
        ({"SQLALCHEMY_DATABASE_URI": "sqlite://"}, {"client_manager": PostgresManager(pg_owner_dsn)}),
    ):
        app = flask.Flask("database")
        app.config.update(config)
        socketio = SocketIO(app, **options)
        socketio.server.start()
        assert socketio.server.manager.health().ok
        socketio.server.shutdown()


# -- served ---------------------------------------------------------------------------------------------------------
async def test_a_client_recovers_under_werkzeug(pg_owner_dsn):
    with psycopg.connect(pg_owner_dsn) as connection:
        connection.execute("CREATE TABLE orders (id serial PRIMARY KEY)")
    port, events = free_port(), asyncio.Queue()
    async with Served(pg_owner_dsn, "support.apps.flask_app", str(port), port=port) as served:
        client = AsyncClient(reconnection_delay=0.05, randomization_factor=0)
        client.on("*", lambda *event: events.put_nowait(event))
        await client.connect(served.url, auth={"user": "ada"}, transports=["websocket"])
        first = {"recovered": False, "environ": False, "auth": {"user": "ada"}}
        assert await asyncio.wait_for(events.get(), TIMEOUT) == ("hello", first)
        sid, gate = client.get_sid(), asyncio.Event()
        url = client.connection_url

        async def when_open():
            await gate.wait()
            return url

        client.connection_url = when_open
        await client.eio.ws.close()
        await served.post("/order?fails=1")
        await served.post("/order")
        gate.set()
        received = [await asyncio.wait_for(events.get(), TIMEOUT) for _ in range(2)]
        again = {"recovered": True, "environ": True, "auth": {"user": "ada"}}
        assert received == [("ordered", {"by": "HTTP"}), ("hello", again)]
        assert client.get_sid() == sid and client.recovered()
        await client.disconnect()


# -- Flask-Migrate --------------------------------------------------------------------------------------------------
COMMANDS = """
import shlex, sys
from support.apps.flask_app import create_app
runner = create_app().test_cli_runner()
for command in sys.argv[1:]:
    result = runner.invoke(args=["db", *shlex.split(command)])
    assert result.exit_code == 0, (command, result.output, result.exception)
    print(result.output)
"""


def flask_db(dsn, directory, *commands):
    """Run `flask db COMMAND` for each command, in one process, and return what they print and log."""
    env = {**os.environ, "SIO_PG_DSN": dsn, "MIGRATIONS": str(directory), "NO_COLOR": "1"}
    words = [sys.executable, "-c", COMMANDS, *commands]
    done = subprocess.run(words, cwd=TESTS, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def works(dsn):
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT sio_emit('said')")
        return connection.execute("SELECT to_regclass('orders') IS NOT NULL").fetchone()[0]


def test_flask_migrate_with_the_tables_as_a_branch(pg_empty_dsn, tmp_path):
    directory = tmp_path / "migrations"
    # an application that has migrations already
    flask_db(pg_empty_dsn, directory, "init", "migrate -m orders --rev-id 0001", "upgrade")
    ini = directory / "alembic.ini"
    branch = "version_locations = %(here)s/versions sio_pg_adapter:migrations/versions"
    ini.write_text(ini.read_text().replace("[alembic]", f"[alembic]\npath_separator = space\n{branch}"))
    assert "No new upgrade operations detected" in flask_db(pg_empty_dsn, directory, "upgrade heads", "check")
    # in a process of its own, because Flask-Migrate keeps the configuration of the first command
    assert "No changes in schema detected" in flask_db(pg_empty_dsn, directory, "migrate --head 0001@head")
    assert works(pg_empty_dsn)


def test_flask_migrate_with_the_tables_in_a_revision(pg_empty_dsn, tmp_path):
    directory = tmp_path / "migrations"
    flask_db(pg_empty_dsn, directory, "init", "migrate -m orders --rev-id 0001", "revision -m socketio --rev-id 0002")
    revision = directory / "versions" / "0002_socketio.py"
    upgrade, downgrade = revision.read_text().split("def downgrade():")
    upgrade = upgrade.replace("pass", 'from sio_pg_adapter import schema\n    schema.upgrade(op, "sio0001")')
    downgrade = downgrade.replace("pass", "from sio_pg_adapter import schema\n    schema.downgrade(op)")
    revision.write_text(f"{upgrade}def downgrade():{downgrade}")
    logged = flask_db(pg_empty_dsn, directory, "upgrade", "check", "downgrade", "upgrade")
    assert "No new upgrade operations detected" in logged
    assert works(pg_empty_dsn)
