"""The functions that emit, called directly: what each of them stores, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import asyncpg
import pytest

from support.waiting import until_answer

LARGEST = 256 * 1024 * 1024


def pack(*sizes: int) -> bytes:
    """Return binary parts of some sizes, each after its length."""
    return b"".join(struct.pack("!I", size) + bytes(size) for size in sizes)


def text(*values: str | None) -> str:
    return json.dumps(values)


def body(size: int) -> str:
    """Return an event of so many bytes."""
    return f'["e","{"x" * (size - 8)}"]'


async def emit(connection: asyncpg.Connection, **changed: Any) -> bool | None:
    """Call sio_emit_encoded. Without arguments, it is an event for one room with no more than a body."""
    event = {"namespace": "/", "room": "r", "rooms": None, "skip_sids": None, "body": '["e"]', "parts": None}
    event |= {"key": None, "skip_rooms": None}
    assert changed.keys() <= event.keys()
    query = "SELECT sio_emit_encoded($1, $2, $3, $4, $5, $6, $7, $8)"
    return await connection.fetchval(query, *(event | changed).values())


STORED = """
SELECT namespace, room, array_to_json(rooms)::text AS rooms, array_to_json(skip_sids)::text AS skip_sids,
       array_to_json(skip_rooms)::text AS skip_rooms, body, parts, key, attachment
