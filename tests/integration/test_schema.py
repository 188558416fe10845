"""The schema in an application's own alembic: three ways in and out, and autogenerate leaves it alone."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import create_engine, inspect, text

from integration.test_migrate import HOSTILE, introspect
from sio_pg_adapter import AsyncPostgresManager, ConfigurationError, migrate, schema
from sio_pg_adapter.schema import revisions
from support.later import REVISIONS, has_a_later_revision
from support.schema_sql import FILE, SCHEMA, schema_sql

SILENT = "No new upgrade operations detected"


@pytest.fixture
def later(monkeypatch):
    """A package that has the revision sio0002, too."""
    has_a_later_revision(monkeypatch)


@pytest.fixture
def connect(pg_empty_dsn):
    """Open an SQLAlchemy connection to the test's empty database."""
    engine = create_engine(pg_empty_dsn.replace("postgresql://", "postgresql+psycopg://"))
    yield engine.connect
    engine.dispose()


# -- metadata ---------------------------------------------------------------------------------------------
def test_the_metadata_is_what_the_migrations_make(pg_empty_dsn, pg_migrated_dsn, connect):
    """Both ways, and in full: names, order, types, defaults, identities, keys, checks, indexes with their WHERE."""
    with connect() as connection:
        schema.metadata.create_all(connection)
        connection.commit()
    made, declared = (
        {row for row in map(comparable, introspect(dsn)) if row} for dsn in (pg_migrated_dsn, pg_empty_dsn)
    )
    assert declared == made


def comparable(row: tuple[str, str, str]) -> tuple[str, ...] | None:
    """What a MetaData can say of it."""
    kind, name, what = row
    if kind in ("function", "trigger", "rule", "inherits") or "alembic" in name:
        return None
    if what.startswith(
        ("TRIGGER", "NOT NULL")
    ):  # a constraint trigger; and on PostgreSQL 18 a name that is inherited
        return None
    return (kind, name, what[:2]) if kind == "relation" else row  # of a relation: table or index, logged or not


@pytest.mark.parametrize("where", ["public", "chat"])
def test_alembic_check_on_our_own_history_finds_nothing(pg_empty_dsn, connect, where):
    migrate.upgrade(pg_empty_dsn, schema=where)
    config = migrate.config_for(where)
    with connect() as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_alembic_check_on_our_own_history_finds_a_table_that_is_not_declared(pg_empty_dsn, connect):
    migrate.upgrade(pg_empty_dsn)
    config = migrate.config_for("public")
    with connect() as connection:
        connection.exec_driver_sql("CREATE TABLE sio_forgotten ()")
        config.attributes["connection"] = connection
        with pytest.raises(CommandError, match="sio_forgotten"):
            command.check(config)


# -- the schema in one file -------------------------------------------------------------------------------
def test_the_schema_in_one_file_is_what_the_migrations_make(pg_empty_dsn, pg_create):
    migrate.upgrade(pg_empty_dsn, schema=SCHEMA)
    text = FILE.read_text(encoding="utf-8")
    assert text == schema_sql(pg_empty_dsn), "run: uv run python tests/support/schema_sql.py"
    with pg_create("template0") as other:
        with psycopg.connect(other, autocommit=True) as connection:
            connection.execute(text.encode())
        made, read = (
            [(kind, name, what.replace(f'"{SCHEMA}".', f"{SCHEMA}.")) for kind, name, what in found]
            for found in (introspect(pg_empty_dsn, SCHEMA), introspect(other, SCHEMA))
        )
        assert read == [row for row in made if "alembic" not in row[1]]


# -- the second way: a branch of the application's history ----------------------------------------------------
INI = """
[alembic]
script_location = %(here)s/migrations
path_separator = space
version_locations = %(here)s/migrations/versions sio_pg_adapter:migrations/versions
"""
ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, NullPool, Table, create_engine
from sio_pg_adapter import schema
own = MetaData()
Table("orders", own, Column("id", Integer, primary_key=True))
if "sio_schema" in context.get_x_argument(as_dictionary=True):
    context.config.attributes["sio_pg_schema"] = context.get_x_argument(as_dictionary=True)["sio_schema"]
options = {
    "filter": {"target_metadata": own, "include_object": schema.include_object},
    "metadata": {"target_metadata": [own, schema.metadata]},
    "neither": {"target_metadata": own},
}[context.config.attributes["left_alone_by"]]
if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(context.config.attributes["dsn"], poolclass=NullPool).connect() as connection:
        context.configure(connection=connection, compare_server_default=True, **options)
        with context.begin_transaction():
            context.run_migrations()
