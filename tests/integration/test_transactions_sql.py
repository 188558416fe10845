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

from sio_pg_adapter import AsyncPostgresManager, emit, leave_room
from support.roles import grants

DOCS = Path(__file__).parents[2] / "docs" / "transactions.md"

RESERVED = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
"""The names whose events socket.io-client does not get past: it closes, comes back and is sent them again."""


def escaped(name: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in name)


def snippets() -> list[str]:
    return re.findall(r"^```sql\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def app(pg_owner_dsn):
    with psycopg.connect(pg_owner_dsn, autocommit=True) as connection:
        yield connection


def stored(app):
    return app.execute(
        "SELECT namespace, coalesce(rooms, ARRAY[room]), coalesce(skip_sids, '{}'), coalesce(skip_rooms, '{}'),"
        " body FROM sio_packets"
        ' ORDER BY "offset"'
    ).fetchall()


@pytest.mark.parametrize(
    ("call", "row"),
    [
        ("sio_emit('e')", ("/", [""], [], [], '["e"]')),
        ("""sio_emit('e', '{"id": 7}', room => 'user:7')""", ("/", ["user:7"], [], [], '["e",{"id": 7}]')),
        ("sio_emit('e', '[1, 2]')", ("/", [""], [], [], '["e",[1, 2]]')),
        ("sio_emit('e', '\"text\"')", ("/", [""], [], [], '["e","text"]')),
        ("sio_emit('e', 'null')", ("/", [""], [], [], '["e",null]')),
        ("sio_emit('e', ' 1.10 ')", ("/", [""], [], [], '["e", 1.10 ]')),
        (r"""sio_emit('e', '{"b":1,"a":"\u0000\ud800","b":2}')""",
         ("/", [""], [], [], r'["e",{"b":1,"a":"\u0000\ud800","b":2}]')),
        ("sio_emit('e', to_jsonb(7)::json)", ("/", [""], [], [], '["e",7]')),
        ("sio_emit('e', rooms => ARRAY['b', 'a', 'b'])", ("/", ["b", "a"], [], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY['b', 'a'])", ("/", ["a", "b"], [], [], '["e"]')),
        ("sio_emit('e', room => 'c', rooms => '{z,a,y,c,b,x,a}')", ("/", list("czaybx"), [], [], '["e"]')),
        ("sio_emit('e', rooms => ARRAY['', 'b', '', 'a'])", ("/", ["b", "a"], [], [], '["e"]')),
        ("sio_emit('e', rooms => ARRAY['admins', ''])", ("/", ["admins"], [], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY['', 'b'])", ("/", ["a", "b"], [], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY['', ''])", ("/", ["a"], [], [], '["e"]')),
        ("sio_emit('e', room => 'a', rooms => ARRAY[]::text[])", ("/", ["a"], [], [], '["e"]')),
        ("sio_emit('e', namespace => '/x', skip_sids => ARRAY['s', NULL, 't'])",
         ("/x", [""], ["s", "t"], [], '["e"]')),
        ("sio_emit('e', skip_rooms => ARRAY['m', '', NULL, 'n'])", ("/", [""], [], ["m", "n"], '["e"]')),
        ("sio_emit('e', skip_rooms => ARRAY['', NULL])", ("/", [""], [], [], '["e"]')),
        ("sio_emit('e', skip_rooms => NULL)", ("/", [""], [], [], '["e"]')),
        ("sio_emit('e', skip_sids => NULL)", ("/", [""], [], [], '["e"]')),
        ("sio_emit(E'\"\\\\\\n', room => repeat('ü', 256))", ("/", ["ü" * 256], [], [], r'["\"\\\n"]')),
        ("sio_emit('disconnected', '\"connect\"')", ("/", [""], [], [], '["disconnected","connect"]')),
        ("sio_emit(repeat('x', 512))", ("/", [""], [], [], f'["{"x" * 512}"]')),
        ("sio_emit('Connect')", ("/", [""], [], [], '["Connect"]')),
        (f"sio_emit_encoded('/', '', NULL, NULL, '[\"e\"]', '\\x{'0000000101' * 10}')", ("/", [""], [], [], '["e"]')),
        ("sio_emit('e', key => repeat('ü', 256))", ("/", [""], [], [], '["e"]')),
        ("sio_emit('e', key => NULL)", ("/", [""], [], [], '["e"]')),
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
        ("sio_emit('e', skip_rooms => ARRAY[repeat('x', 513)])", psycopg.errors.ProgramLimitExceeded),
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
            " skip_sids => ARRAY[%(n)s], skip_rooms => ARRAY[%(n)s])",
            {"n": name},
        )
        emit(app, name, name, room=[name, "r"], namespace=name, skip_sid=name, skip_room=name)
    rows = stored(app)
    assert len(rows) == 2 * len(hostile)
    for name, *both in zip(hostile, rows[::2], rows[1::2], strict=True):
        for namespace, rooms, *skips, body in both:
            assert (namespace, rooms, json.loads(body)) == (name, [name, "r"], [name, name])
            assert skips == [[name], [name]]
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
    with app.transaction():
        app.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for call in ROOM_CALLS:
            app.execute(f"SELECT {call}")
    app.execute("RESET search_path")
    assert len(stored(app)) == 3 + len(ROOM_CALLS)


# -- rooms and disconnects ---------------------------------------------------------------------------------------
ROOM_CALLS = [
    "sio_enter_room('r', sid => 's')",
    "sio_enter_room('r', room => 'u')",
    "sio_leave_room('r', 's')",
    "sio_leave_room('r', room => 'u', namespace => '/x')",
    "sio_close_room('r')",
    "sio_disconnect('s')",
    "sio_disconnect(room => 'u')",
]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("sio_enter_room(NULL, sid => 's')", psycopg.errors.NullValueNotAllowed, "sio_enter_room: rooms, sid and"),
        ("sio_enter_room('r', sid => NULL)", psycopg.errors.NullValueNotAllowed, "not null"),
        ("sio_leave_room('r', room => 'user:' || NULL)", psycopg.errors.NullValueNotAllowed, "not null"),
        ("sio_leave_room('r', 's', namespace => NULL)", psycopg.errors.NullValueNotAllowed, "not null"),
        ("sio_close_room(NULL)", psycopg.errors.NullValueNotAllowed, "sio_close_room"),
        ("sio_disconnect(NULL)", psycopg.errors.NullValueNotAllowed, "sio_disconnect"),
        ("sio_enter_room('r')", psycopg.errors.InvalidParameterValue, "one client by sid, or all members"),
        ("sio_enter_room('r', 's', 'u')", psycopg.errors.InvalidParameterValue, "one client by sid, or all members"),
        ("sio_leave_room('', 's')", psycopg.errors.InvalidParameterValue, "sio_leave_room: name the room"),
        ("sio_close_room('')", psycopg.errors.InvalidParameterValue, "sio_close_room: name the room"),
        ("sio_disconnect()", psycopg.errors.InvalidParameterValue, "sio_disconnect: name one client"),
        ("sio_disconnect(room => '')", psycopg.errors.InvalidParameterValue, "sio_disconnect: name one client"),
        ("sio_enter_room(repeat('ü', 257), 's')", psycopg.errors.ProgramLimitExceeded, "longer than 512 bytes"),
        ("sio_enter_room('r', repeat('x', 513))", psycopg.errors.ProgramLimitExceeded, "longer than 512 bytes"),
        ("sio_leave_room('r', room => repeat('x', 513))", psycopg.errors.ProgramLimitExceeded, "longer than 512"),
        ("sio_disconnect('s', namespace => repeat('x', 513))", psycopg.errors.ProgramLimitExceeded, "longer than"),
        # what the package does not send
        ("sio_change('kick', '/', NULL, 's', NULL, NULL)", psycopg.errors.InvalidParameterValue, "a change is"),
        ("sio_change('disconnect', NULL, NULL, 's', NULL, NULL)", psycopg.errors.InvalidParameterValue, "a change"),
        ("sio_change('disconnect', '/', '[\"r\"]', 's', NULL, NULL)", psycopg.errors.InvalidParameterValue, "room"),
        ("sio_change('disconnect', '/', NULL, '', NULL, NULL)", psycopg.errors.InvalidParameterValue, "name one"),
        ("sio_change('disconnect', '/', NULL, NULL, '[]', NULL)", psycopg.errors.InvalidParameterValue, "name one"),
        ("sio_change('disconnect', '/', NULL, NULL, '[null]', NULL)", psycopg.errors.InvalidParameterValue, "one"),
        ("sio_change('enter_room', '/', '[null]', 's', NULL, NULL)", psycopg.errors.InvalidParameterValue, "room"),
        ("sio_change('enter_room', '/', NULL, 's', NULL, NULL)", psycopg.errors.InvalidParameterValue, "room"),
        ("sio_change('close_room', '/', '[\"r\"]', 's', NULL, NULL)", psycopg.errors.InvalidParameterValue, "one"),
        ("sio_change('enter_room', '/', '{', 's', NULL, NULL)", psycopg.errors.InvalidTextRepresentation, "json"),
    ],
)
def test_a_room_change_that_is_refused(app, call, error, says):
    with pytest.raises(error, match=says):
        app.execute(f"SELECT {call}")
    assert stored(app) == []
    assert app.execute("SELECT count(*) FROM sio_outbox_changes").fetchone() == (0,)


async def test_a_row_that_a_trigger_watches_moves_the_clients_of_its_user(app, start_node):
    node = await start_node()
    app.execute("""
        CREATE TABLE bans (name text);
        CREATE FUNCTION banned() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM sio_emit('banned', room => 'user:' || NEW.name);
            PERFORM sio_disconnect(room => 'user:' || NEW.name);
            RETURN NULL;
        END $$;
        CREATE TRIGGER banned AFTER INSERT ON bans FOR EACH ROW EXECUTE FUNCTION banned()""")
    async with node.client() as ada, node.client() as bob:
        await node.sio.enter_room(ada.sid, "user:ada")
        await node.sio.enter_room(bob.sid, "user:bob")
        with pytest.raises(psycopg.errors.DivisionByZero), app.transaction():
            app.execute("INSERT INTO bans VALUES ('bob')")
            app.execute("SELECT 1 / 0")
        app.execute("INSERT INTO bans VALUES ('ada')")
        assert [await ada.event(), await ada.recv()] == [["banned"], "1"]
        await node.sio.emit("end")
        assert await bob.events_until("end") == []


async def test_the_replica_role_changes_rooms_as_others_do(pg_admin_dsn, pg_dsn, app, start_node):
    """Foreign keys do not cascade in it, and its triggers run only if they are ENABLE ALWAYS."""
    node = await start_node()
    at = psycopg.conninfo.conninfo_to_dict(pg_dsn)["dbname"]
    async with node.client() as one, node.client() as two:
        for wire in (one, two):
            await node.sio.enter_room(wire.sid, "u")
        with psycopg.connect(pg_admin_dsn, dbname=at, autocommit=True) as replica:
            replica.execute("SET session_replication_role = replica")
            replica.execute("SELECT sio_enter_room('r', room => 'u')")
            await node.sio.emit("e", room="r")
            assert await one.event() == await two.event() == ["e"]
            replica.execute("SELECT sio_disconnect(%s)", [one.sid])
            replica.execute("SELECT sio_disconnect(room => 'u')")
        assert await one.recv() == await two.recv() == "1"
    for table in ("sio_sessions", "sio_rooms", "sio_outbox_changes"):
        assert app.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


# -- docs/transactions.md, as written --------------------------------------------------------------------------
async def test_the_documented_trigger(pg_dsn, app, start_node):
    example, trigger, *_ = snippets()
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
    app.execute(grants(names["node"], names["emitter"]))
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
            assert len(emitter.execute("SELECT sio_position()").fetchone()[0]) == 36
            tables = [r[0] for r in app.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'sio\\_%'")]
            assert len(tables) > 10
            for table in tables:
                for statement in ("SELECT FROM {}", "DELETE FROM {}", "LOCK {} IN ACCESS SHARE MODE"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege), emitter.transaction():
                        emitter.execute(sql.SQL(statement).format(sql.Identifier(table)))
            # The triggers' functions run as the owner: not on a table of the emitter's own.
            emitter.execute("CREATE TEMP TABLE mine (LIKE pg_class)")
            for function in ("sio_outbox_take", "sio_outbox_append", "sio_changes_take", "sio_changes_append"):
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
            leave_room(one, wire.sid, "room")
            one.execute("SELECT sio_enter_room('room', sid => %s)", [wire.sid])
        assert await wire.event() == ["by a node"]
        await wire.drop()
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            await node.sio.disconnect(again.sid)


@pytest.mark.parametrize("call", ROOM_CALLS)
async def test_an_emitter_changes_rooms_only_where_that_is_granted(roles, app, call):
    name = sql.Identifier(psycopg.conninfo.conninfo_to_dict(roles["emitter"])["user"])
    function = sql.Identifier(call.partition("(")[0])
    with psycopg.connect(roles["emitter"], autocommit=True) as emitter:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            emitter.execute(f"SELECT {call}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            emitter.execute("SELECT sio_change('disconnect', '/', NULL, 's', NULL, NULL)")
        assert stored(app) == []
        app.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(function, name))
        emitter.execute(f"SELECT {call}")
        others = {c.partition("(")[0] for c in ROOM_CALLS} - {call.partition("(")[0]}
        for other in [c for c in ROOM_CALLS if c.partition("(")[0] in others]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                emitter.execute(f"SELECT {other}")
    assert len(stored(app)) == 1


async def test_nobody_else_may_emit(roles, pg_admin, pg_owner_dsn):
    name = psycopg.conninfo.conninfo_to_dict(roles["emitter"])["user"]
    with psycopg.connect(pg_owner_dsn, autocommit=True) as owner:
        owner.execute(sql.SQL("REVOKE EXECUTE ON FUNCTION sio_emit FROM {}").format(sql.Identifier(name)))
    with psycopg.connect(roles["emitter"]) as other, pytest.raises(psycopg.errors.InsufficientPrivilege):
        other.execute("SELECT sio_emit('x')")


async def test_a_write_only_manager_of_the_emitters_role_emits_in_its_transactions(roles, app):
    connection = await asyncpg.connect(roles["emitter"])
    await AsyncPostgresManager(roles["emitter"], write_only=True).emit("x", None, connection=connection)
    await connection.close()
    assert stored(app) == [("/", [""], [], [], '["x"]')]
