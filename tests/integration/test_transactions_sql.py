"""`sio_emit` in SQL: its arguments, from triggers, for roles without rights, with names that mean harm."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

import asyncpg
import psycopg
import pytest
from psycopg import sql

from sio_pg_adapter import AsyncPostgresManager, emit

DOCS = Path(__file__).parents[2] / "docs" / "transactions.md"

RESERVED = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
"""The names whose events socket.io-client does not get past: it closes, comes back and is sent them again."""


def escaped(name: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in name)


def snippets() -> list[str]:
    return re.findall(r"^```sql\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def app(pg_dsn):
    with psycopg.connect(pg_dsn, autocommit=True) as connection:
        yield connection


def stored(app):
    return app.execute(
        "SELECT namespace, coalesce(rooms, ARRAY[room]), coalesce(skip_sids, '{}'), body FROM sio_packets"
        ' ORDER BY "offset"'
    ).fetchall()


@pytest.mark.parametrize(
    ("call", "row"),
    [
        ("sio_emit('e')", ("/", [""], [], '["e"]')),
        ("""sio_emit('e', '{"id": 7}', room => 'user:7')""", ("/", ["user:7"], [], '["e",{"id": 7}]')),
        ("sio_emit('e', '[1, 2]')", ("/", [""], [], '["e",[1, 2]]')),
        ("sio_emit('e', '\"text\"')", ("/", [""], [], '["e","text"]')),
        ("sio_emit('e', 'null')", ("/", [""], [], '["e",null]')),
        ("sio_emit('e', ' 1.10 ')", ("/", [""], [], '["e", 1.10 ]')),
        (r"""sio_emit('e', '{"b":1,"a":"\u0000\ud800","b":2}')""",
         ("/", [""], [], r'["e",{"b":1,"a":"\u0000\ud800","b":2}]')),
        ("sio_emit('e', to_jsonb(7)::json)", ("/", [""], [], '["e",7]')),
        ("sio_emit('e', rooms => ARRAY['b', 'a', 'b'])", ("/", ["b", "a"], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY['b', 'a'])", ("/", ["a", "b"], [], '["e"]')),
        ("sio_emit('e', rooms => ARRAY['', 'b', '', 'a'])", ("/", ["b", "a"], [], '["e"]')),
        ("sio_emit('e', rooms => ARRAY['admins', ''])", ("/", ["admins"], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY['', 'b'])", ("/", ["a", "b"], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY['', ''])", ("/", ["a"], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY[]::text[])", ("/", ["a"], [], '["e"]')),
        ("sio_emit('e', namespace => '/x', skip_sids => ARRAY['s', NULL, 't'])", ("/x", [""], ["s", "t"], '["e"]')),
        ("sio_emit('e', skip_sids => NULL)", ("/", [""], [], '["e"]')),
        ("sio_emit(E'\"\\\\\\n', room => repeat('ü', 256))", ("/", ["ü" * 256], [], r'["\"\\\n"]')),
        ("sio_emit('disconnected', '\"connect\"')", ("/", [""], [], '["disconnected","connect"]')),
        ("sio_emit('Connect')", ("/", [""], [], '["Connect"]')),
        (f"sio_emit_encoded('/', '', NULL, NULL, '[\"e\"]', '\\x{'0000000101' * 10}')", ("/", [""], [], '["e"]')),
        ("sio_emit('e', key => repeat('ü', 256))", ("/", [""], [], '["e"]')),
        ("sio_emit('e', key => NULL)", ("/", [""], [], '["e"]')),
        ("sio_emit('e', rooms => ARRAY[]::text[], key => 'k')", None),
        ("sio_emit('e', '1', 'r', DEFAULT)", None),
        ("sio_emit('e', rooms => ARRAY[]::text[])", None),
    ],
)  # fmt: skip
def test_arguments(app, call, row):
    if "DEFAULT" in call:
        with pytest.raises(psycopg.errors.SyntaxError):
            app.execute(f"SELECT {call}")
    else:
        app.execute(f"SELECT {call}")
    assert stored(app) == ([] if row is None else [row])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("sio_emit(NULL)", psycopg.errors.NullValueNotAllowed),
        ("sio_emit('e', room => 'user:' || NULL)", psycopg.errors.NullValueNotAllowed),
        ("sio_emit('e', rooms => NULL)", psycopg.errors.NullValueNotAllowed),
        ("sio_emit('e', rooms => ARRAY['a', NULL])", psycopg.errors.NullValueNotAllowed),
        ("sio_emit('e', rooms => ARRAY['', ''])", psycopg.errors.InvalidParameterValue),
        ("sio_emit('e', namespace => NULL)", psycopg.errors.NullValueNotAllowed),
        ("sio_emit('e', '{')", psycopg.errors.InvalidTextRepresentation),
        ("sio_emit('e', 'NaN')", psycopg.errors.InvalidTextRepresentation),
        ("sio_emit('e', '1],[2')", psycopg.errors.InvalidTextRepresentation),
        ("sio_emit(repeat('x', 513))", psycopg.errors.ProgramLimitExceeded),
        ("sio_emit('e', room => repeat('ü', 257))", psycopg.errors.ProgramLimitExceeded),
        ("sio_emit('e', rooms => ARRAY['a', repeat('x', 513)])", psycopg.errors.ProgramLimitExceeded),
        ("sio_emit('e', skip_sids => ARRAY[repeat('x', 513)])", psycopg.errors.ProgramLimitExceeded),
        ("sio_emit('e', namespace => repeat('x', 513))", psycopg.errors.ProgramLimitExceeded),
        ("sio_emit('e', key => '')", psycopg.errors.InvalidParameterValue),
        ("sio_emit('e', key => repeat('ü', 257))", psycopg.errors.ProgramLimitExceeded),
        # what no encoder makes, and no node could take apart
        ("sio_emit_encoded('/', '', NULL, NULL, '{}', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', NULL, NULL, '[1]', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', NULL, NULL, '[\"e\"] ', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', NULL, NULL, '[\"e\",]', NULL)", psycopg.errors.InvalidTextRepresentation),
        ("sio_emit_encoded('/', '', NULL, NULL, NULL, NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', NULL, NULL, NULL, '[\"e\"]', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', 'a', '[\"b\",\"a\"]', NULL, '[\"e\"]', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', 'a', '[\"a\",null]', NULL, '[\"e\"]', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', 'a', '[\"a\",\"\"]', NULL, '[\"e\"]', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', '[\"\",\"a\"]', NULL, '[\"e\"]', NULL)", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', NULL, NULL, '[\"e\"]', '\\x000001')", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', NULL, NULL, '[\"e\"]', '\\x0000000201')", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', NULL, NULL, '[\"e\"]', '\\xffffffff01')", psycopg.errors.InvalidParameterValue),
        ("sio_emit_encoded('/', '', NULL, NULL, '[\"e\"]', '\\x7fffffff01')", psycopg.errors.InvalidParameterValue),
        *((f"sio_emit('{name}')", psycopg.errors.InvalidParameterValue) for name in RESERVED),
        *((f"sio_emit_encoded('/', '', NULL, NULL, '[{json.dumps(name)},1]', NULL)",
           psycopg.errors.InvalidParameterValue) for name in RESERVED),
        *((f"sio_emit_encoded('/', '', NULL, NULL, '[\"{escaped(name)}\"]', NULL)",
           psycopg.errors.InvalidParameterValue) for name in RESERVED),
        (f"sio_emit_encoded('/', '', NULL, NULL, '[\"e\"]', '\\x{'0000000101' * 11}')",
         psycopg.errors.ProgramLimitExceeded),
    ],
)  # fmt: skip
def test_what_is_refused(app, call, error):
    with pytest.raises(error):
        app.execute(f"SELECT {call}")
    assert stored(app) == []


def test_of_all_lengths_that_do_not_fit_a_notification(app):
    for size in (7_400, 7_500, 7_599, 7_600, 7_900, 8_000, 70_000):
        app.execute("SELECT sio_emit('e', to_json(repeat(%s, %s)))", ["x", size])
        app.execute(
            "SELECT sio_emit('e', to_json(repeat(%s, %s)), rooms => %s)", ["é", size // 2, ["a" * 512, "é" * 256]]
        )
    assert len(stored(app)) == 14
    assert app.execute("SELECT count(*) FROM sio_attachments").fetchone() == (2,)


def test_case_98_names_that_mean_harm_are_data(app):
    hostile = [
        '"; CREATE TABLE x(); --',
        "'; DROP TABLE sio_packets; --",
        "$$ {s} %s :a \\",
        '"]',
        "\x01\x1e",
        "日本",
    ]
    before = app.execute("SELECT count(*) FROM pg_class").fetchone()
    for name in hostile:
        app.execute(
            "SELECT sio_emit(%(n)s, to_json(%(n)s::text), rooms => ARRAY[%(n)s, 'r'], namespace => %(n)s,"
            " skip_sids => ARRAY[%(n)s])",
            {"n": name},
        )
        emit(app, name, name, room=[name, "r"], namespace=name, skip_sid=name)
    rows = stored(app)
    assert len(rows) == 2 * len(hostile)
    for name, *both in zip(hostile, rows[::2], rows[1::2], strict=True):
        for namespace, rooms, skips, body in both:
            assert (namespace, rooms, skips, json.loads(body)) == (name, [name, "r"], [name], [name, name])
    assert app.execute("SELECT count(*) FROM pg_class").fetchone() == before


def test_operators_in_the_callers_path_are_not_called(app):
    """Ours runs with the owner's rights: what the caller defines must not run in it."""
    app.execute("CREATE SCHEMA evil; SET search_path = evil, pg_catalog, public")
    for i, (name, left, right, result) in enumerate((
        ("=", "text", "text", "boolean"), ("<>", "text", "text", "boolean"), ("||", "text", "text", "text"),
        (">", "integer", "integer", "boolean"), ("-", "bigint", "integer", "bigint"), ("=", "tid", "tid", "boolean"),
        ("<", "double precision", "double precision", "boolean"), (">", "bigint", "integer", "boolean"),
    )):  # fmt: skip
        app.execute(f"""
            CREATE FUNCTION evil.call{i}({left}, {right}) RETURNS {result} LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'called'; END $$;
            CREATE OPERATOR evil.{name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = evil.call{i})""")
    for function in ("pg_notify(text, text)", "current_setting(text)", "set_config(text, text, boolean)",
                     "octet_length(text)", "concat(text, text)"):  # fmt: skip
        app.execute(
            f"CREATE FUNCTION evil.{function} RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$"
        )
    with pytest.raises(psycopg.errors.RaiseException, match="called"):
        app.execute("SELECT 'a'::text = 'b'::text")
    with app.transaction():
        app.execute("SELECT sio_emit('e', '1', rooms => '{a,b}'), sio_emit('e', room => 'r', skip_sids => '{s}')")
    app.execute("SET search_path = public; DELETE FROM sio_marker")
    app.execute("SET search_path = evil, pg_catalog, public")
    app.execute("SELECT sio_emit('e')")
    app.execute("RESET search_path")
    assert len(stored(app)) == 3