FROM sio_outbox WHERE NOT immediate AND channel = (SELECT channel FROM sio_log)
UNION ALL
SELECT namespace, room, rooms, skip_sids, skip_rooms, body, parts, key, attachment
FROM sio_relay WHERE kind = 0 AND transaction = pg_current_xact_id()::text::bigint"""


async def stored(db: asyncpg.Connection, **changed: Any) -> tuple[bool | None, list[dict[str, Any]]]:
    """Return what an emit returns, and what it stores that is not null, and roll it back."""
    transaction = db.transaction()
    await transaction.start()
    try:
        result = await emit(db, **changed)
        rows = [{name: value for name, value in row.items() if value is not None} for row in await db.fetch(STORED)]
        for row in rows:
            row |= {name: json.loads(row[name]) for name in ("rooms", "skip_sids", "skip_rooms") if name in row}
            if "attachment" in row:
                attachment = "SELECT data FROM sio_attachments WHERE id = $1 AND NOT ephemeral"
                row["attachment"] = await db.fetchval(attachment, row["attachment"])
        return result, rows
    finally:
        await transaction.rollback()


# -- what an event stores ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({}, {}),
        ({"room": ""}, {"room": ""}),
        ({"rooms": text("r")}, {"rooms": ["r"]}),
        ({"rooms": text("r", "a")}, {"rooms": ["r", "a"]}),
        ({"room": "", "rooms": text("")}, {"room": "", "rooms": [""]}),
        ({"skip_sids": text("s")}, {"skip_sids": ["s"]}),
        ({"skip_sids": text("s", None, "t")}, {"skip_sids": ["s", "t"]}),
        ({"skip_sids": text(None)}, {}),
        ({"skip_rooms": text("m")}, {"skip_rooms": ["m"]}),
        ({"skip_rooms": text("m", "", None, "n")}, {"skip_rooms": ["m", "n"]}),
        ({"skip_rooms": text("")}, {}),
        ({"parts": b""}, {"parts": b""}),
        ({"parts": pack(0)}, {"parts": pack(0)}),
        ({"parts": pack(3, 2, 0)}, {"parts": pack(3, 2, 0)}),
        ({"parts": pack(*range(10))}, {"parts": pack(*range(10))}),
        ({"key": "k" * 512}, {"key": "k" * 512}),
        ({"namespace": "n" * 512, "room": "r" * 512}, {"namespace": "n" * 512, "room": "r" * 512}),
        ({"rooms": text("r", "a" * 512)}, {"rooms": ["r", "a" * 512]}),
        ({"body": '["connection","connect"]'}, {"body": '["connection","connect"]'}),
        ({"body": '["\\u0063onnection"]'}, {"body": '["\\u0063onnection"]'}),
        ({"body": f'["{"é" * 300}"]'}, {"body": f'["{"é" * 300}"]'}),
        ({"body": body(65_536)}, {"body": body(65_536)}),
        ({"body": body(65_536), "key": "k"}, {"body": body(65_536), "key": "k"}),
    ],
)
async def test_an_event_is_stored_as_it_is_given(db, transfer, changed, differs):
    expected = {"namespace": "/", "room": "r", "body": '["e"]'} | differs
    assert await stored(db, **changed) == (True if "key" in changed else None, [expected])


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize(
    ("of", "parts"),
    [('["e"]', pack(65_528)), ('["e"]', pack(0x10203)), (body(65_537), None), (f'["{"é" * 40_000}"]', b"")],
    ids=["parts", "more-parts", "body", "both"],
)
async def test_a_large_body_is_an_attachment(db, transfer, of, parts, key):
    data = struct.pack("!I", len(of.encode())) + of.encode() + (parts or b"")
    expected = {"namespace": "/", "room": "r", "attachment": data} | ({"key": key} if key else {})
    assert await stored(db, body=of, parts=parts, key=key) == (True if key else None, [expected])


async def test_a_key_of_the_log_is_not_stored_again(db, transfer):
    assert await emit(db, key="k") is True
    assert await stored(db, key="k", body=body(70_000)) == (False, [])
    assert (await stored(db, key="k", namespace="/x"))[0] is True
    assert await db.fetchval("SELECT count(*) FROM sio_attachments") == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        *(({name: None}, "a namespace, a room and a body") for name in ("namespace", "room", "body")),
        ({"namespace": None, "rooms": text("r")}, "a namespace, a room and a body"),
        *(({"body": form}, "a JSON array that begins")
            for form in ("[1]", '{"a":[]}', '"["', '["e"] ', ' ["e"]', '[1,"e"]')),
        *(({"body": f'["{name}",1]'}, '"connect" is reserved')
            for name in ("connect", "\\u0063onnect", "connec\\u0074")),
        ({"body": '["disconnecting"]'}, '"disconnecting" is reserved'),
        *(({"room": "r", "rooms": rooms}, "the first is the room") for rooms in
            ("[]", text("a", "r"), text("r", None), text("r", ""), text("r", "a", ""), text(""))),
        ({"room": "", "rooms": text("", "a")}, "the first is the room"),
        ({"parts": b"\0"}, "after its length"),
        ({"parts": b"\0\0\1"}, "after its length"),
        ({"parts": pack(3) + b"\0\0\0"}, "after its length"),
        ({"parts": b"\0\0\0\2\1"}, "after its length"),
        ({"parts": b"\x7f\xff\xff\xff\1"}, "after its length"),
        ({"parts": b"\xff\xff\xff\xff\1"}, "after its length"),
        ({"key": ""}, "the key of an event is not empty"),
    ],
)  # fmt: skip
async def test_what_is_no_event_is_refused(db, transfer, changed, says):
    with pytest.raises(asyncpg.InvalidParameterValueError, match=says):
        await stored(db, **changed)


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("name", ["a\0", "\ud800", "\U0001f600", "\0connect"])
async def test_the_name_of_an_event_may_have_characters_that_postgresql_does_not(db, name, relay):
    await db.execute("SELECT sio_set_relay($1)", relay)
    for text_of_it in (json.dumps([name]), json.dumps([name]).replace("\\ud", "\\uD")):
        _, [row] = await stored(db, body=text_of_it)
        assert row["body"] == text_of_it


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"namespace": "n" * 513}, "longer than 512 bytes"),
        ({"namespace": "", "room": "r" * 513}, "longer than 512 bytes"),
        ({"room": "é" * 257}, "longer than 512 bytes"),
        ({"rooms": text("r", "a" * 513)}, "longer than 512 bytes"),
        ({"skip_sids": text("s" * 513)}, "longer than 512 bytes"),
        ({"skip_rooms": text("s" * 513)}, "longer than 512 bytes"),
        ({"key": "k" * 513}, "the key of an event is longer than 512 bytes"),
        ({"parts": pack(*range(11))}, "11 binary parts"),
    ],
)
async def test_what_is_too_long_is_refused(db, transfer, changed, says):
    with pytest.raises(asyncpg.ProgramLimitExceededError, match=says):
        await stored(db, **changed)


@pytest.mark.parametrize("form", ['["e",]', '["e"]]', '["e"'])
@pytest.mark.parametrize("rooms", [None, text("r", "a")])
async def test_what_is_no_json_is_refused(db, transfer, form, rooms):
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await stored(db, body=form, rooms=rooms)


@pytest.mark.parametrize(("more", "says"), [(0, "the key of an event is not empty"), (1, "larger than 256 MiB")])
async def test_the_largest_event(db, transfer, more, says):
    """The key, which is checked after the size, keeps the event from being stored."""
    query = """
        SELECT sio_emit_encoded('/', 'r', NULL, NULL, '["e"]',
                                int4send(size) || convert_to(repeat('x', size), 'UTF8'), '')
        FROM (VALUES ($1::integer)) x (size)"""
    with pytest.raises(asyncpg.PostgresError, match=says):
        await db.execute(query, LARGEST - len('["e"]') - 4 + more)


# -- the notification carries the record -------------------------------------------------------------------------
async def carried(db: asyncpg.Connection, **changed: Any) -> str:
    async with db.transaction():
        await emit(db, **changed)
        return await db.fetchval("SELECT carried FROM sio_outbox")


@pytest.mark.parametrize(
    ("changed", "is_written_out"),
    [
        ({}, True),
        ({"namespace": "/é"}, False),
        ({"room": "é"}, False),
        ({"body": '["é"]'}, False),
        ({"rooms": text("r", "a")}, False),
        ({"skip_sids": text("s")}, False),
        ({"skip_rooms": text("m")}, False),
        ({"rooms": text("r", "a"), "skip_sids": text("s"), "skip_rooms": text("m")}, False),
    ],
)
async def test_a_record_that_a_notification_carries(db, changed, is_written_out):
    event = {"namespace": "/", "room": "r", "body": '["e"]'} | changed
    got = await carried(db, **changed)
    if is_written_out:
        assert got == ' =1 1 /r["e"]'
    else:
        lists = [json.loads(event.get(name, default)) for name, default in
                 (("rooms", text(event["room"])), ("skip_sids", "[]"), ("skip_rooms", "[]"))]  # fmt: skip
        assert got[0] == " " and json.loads(got) == [[event["namespace"], *lists, event["body"]]]


async def test_a_notification_carries_what_fits(db):
    assert await carried(db, parts=pack(1)) == ""
    plain = 7_600 - len(" =1 1 /r")
    assert len(await carried(db, body=body(plain))) == 7_600
    assert await carried(db, body=body(plain + 1)) == ""
    assert await carried(db, body=body(70_000)) == ""


async def test_an_event_of_a_transaction_knows_the_last_offset_of_the_epoch(db):
    above = "SELECT above FROM sio_outbox"
    async with db.transaction():
        await emit(db)
        assert await db.fetchval(above) is None, "an epoch is to begin"
    last = await db.fetchval('SELECT "offset" FROM sio_packets')
    async with db.transaction():
        await emit(db)
        assert await db.fetchval(above) == last


# -- the relay ---------------------------------------------------------------------------------------------------
MOVING, DROWSY = 3, 4
"""States of the relay while the node with the number 0 moves rows, and while it is about to fall asleep."""

EVENTS = [{}, {"key": "k"}]
"""Events that the first statement of the function stores, and that the second one does."""


async def set_state(db: asyncpg.Connection, state: int) -> None:
    await db.execute("SELECT setval('sio_relay_state', $1)", state)


@pytest.mark.parametrize("event", EVENTS)
async def test_an_event_rings_unless_a_node_moves_rows(db, announced, event):
    for state in (1, MOVING, DROWSY, MOVING + 2, DROWSY + 2, MOVING + 4):
        await set_state(db, state)
        async with db.transaction():
            await emit(db, **event)
            await db.execute("DELETE FROM sio_relay")
            await db.execute("SELECT pg_notify(channel, $1) FROM sio_log", f"state {state}")
    await db.execute("SELECT 1")
    assert announced == ["relay", "state 1", "state 3", "relay", "state 4", "state 5", "relay", "state 6", "state 7"]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", [0, 2])
async def test_an_event_takes_no_lock_for_a_relay_that_is_off_or_ends(db, event, state):
    """The lock of an INSERT would keep the relay from ending."""
    locks = "SELECT count(*) FROM pg_locks WHERE relation = 'sio_relay'::regclass AND mode = 'RowExclusiveLock'"
    await set_state(db, state)
    async with db.transaction():
        await emit(db, **event)
        assert await db.fetchval("SELECT count(*) FROM sio_outbox") == 1
        assert await db.fetchval(locks) == 0


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", [0, 2])
async def test_an_event_that_waited_for_the_relay_while_it_was_switched_off(db, connect, event, state):
    """It reads the state again when it has its lock."""
    app = await connect()
    await set_state(db, 1)
    async with db.transaction():
        await db.execute("LOCK TABLE sio_relay")
        emitting = asyncio.create_task(emit(app, **event))
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'sio_relay'::regclass AND NOT granted"
        await until_answer(lambda: db.fetchval(waiting), lambda count: count == 1)
        await set_state(db, state)
    await emitting
    assert await db.fetchval("SELECT count(*) FROM sio_relay") == 0
    assert await db.fetchval("SELECT count(*) FROM sio_packets") == 1


async def test_one_statement_stores_an_event_for_one_room_with_a_body(db):
    """The first one, which is the only one that needs no more than these columns."""
    await db.execute("""
        REVOKE INSERT ON sio_relay FROM CURRENT_USER;
        GRANT INSERT (transaction, kind, namespace, room, body) ON sio_relay TO CURRENT_USER""")
    for state in (1, MOVING):
        await set_state(db, state)
        for event in (
            {},
            {"namespace": "n" * 256, "room": "r" * 256},
            {"body": body(65_536)},
            {"body": f'["{"e" * 97}"]'},
        ):
            assert len((await stored(db, **event))[1]) == 1
        await db.execute("SELECT sio_emit('e', '1', 'r')")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await stored(db, rooms=text("r"))


# -- server events -----------------------------------------------------------------------------------------------
SERVER_EVENT = "SELECT sio_server_side_emit_encoded($1, $2, $3)"


async def announced_event(db: asyncpg.Connection, announced: list[str]) -> tuple[Any, bytes | None]:
    """Return the last message that was announced, without its key, and the attachment that has the key."""
    await db.execute("SELECT 1")
    message = json.loads(announced[-1])
    key = message.pop("attachment", None) or message.pop("number")
    return message, await db.fetchval("SELECT data FROM sio_attachments WHERE id = $1 AND ephemeral", key)


def request(of: str, namespace: str = "/") -> dict[str, Any]:
    fields = {"namespace": namespace, "body": of}
    return {"node": "", "cursor": 0, "kind": "request", "body": {"what": "server_event", "fields": fields}}


@pytest.mark.parametrize(
    ("call", "namespace", "of"),
    [
        ("sio_server_side_emit('e')", "/", '["e"]'),
        (
            "sio_server_side_emit('\"', '[1, {\"a\": \"ü\"}, [3, 2], null]', '/x')",
            "/x",
            '["\\"",1,{"a": "ü"},[3, 2],null]',
        ),
        ("sio_server_side_emit_encoded('/', '[\"e\"] ', NULL)", "/", '["e"] '),
    ],
)
async def test_a_server_event_is_announced(db, announced, call, namespace, of):
    await db.execute(f"SELECT {call}, {call}")
    assert await announced_event(db, announced) == (request(of, namespace), None)
    assert len(announced) == 2, "PostgreSQL delivers equal messages once"


@pytest.mark.parametrize(
    ("of", "parts"), [('["e"]', pack(3)), ('["e"]', b""), (body(9_000), pack(1)), (body(9_000), None)]
)
async def test_a_server_event_with_binary_or_of_a_large_size_is_an_attachment(db, announced, of, parts):
    await db.execute(SERVER_EVENT, "/", of, parts)
    message, data = await announced_event(db, announced)
    assert message == {"node": "", "cursor": 0}
    size = struct.unpack_from("!I", data)[0]
    attached = json.loads(data[4 : 4 + size])
    attached.pop("number")
    assert (attached, data[4 + size :]) == (request(of), parts or b"")


async def test_a_server_event_is_announced_if_its_message_fits(db, announced):
    await db.execute(SERVER_EVENT, "/", body(100), None)
    await db.execute("SELECT 1")
    fits = 7_900 - len(announced[-1]) + 100
    for of in (body(fits), body(fits + 1), body(fits - 1)[:-3] + 'é"]', body(fits)[:-3] + 'é"]'):
        await db.execute(SERVER_EVENT, "/", of, None)
    await db.execute("SELECT 1")
    assert ["attachment" in payload for payload in announced[1:]] == [False, True, False, True]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("_encoded(NULL, '[\"e\"]', NULL)", asyncpg.InvalidParameterValueError, "a namespace and a body"),
        ("_encoded('/', NULL, NULL)", asyncpg.InvalidParameterValueError, "a namespace and a body"),
        ("_encoded('/', '[1]', NULL)", asyncpg.InvalidParameterValueError, "a namespace and a body"),
        ("_encoded('/', '{\"e\":1}', NULL)", asyncpg.InvalidParameterValueError, "a namespace and a body"),
        ("_encoded('/', ' [\"e\"]', NULL)", asyncpg.InvalidParameterValueError, "a namespace and a body"),
        ("_encoded('/', '[\"e\",]', NULL)", asyncpg.InvalidTextRepresentationError, "json"),
        ("(NULL)", asyncpg.NullValueNotAllowedError, "not null"),
        ("('e', NULL)", asyncpg.NullValueNotAllowedError, "not null"),
        ("('e', '[]', NULL)", asyncpg.NullValueNotAllowedError, "not null"),
        ("('e', '{}')", asyncpg.InvalidParameterValueError, "args is a JSON array"),
        ("('e', '1')", asyncpg.InvalidParameterValueError, "args is a JSON array"),
    ],
)
async def test_what_is_no_server_event_is_refused(db, announced, call, error, says):
    with pytest.raises(error, match=says):
        await db.execute(f"SELECT sio_server_side_emit{call}")
    await db.execute("SELECT 1")
    assert announced == []


@pytest.mark.parametrize(
    ("of", "parts", "error"),
    [
        (5, LARGEST - 5, asyncpg.InsufficientPrivilegeError),
        (5, LARGEST - 4, asyncpg.ProgramLimitExceededError),
        (LARGEST + 1, None, asyncpg.ProgramLimitExceededError),
    ],
)
async def test_the_largest_server_event(db, of, parts, error):
    """Without the right to store it, an event that is not too large fails, too."""
    await db.execute("REVOKE INSERT ON sio_attachments FROM CURRENT_USER")
    event = "format('[\"%s\"]', repeat('e', $1 - 4)), convert_to(repeat('x', $2), 'UTF8')"
    with pytest.raises(error):
        await db.execute(f"SELECT sio_server_side_emit_encoded('/', {event})", of, parts)
