"""``sio-pg`` on a database with nodes: its output, its exit codes, and its errors."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import os
import signal
import socket
import sys
import uuid
from contextlib import asynccontextmanager

import pytest

from sio_pg_adapter import cli, migrate
from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.store import endpoints
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.pruner import Pruned, prune
from sio_pg_adapter.store.queries import Queries
from support.waiting import until

QUERIES = Queries("public")
NODE = "INSERT INTO sio_nodes (id, channel, role, margin_seconds) VALUES ($1, '', 0, 0)"


@pytest.fixture(autouse=True)
def environment(monkeypatch, pg_dsn):
    monkeypatch.setenv("SIO_PG_DSN", pg_dsn)
    monkeypatch.delenv("COLUMNS", raising=False)


async def run(*argv: str) -> int:
    """Run a command in a thread, while the nodes run in the test's loop."""
    return await asyncio.to_thread(cli.main, list(argv))


@asynccontextmanager
async def command(*argv: str):
    """Run a command as a process, with signals and with a pipe for its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sio_pg_adapter", *argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 22,
        # as in a terminal. The tests may run in a shell's background job, which ignores the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def read_status(capsys, *options: str) -> dict:
    capsys.readouterr()
    assert await run("status", "--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def states(status: dict) -> dict[str, str]:
    return {row["id"]: row["state"] for row in status["nodes"]}


async def count_records(db) -> int:
    return await db.fetchval("SELECT count(*) FROM sio_packets")


# -- status -------------------------------------------------------------------------------------------------
async def test_status_of_two_nodes_with_sessions(start_node, db, capsys):
    a, b = await start_node(), await start_node(namespaces=["/n"])
    async with a.client(), a.client() as away, b.client("/n"):
        await away.drop()
        await a.sio.emit("e", 1)
        await b.passed(a.manager.node.cursor.offset)
        status = await read_status(capsys)
        nodes = {node["id"]: node for node in status["nodes"]}
        for node in (a, b):
            row = nodes[node.manager.node.id]
            assert row.pop("started_at") and row.pop("seconds") > 0
            assert row == {
                "id": node.manager.node.id,
                "state": "live",
                "host": socket.gethostname(),
                "process": os.getpid(),
                "clients": 1,
                "sessions": 1,
                "cursor": node.manager.node.cursor.offset,
                "lag": 0,
                "lag_seconds": 0.0,
                "reconnects": 0,
                "reason": "",
                "durability": "flush",
            }
        assert status["sessions"] == {
            "live": 2,
            "away": 1,
            "expiring": 0,
            "namespaces": [
                {"namespace": "/", "live": 1, "away": 1, "expiring": 0},
                {"namespace": "/n", "live": 1, "away": 0, "expiring": 0},
            ],
        }
        assert status["log"].keys() == {
            *("head", "floor", "epoch", "position", "rate", "rate_seconds", "oldest_at", "oldest_seconds"),
            "keep_seconds",
        }
        assert status["log"]["head"] == a.manager.node.cursor.offset and 0 < status["log"]["rate"] <= 1
        assert status["note"] is None and status["schema"]["name"] == "public"
        names = {row[0] for row in await db.fetch(r"SELECT relname FROM pg_class WHERE relname LIKE 'sio\_%'")}
        sizes = {table["name"]: table for table in status["tables"]}
        assert {"sio_packets", "sio_sessions", "sio_alembic_version"} <= sizes.keys() <= names
        assert sizes["sio_sessions"]["table_bytes"] == await db.fetchval("SELECT pg_table_size('sio_sessions')")
        assert sizes["sio_sessions"]["index_bytes"] == await db.fetchval("SELECT pg_indexes_size('sio_sessions')")


@pytest.mark.parametrize("columns", [60, 120])
async def test_status_for_people_fits_the_terminal(start_node, db, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    node = await start_node()
    async with node.client():
        await db.execute(NODE, uuid.UUID(int=1))
        assert await run("status") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert node.manager.node.id[:8] in out and "live" in out and "…" not in out
    assert "00000000" in out and "missing" in out and "\x1b" not in out


async def test_status_shows_how_long_records_are_kept(start_node, db, capsys):
    assert (await read_status(capsys))["log"]["keep_seconds"] == 325.0
    await start_node(manager={"retention": 86_400})
    assert (await read_status(capsys))["log"]["keep_seconds"] == 86_400.0
    assert await run("status") == 0
    assert "kept      at least 1 d" in capsys.readouterr().out
    await start_node(manager={"retention": math.inf})
    assert (await read_status(capsys))["log"]["keep_seconds"] is None
    assert await run("status") == 0
    assert "kept      everything, for now" in capsys.readouterr().out


async def test_a_live_node_that_does_not_answer_is_silent(start_node, db, capsys):
    node, other = await start_node(), uuid.uuid4()
    async with db.transaction():  # as a node does that then gets no notifications
        row = await db.fetchrow(QUERIES["node_start"], str(other), "nowhere", 120.0, 120.0, 0.0)
    assert await db.fetchval(QUERIES["node_lock"], row["number"])
    status = await read_status(capsys, "--timeout", "0.2")
    assert states(status) == {node.manager.node.id: "live", other.hex: "silent"}
    silent = next(row for row in status["nodes"] if row["state"] == "silent")
    assert silent["lag"] is silent["cursor"] is silent["clients"] is None
    assert await run("status", "--timeout", "0.2") == 0
    assert f"{other.hex[:8]}: no answer" in capsys.readouterr().out


async def test_a_node_of_an_earlier_version_is_not_waited_for(start_node, capsys):
    node = await start_node()
    del node.manager.node.requests._services["status"]
    async with asyncio.timeout(30):  # it answers that the request is unknown
        (row,) = (await read_status(capsys, "--timeout", "60"))["nodes"]
    assert (row["state"], row["cursor"]) == ("silent", None)


async def test_a_node_that_is_behind_answers_at_once_and_its_lag_is_counted_in_the_log(start_node, store, db, capsys):
    node = await start_node()
    await node.manager.node.cursor.close()
    node.manager.node.cursor._reading = True  # also ignores notifications
    for _ in range(3):
        await store.emit()
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    (row,) = (await read_status(capsys))["nodes"]
    assert (row["state"], row["lag"]) == ("live", 3) and row["lag_seconds"] >= 3600


async def test_a_lost_node_is_missing_then_dead_and_its_sessions_are_not_live(start_node, living, db, capsys):
    await living.open("s")
    await living.open("t", "q")
    await db.execute("UPDATE sio_sessions SET node = NULL, expires_at = clock_timestamp() WHERE sid = 't'")
    assert (await read_status(capsys))["sessions"]["live"] == 1
    gone = uuid.uuid4()
    await db.execute(NODE, gone)
    await db.execute("UPDATE sio_sessions SET node = $1 WHERE sid = 's'", gone)
    status = await read_status(capsys)
    assert states(status)[gone.hex] == "missing"
    del status["sessions"]["namespaces"]
    assert status["sessions"] == {"live": 0, "away": 1, "expiring": 1}
    await db.execute(
        "UPDATE sio_nodes SET died_at = clock_timestamp() - interval '1 h', recovery_seconds = 60 WHERE id = $1", gone
    )
    status = await read_status(capsys)
    assert states(status)[gone.hex] == "dead"
    assert (status["sessions"]["away"], status["sessions"]["expiring"]) == (0, 2)


async def test_status_without_a_node_and_without_a_record(capsys):
    status = await read_status(capsys)
    assert status["nodes"] == [] and status["log"]["oldest_at"] is None and status["log"]["rate"] == 0
    assert await run("status") == 0
    out = capsys.readouterr().out
    assert "no node is running" in out and "the log is empty" in out
    assert f"log head  {status['log']['head']} (no record yet in epoch {status['log']['epoch']})" in out


@pytest.mark.usefixtures("store")
async def test_the_head_of_a_new_epoch_without_a_record_is_no_negative_offset(db, capsys):
    await db.execute("UPDATE sio_log SET floor = 0")
    log = (await read_status(capsys))["log"]
    assert (log["position"], log["epoch"]) == (0, await db.fetchval("SELECT max(epoch) FROM sio_epochs"))
    assert await run("status") == 0
    assert f"(no record yet in epoch {log['epoch']})" in capsys.readouterr().out


async def test_the_head_is_an_offset_in_an_epoch(store, capsys):
    offset = await store.emit()
    log = (await read_status(capsys))["log"]
    assert await run("status") == 0
    assert f"log head  {offset} (offset {log['position']} in epoch {log['epoch']})" in capsys.readouterr().out
    assert log["position"] > 0


async def test_a_missing_node_is_explained_without_a_promise(db, capsys):
    gone = uuid.uuid4()
    await db.execute(NODE, gone)
    assert await run("status") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{gone.hex[:8]}: no connection to the database. Other nodes declare the node dead" in out
    assert "second" not in out.partition("sessions live")[0]


# -- emit ----------------------------------------------------------------------------------------------------
async def test_emit_reaches_those_it_is_for(start_node, db, capsys):
    node = await start_node()
    async with node.client() as first, node.client() as second:
        assert await run("emit", "hello", '{"n": 1}', "[2]", f"--room={first.sid}", f"--room={second.sid}") == 0
        assert await first.event() == await second.event() == ["hello", {"n": 1}, [2]]
        offset = await db.fetchval('SELECT max("offset") FROM sio_packets')
        assert capsys.readouterr().out == f"stored at offset {offset}\n"
        assert await run("emit", "bye", f"--skip-sid={first.sid}", "--json") == 0
        assert await second.event() == ["bye"] and first.waiting() == []
        assert json.loads(capsys.readouterr().out) == {"offset": offset + 1}
        for stored in (True, False):
            assert await run("emit", "once", "--key", "k", "--json") == 0
            assert json.loads(capsys.readouterr().out) == {"offset": offset + 2, "stored": stored}
        await node.sio.enter_room(first.sid, "muted")
        assert await run("emit", "hi", "--skip-room", "muted", "--skip-room", "nobody's", "--json") == 0
        assert [await second.event(), await second.event()] == [["once"], ["hi"]]
        assert await first.event() == ["once"] and first.waiting() == []
        capsys.readouterr()
        assert await run("emit", "twice", "--key", "k") == 0
        assert capsys.readouterr().out == f"not stored: the event at offset {offset + 2} has the same key\n"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["emit", "e", "{"], 2, "argument 1 of the event is not JSON"),
        (["emit", "e", "1", "hello"], 2, "argument 2 of the event is not JSON"),
        (["emit", "e", "--namespace", "chat"], 2, "takes a name that begins with /"),
        (["emit", "e", "[NaN]"], 2, "argument 1 of the event is not JSON: NaN"),
        (["emit", "e", "1e400"], 1, "inf at [1]"),
        (["emit", "e", "--room", "x" * 600], 1, "room has 600 bytes"),
        (["emit", "e", "--key", ""], 1, "key takes text that is not empty"),
        (["emit"], 2, "the following arguments are required: EVENT. See"),
        (["tail", "--last", "-1"], 2, "whole number"),
        (["status", "--timeout", "x"], 2, "takes seconds"),
        (["status", "--dsn", ""], 2, "--dsn: it is empty. Give a URL"),
        (["tail", "--listen-dsn", " "], 2, "--listen-dsn: it is empty. Give a URL"),
        (["migrate", "--dsn="], 2, "--dsn: it is empty. Give a URL"),
        (["demo", "--port", "99999"], 2, "--port: it takes a port from 0 to 65535"),
        (["nothing"], 2, "invalid choice"),
    ],
)
async def test_wrong_arguments_are_named_in_one_line_before_anything_is_stored(db, argv, code, words):
    async with command(*argv) as process:
        out, err = await process.communicate()
    assert (process.returncode, out) == (code, b"")
    assert words in err.decode() and err.count(b"\n") == 1 and err.startswith(b"sio-pg")
    assert await count_records(db) == 0


# -- prune -----------------------------------------------------------------------------------------------------
async def test_prune_prints_what_it_deleted(store, db, capsys):
    for _ in range(3):
        await store.emit()
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    assert await run("prune", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"sessions": 0, "records": 3} and await count_records(db) == 0
    assert await run("prune") == 0
    assert capsys.readouterr().out == "deleted 0 sessions and 0 records\n"


async def test_prune_reports_its_progress(store, db, pg_dsn):
    for sid in "ab":
        await store.open(sid, sid)
    await store.emit()
    await db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp()")
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    database, reports = Database(pg_dsn), []
    await database.open()
    try:
        assert await prune(database, reports.append) == Pruned(2, 1)
    finally:
        await database.close()
    assert reports[0] == Pruned(2, 0) and reports[-1] == Pruned(2, 1)


# -- without a command, and errors of the database -------------------------------------------------------------------
async def test_without_a_command_it_prints_the_help_and_fails_as_git_does():
    async with command() as process:
        out, err = await process.communicate()
    assert (process.returncode, err) == (1, b"") and out.startswith(b"usage: sio-pg") and b"migrate" in out


async def test_it_prints_its_version():
    async with command("--version") as process:
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.decode() == f"sio-pg {importlib.metadata.version('sio-pg-adapter')}\n"


COMMANDS = [["status"], ["tail"], ["emit", "e", "1"], ["prune"]]


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
async def test_an_unmigrated_database_is_an_error_that_names_the_command(pg_empty_dsn, capsys, argv):
    assert await run(*argv, "--dsn", pg_empty_dsn, "--schema", "chat") == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "`sio-pg migrate --schema chat`" in printed.err


async def test_a_wrong_dsn_to_listen_on_is_not_reported_as_a_pooler(capsys):
    assert await run("tail", "--listen-dsn", "postgresql://127.0.0.1:99999/app") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("sio-pg: listen_dsn is wrong") and printed.err.count("\n") == 1


@pytest.mark.parametrize("argv", [*COMMANDS, ["migrate"]], ids=" ".join)
async def test_a_database_that_cannot_be_reached_is_an_error_that_names_the_option(capsys, argv):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        dsn = f"postgresql://app@127.0.0.1:{taken.getsockname()[1]}/app"
        assert await run(*argv, "--dsn", dsn) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "cannot be reached" in printed.err and "--dsn" in printed.err and "SIO_PG_DSN" in printed.err


@pytest.mark.parametrize("argv", [*COMMANDS, ["migrate"]], ids=" ".join)
async def test_a_host_that_does_not_answer_is_an_error_with_a_reason(capsys, monkeypatch, argv):
    for module in (endpoints, migrate):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.2)  # seconds, instead of ten
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        dsn = f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app"
        assert await run(*argv, "--dsn", dsn) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "cannot be reached: the host does not answer. Check --dsn or SIO_PG_DSN" in printed.err


@pytest.mark.parametrize("argv", [*COMMANDS, ["migrate"]], ids=" ".join)
async def test_an_empty_variable_is_named_and_does_not_mean_a_local_database(capsys, monkeypatch, argv):
    monkeypatch.setenv("SIO_PG_DSN", "")
    assert await run(*argv) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("sio-pg: SIO_PG_DSN is empty. Set it to a URL")


@pytest.mark.parametrize("argv", [*COMMANDS, ["migrate"]], ids=" ".join)
@pytest.mark.parametrize("dsn", ["http://localhost/app", "postgresql://app@localhost:port/app"])
async def test_a_wrong_dsn_is_an_error_of_one_line(capsys, argv, dsn):
    assert await run(*argv, "--dsn", dsn) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "dsn" in printed.err.lower()


# -- tail --------------------------------------------------------------------------------------------------
async def lines(process, number: int) -> list[str]:
    async with asyncio.timeout(60):
        return [(await process.stdout.readline()).decode().rstrip("\n") for _ in range(number)]


async def records(process, number: int) -> list[dict]:
    return [json.loads(line) for line in await lines(process, number)]


async def test_tail_shows_the_last_ones_then_follows_until_interrupted(store):
    for n in range(3):
        await store.emit(body=f'["old",{n}]')
    async with command("tail", "--json", "--last", "2", "--payload") as tail:
        assert [record["payload"] for record in await records(tail, 2)] == [[1], [2]]
        offset = await store.emit("x", "y", namespace="/n", skip=("s",), skip_rooms=("m",), body='["new",{"a":"ü"}]')
        (record,) = await records(tail, 1)
        assert record.pop("at").endswith("Z")
        assert record == {
            "offset": offset,
            "kind": "event",
            "namespace": "/n",
            "rooms": ["x", "y"],
            "event": "new",
            "skip_sids": ["s"],
            "skip_rooms": ["m"],
            "members": None,
            "sid": None,
            "node": None,
            "bytes": len('["new",{"a":"ü"}]'.encode()),
            "payload": [{"a": "ü"}],
            "binary": [],
        }
        tail.send_signal(signal.SIGINT)
        assert await tail.wait() == 130
        assert (await tail.stdout.read(), await tail.stderr.read()) == (b"", b"")


async def test_tail_without_last_begins_now(store):
    await store.emit(body='["old"]')
    async with command("tail", "--json") as tail:
        first = asyncio.create_task(records(tail, 1))
        while not first.done():
            await store.emit(body='["new"]')
            await asyncio.wait({first}, timeout=0.05)  # it does not announce that it has begun
        assert (await first)[0]["event"] == "new"


async def test_tail_shows_the_records_that_match_also_across_pages(store):
    selected = []
    for n in range(1_300):  # pages are of 500
        event = n in (1, 2, 700)
        future = store.emit("r" if event else "q", namespace="/n", body='["e"]')
        if event:
            selected.append(await future)
        else:
            task = asyncio.ensure_future(future)
    await task
    for room, namespace, name in (("r", "/", "e"), ("q", "/n", "e"), ("r", "/n", "f")):
        await store.emit(room, namespace=namespace, body=json.dumps([name]))
    await store.move(Kind.ENTER, "s", "r")
    filters = ("--namespace", "/n", "--room", "r", "--event", "e", "--json")
    async with command("tail", "--last", "9", *filters) as nine, command("tail", "--last", "2", *filters) as two:
        assert [record["offset"] for record in await records(nine, 3)] == selected
        assert [record["offset"] for record in await records(two, 2)] == selected[1:]
        await store.emit("q", namespace="/n")
        offset = await store.emit("r", namespace="/n")
        assert (await records(two, 1))[0]["offset"] == offset


async def test_tail_hides_payloads_and_shows_moves_and_large_events(store, start_node):
    node = await start_node()
    large = "ü" * 100_000
    await node.sio.emit("läuft", {"secret": large, "b": b"\0\1"}, room="x")
    await node.sio.emit("small", "secret")
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        async with command("tail", "--last", "3") as tail:
            first, second, third = await lines(tail, 3)
        assert "läuft to x" in first and " 600 kB " in first and "secret" not in first
        assert "small to everybody" in second and "secret" not in second
        assert f"{wire.sid} enters x" in third
        async with command("tail", "--last", "3", "--json", "--payload") as tail:
            first, _, third = await records(tail, 3)
        assert first["payload"] == [{"secret": large, "b": {"_placeholder": True, "num": 0}}]
        assert first["binary"] == ["AAE="] and first["event"] == "läuft"
        assert (third["kind"], third["sid"], third["rooms"], third["payload"]) == ("enter", wire.sid, ["x"], None)


async def test_tail_shows_the_moves_of_all_members_of_a_room(store, db):
    await db.execute("""SELECT sio_enter_room('x', room => 'u'), sio_leave_room('x', room => E'u\r')
                            , sio_disconnect(room => 'u')""")
    await db.execute("SELECT sio_change('enter_room', '/', '[\"x\",\"y\"]', NULL, '[\"\"]', '[\"s\"]', '[\"m\"]')")
    async with command("tail", "--last", "4") as tail:
        printed = await lines(tail, 4)
    for line, text in zip(
        printed,
        (
            "members of u enter x",
            "members of u\\r leave x",
            "members of u are disconnected",
            "members of the namespace enter x, y except s, m",
        ),
        strict=True,
    ):
        assert line.rstrip().endswith(text), printed
    async with command("tail", "--last", "2", "--json") as tail:
        kick, enter = await records(tail, 2)
    assert (kick["kind"], kick["members"], kick["rooms"]) == ("members_kick", ["u"], [])
    assert (enter["members"], enter["skip_sids"], enter["skip_rooms"]) == ([], ["s"], ["m"])


@pytest.mark.parametrize("more", [[], ["--payload"]])
async def test_tail_shows_records_that_cannot_be_read_and_goes_on(store, db, more):
    await store.emit("x", body='["before"]')
    for kind, value in ((99, "NULL"), (10, "NULL"), (7, "'u'"), (0, "'no json'"), (0, "'[1]'"), (0, "NULL")):
        column = "data" if kind else "body"
        await db.execute(f"""INSERT INTO sio_packets_0 ("offset", kind, namespace, room, {column})
                             VALUES (nextval('sio_packets_offset_seq'), {kind}, '/', 'x', {value})""")
    await store.emit("x", body='["after"]')
    async with command("tail", "--last", "8", *more) as tail:
        first, *broken, last = await lines(tail, 8)
    assert first.endswith("before to x") and last.endswith("after to x")
    assert [line.endswith("x cannot be read") for line in broken] == [True] * 6, broken


async def test_tail_escapes_the_control_characters_of_clients(store):
    await store.emit("\x1b]0;room\x07", body='["\\u001b[31mred\\n", "\x9b2J"]')
    async with command("tail", "--last", "1", "--payload") as tail:
        (line,) = await lines(tail, 1)
    assert line.isprintable() and r"\x1b[31mred\n to \x1b]0;room\x07" in line


async def test_tail_ends_when_its_output_is_closed(store):
    await store.emit()
    reading, writing = os.pipe()
    tail = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sio_pg_adapter", "tail", "--last", "1"),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            assert "e to everybody" in await asyncio.to_thread(pipe.readline)
        async with asyncio.timeout(60):
            assert await tail.wait() == 0  # the log is quiet
    finally:
        if tail.returncode is None:
            tail.kill()
        _, err = await tail.communicate()
    assert err == b""


@pytest.mark.parametrize("argv", [["migrate", "--sql"], ["status"], ["emit", "e", "--json"]], ids=" ".join)
async def test_closed_output_is_a_normal_end(argv):
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sio_pg_adapter", *argv), stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    os.close(writing)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


async def test_tail_goes_on_after_the_database_was_away_and_says_so(store, superuser, pg_admin):
    await store.emit(body='["first"]')
    async with command("tail", "--last", "1", "--json") as tail:
        assert (await records(tail, 1))[0]["event"] == "first"
        name = await superuser.fetchval("SELECT current_database()")
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        kept = [
            (await store.manager.database.writer._connection.fetchval("SELECT pg_backend_pid()")),
            superuser.get_server_pid(),
        ]
        assert await superuser.fetchval(f"{cut} AND pid <> ALL ($1)", kept) >= 2
        assert b"was lost, trying again" in await tail.stderr.readline()
        offset = await store.emit(body='["missed"]')
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        assert await tail.stderr.readline() == b"sio-pg: connected again\n"
        assert [record["offset"] for record in await records(tail, 1)] == [offset]
        assert (await store.emit(body='["last"]')) == (await records(tail, 1))[0]["offset"]
        tail.send_signal(signal.SIGINT)
        assert await tail.wait() == 130 and await tail.stderr.read() == b""


async def test_the_console_script_is_this(start_node):
    node = await start_node()
    async with command("status") as process:
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"") and node.manager.node.id[:8].encode() in out
    await until(lambda: not node.manager.node.requests._pending)