# -- docs/transactions.md, as written --------------------------------------------------------------------------
async def test_the_documented_trigger(pg_dsn, app, start_node):
    example, trigger, _ = snippets()
    app.execute("CREATE TABLE orders (id integer, customer integer, paid boolean DEFAULT false)")
    app.execute(trigger)
    node = await start_node()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "user:7")
        app.execute(example)
        assert await wire.event() == ["order_paid", {"id": 7}]
        app.execute("INSERT INTO orders VALUES (1, 7), (2, 7), (3, 8)")
        app.execute("UPDATE orders SET paid = true")
        assert await wire.event() == ["order_paid", {"id": 1}]
        assert await wire.event() == ["order_paid", {"id": 2}]
        with pytest.raises(psycopg.errors.DivisionByZero), app.transaction():
            app.execute("UPDATE orders SET paid = false")
            app.execute("UPDATE orders SET paid = true")
            app.execute("SELECT 1 / 0")
        await node.sio.emit("end")
        assert await wire.events_until("end") == []


@pytest.fixture
def roles(pg_dsn, pg_admin, pg_admin_dsn, app):
    """The documented roles, under names of this test's own: owner, node and emitter, each as a DSN."""
    suffix = secrets.token_hex(4)
    names = {role: f"sio_{role}_{suffix}" for role in ("node", "emitter")}
    for name in names.values():
        pg_admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(name)))
    grants = next(s for s in snippets() if s.startswith("-- roles"))
    for role, name in names.items():
        grants = grants.replace(f"sio_{role},", f"{name},").replace(f"sio_{role};", f"{name};")
    app.execute(grants)
    at = psycopg.conninfo.conninfo_to_dict(pg_dsn)
    yield {
        role: f"postgresql://{name}:x@/{at['dbname']}?host={at['host']}&port={at['port']}"
        for role, name in names.items()
    }
    with psycopg.connect(pg_admin_dsn, autocommit=True) as admin:
        for name in names.values():
            admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def test_a_role_without_rights_on_the_tables_may_emit_and_nothing_else(roles, start_node, app):
    """And the node is one of the role that nodes have."""
    node = await start_node(dsn=roles["node"])
    async with node.client() as wire:
        with psycopg.connect(roles["emitter"]) as emitter:
            emitter.execute("SELECT sio_emit('sql', '1', room => %s)", [wire.sid])
            emit(emitter, "python", b"x" * 70_000, room=[wire.sid, "other"])
            emitter.execute("SET CONSTRAINTS ALL IMMEDIATE")
            emit(emitter, "last")
            emitter.commit()
            assert await wire.event() == ["sql", 1]
            assert (await wire.recv()).startswith('51-["python"')
            assert await wire.recv() == b"x" * 70_000
            assert await wire.event() == ["last"]
            tables = [r[0] for r in app.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'sio\\_%'")]
            assert len(tables) > 10
            for table in tables:
                for statement in ("SELECT FROM {}", "DELETE FROM {}", "LOCK {} IN ACCESS SHARE MODE"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege), emitter.transaction():
                        emitter.execute(sql.SQL(statement).format(sql.Identifier(table)))
            # The triggers' functions run as the owner: not on a table of the emitter's own.
            emitter.execute("CREATE TEMP TABLE mine (LIKE pg_class)")
            for function in ("sio_outbox_take", "sio_outbox_append"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), emitter.transaction():
                    emitter.execute(
                        sql.SQL("CREATE TRIGGER x AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {}()").format(
                            sql.Identifier(function)
                        )
                    )
        # all that a node does
        await node.sio.enter_room(wire.sid, "room")
        await node.sio.save_session(wire.sid, {"a": 1})
        with psycopg.connect(roles["node"], autocommit=True) as one:
            emit(one, "by a node", room="room")
        assert await wire.event() == ["by a node"]
        await wire.drop()
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            await node.sio.disconnect(again.sid)


async def test_nobody_else_may_emit(roles, pg_admin, pg_dsn):
    name = psycopg.conninfo.conninfo_to_dict(roles["emitter"])["user"]
    with psycopg.connect(pg_dsn, autocommit=True) as owner:
        owner.execute(sql.SQL("REVOKE EXECUTE ON FUNCTION sio_emit FROM {}").format(sql.Identifier(name)))
    with psycopg.connect(roles["emitter"]) as other, pytest.raises(psycopg.errors.InsufficientPrivilege):
        other.execute("SELECT sio_emit('x')")


async def test_a_write_only_manager_of_the_emitters_role_emits_in_its_transactions(roles, app):
    connection = await asyncpg.connect(roles["emitter"])
    await AsyncPostgresManager(roles["emitter"], write_only=True).emit("x", None, connection=connection)
    await connection.close()
    assert stored(app) == [("/", [""], [], '["x"]')]