"""
MAKO = Path(migrate.__file__).with_name("migrations") / "script.py.mako"
FIRST = """
from alembic import op
import sqlalchemy as sa
revision, down_revision, branch_labels, depends_on = "own1", None, ("orders",), None
def upgrade(): op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))
def downgrade(): op.drop_table("orders")
"""
CALLING = """
from alembic import op
from sio_pg_adapter import schema
revision, down_revision, branch_labels, depends_on = {revision!r}, {down!r}, None, None
def upgrade(): schema.upgrade(op, {up})
def downgrade(): schema.downgrade(op, {back})
"""


class Project:
    """An application's alembic project."""

    def __init__(self, at: Path, dsn: str, *, branch: bool, later: bool = False) -> None:
        self.at = at
        self.dsn = dsn
        self.versions = at / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        ours = "sio_pg_adapter:migrations/versions"
        ini = INI if branch else INI.replace(f" {ours}", "")
        ini = ini.replace(ours, f"{ours} {REVISIONS}") if later else ini
        (at / "alembic.ini").write_text(ini, encoding="utf-8")
        (at / "migrations" / "env.py").write_text(ENV, encoding="utf-8")
        (at / "migrations" / "script.py.mako").write_text(MAKO.read_text(encoding="utf-8"), encoding="utf-8")
        (self.versions / "own1.py").write_text(FIRST, encoding="utf-8")

    def calls(self, revision: str, down: str, up: str, back: str) -> None:
        """Add a revision that calls schema.upgrade(op, ...) and schema.downgrade(op, ...)."""
        script = CALLING.format(revision=revision, down=down, up=up, back=back)
        (self.versions / f"{revision}.py").write_text(script, encoding="utf-8")

    def __call__(self, name: str, *args: str, by: str = "filter", x: str | None = None, **options: object) -> str:
        """Do what `alembic NAME ARGS` does, and give what it prints."""
        said = io.StringIO()
        config = Config(self.at / "alembic.ini", stdout=said, output_buffer=said, cmd_opts=Namespace(x=x and [x]))
        config.attributes.update(dsn=self.dsn.replace("postgresql://", "postgresql+psycopg://"), left_alone_by=by)
        getattr(command, name)(config, *args, **options)
        return said.getvalue()

    def tables(self) -> list[tuple[str, str, str]]:
        """All that is there, but for the version tables and the application's own."""
        return [row for row in introspect(self.dsn) if not any(n in row[1] for n in ("alembic", "orders"))]


def expected(dsn: str) -> list[tuple[str, str, str]]:
    return [row for row in introspect(dsn) if "alembic" not in row[1]]


def at_later(dsn: str) -> list[tuple[str, str, str]]:
    """What there is after the later revision, in a database that `sio-pg migrate` brings there."""
    before = expected(dsn)
    migrate.upgrade(dsn)
    after = expected(dsn)
    assert after != before
    return after


def test_as_a_branch_of_the_applications_history(tmp_path, pg_empty_dsn, pg_migrated_dsn):
    project = Project(tmp_path, pg_empty_dsn, branch=True)
    project("upgrade", "heads")
    assert project.tables() == expected(pg_migrated_dsn)
    for by in ("filter", "metadata"):
        assert SILENT in project("check", by=by)
    project("revision", "nothing", autogenerate=True, head="orders@head", rev_id="own2")
    [made] = project.versions.glob("own2*")
    assert made.read_text(encoding="utf-8").count("    pass\n") == 2
    project("upgrade", "heads")

    project("downgrade", "sio_pg_adapter@base")
    assert project.tables() == []
    project("upgrade", "heads")
    assert project.tables() == expected(pg_migrated_dsn)
    project("downgrade", "base")
    assert project.tables() == []


def test_as_a_branch_a_later_revision_comes_by_the_next_upgrade(tmp_path, pg_empty_dsn, pg_migrated_dsn, later):
    project = Project(tmp_path, pg_empty_dsn, branch=True, later=True)
    project("upgrade", "sio_pg_adapter@sio0001")
    assert project.tables() == expected(pg_migrated_dsn)
    project("upgrade", "heads")
    assert project.tables() == at_later(pg_migrated_dsn)
    assert SILENT in project("check")
    project("downgrade", "base")
    assert project.tables() == []


async def test_as_a_branch_in_another_schema(tmp_path, pg_empty_dsn):
    project = Project(tmp_path, pg_empty_dsn, branch=True)
    with psycopg.connect(pg_empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA chat")
    project("upgrade", "heads", x="sio_schema=chat")
    assert project.tables() == []
    async with AsyncPostgresManager(pg_empty_dsn, schema="chat", write_only=True) as manager:
        await manager.emit("e", 1)
    project("downgrade", "base", x="sio_schema=chat")
    assert introspect(pg_empty_dsn, "chat") == []


# -- the third: called from revisions of the application's own ---------------------------------------------------
def test_called_from_revisions_of_the_applications_own(tmp_path, pg_empty_dsn, pg_migrated_dsn, later):
    first, second = expected(pg_migrated_dsn), at_later(pg_migrated_dsn)
    project = Project(tmp_path, pg_empty_dsn, branch=False)
    project.calls("own2", "own1", up='"sio0001"', back="")
    project("upgrade", "own2")
    assert project.tables() == first
    for by in ("filter", "metadata"):
        assert SILENT in project("check", by=by)
    project.calls("own3", "own2", up='"sio0002"', back='to="sio0001"')
    project("upgrade", "head")
    assert project.tables() == second
    assert SILENT in project("check")

    project("downgrade", "own2")
    assert project.tables() == first
    project("downgrade", "own1")
    assert project.tables() == []
    project("upgrade", "head")
    assert project.tables() == second
    project("downgrade", "base")
    assert project.tables() == []


def test_a_revision_that_finds_the_work_done_does_nothing(tmp_path, pg_empty_dsn, pg_migrated_dsn, later):
    """The first one says "head", and a later package's head is further than it was when that was written."""
    project = Project(tmp_path, pg_empty_dsn, branch=False)
    project.calls("own2", "own1", up="", back="")
    project.calls("own3", "own2", up='"sio0001"', back='to="sio0001"')
    project("upgrade", "head")
    assert project.tables() == at_later(pg_migrated_dsn)
    project("downgrade", "base")
    assert project.tables() == []


def test_called_with_another_schema_which_is_made(tmp_path, pg_empty_dsn):
    project = Project(tmp_path, pg_empty_dsn, branch=False)
    project.calls("own2", "own1", up=f"schema={HOSTILE[0]!r}", back=f"schema={HOSTILE[0]!r}")
    project("upgrade", "head")
    assert project.tables() == []
    made = introspect(pg_empty_dsn, HOSTILE[0])
    migrate.downgrade(pg_empty_dsn)  # of "public", where nothing is
    assert introspect(pg_empty_dsn, HOSTILE[0]) == made != []
    project("downgrade", "base")
    assert introspect(pg_empty_dsn, HOSTILE[0]) == []


def test_as_sql_where_the_tables_are_has_to_be_said(tmp_path, pg_empty_dsn, pg_migrated_dsn, later):
    project = Project(tmp_path, pg_empty_dsn, branch=False)
    project.calls("own2", "own1", up='"sio0001", from_="base"', back='from_="sio0001"')
    project.calls("own3", "own2", up='"sio0002", from_="sio0001", relay=True', back='"sio0001", from_="sio0002"')
    script = project("upgrade", "head", sql=True)
    with psycopg.connect(pg_empty_dsn, autocommit=True) as connection:
        connection.execute(script.replace("%%", "%"))
        assert connection.execute("SELECT last_value FROM sio_relay_state").fetchone() == (1,)
    assert project.tables() == at_later(pg_migrated_dsn)
    project.calls("own2", "own1", up="", back="")
    with pytest.raises(ConfigurationError, match="from_="):
        project("upgrade", "head", sql=True)


@pytest.mark.parametrize("revision", ["sio0000", "own1", "+1", None])
def test_a_revision_that_is_none_is_a_configuration_error(connect, revision):
    with connect() as connection:
        op = Operations(MigrationContext.configure(connection))
        for work in (schema.upgrade, schema.downgrade):
            with pytest.raises(ConfigurationError, match="it has base, sio0001"):
                work(op, to=revision)
        with pytest.raises(ConfigurationError, match="63 bytes"):
            schema.upgrade(op, schema="")


def test_every_revision_says_its_number(pg_empty_dsn, connect, later):
    """Where the tables are is read from `sio_log.version`; also with an `op` that is not alembic's own proxy."""
    history = [s.revision for s in ScriptDirectory.from_config(migrate.config_for("public")).walk_revisions()][::-1]
    assert history == ["sio0001", "sio0002"]
    with connect() as connection:
        op = Operations(MigrationContext.configure(connection))
        for there in history:
            schema.upgrade(op, to=there)
            assert revisions._present(op, "public") == there
        schema.upgrade(op, relay=True)
        assert connection.scalar(text("SELECT last_value FROM sio_relay_state")) == 1
        for there in reversed(["base", *history[:-1]]):
            schema.downgrade(op, to=there)
            assert revisions._present(op, "public") == there
        connection.commit()
        assert inspect(connection).get_table_names() == []


# -- the first: next to the application's own revisions ------------------------------------------------------------
def test_beside_sio_pg_migrate_the_applications_autogenerate_is_silent(tmp_path, pg_migrated_dsn):
    project = Project(tmp_path, pg_migrated_dsn, branch=False)
    project("upgrade", "head")
    assert SILENT in project("check", by="filter")
    with pytest.raises(CommandError, match="sio_packets"):  # this is what the filter is for
        project("check", by="neither")
