"""Each metric moves when the thing happens, by as much as happened, and what is asked for in the dashboard exists."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from integration.test_losses import LISTENING, terminate
from integration.test_pruner import age
from sio_pg_adapter import AsyncPostgresManager, ConfigurationError, StoreUnavailable
from sio_pg_adapter.local.returns import MOST_RETURNS
from sio_pg_adapter.log.verdict import Reason
from sio_pg_adapter.metrics import collector
from support.asgi_client import AsgiClient
from support.pruning import prune_once
from support.waiting import until

ROOT = Path(__file__).parents[2]


class Scraped:
    """What a scrape says, of one manager."""

    def __init__(self, manager, name="public"):
        self.registry = CollectorRegistry()
        self.registry.register(collector(manager))
        self.name = name

    def __call__(self, metric: str, **labels: str) -> int:
        value = self.registry.get_sample_value(f"sio_pg_{metric}", {"manager": self.name, **labels})
        assert value is not None and value == int(value), (metric, labels)
        return int(value)

    def verdicts(self) -> dict[str, int]:
        """Those that are not 0, by reason; `recovered` among them."""
        [family] = [one for one in self.registry.collect() if one.name == "sio_pg_recoveries"]
        of = {s.labels["reason"] or s.labels["verdict"]: int(s.value) for s in family.samples}
        return {reason: count for reason, count in of.items() if count}


async def test_what_is_emitted_is_appended_applied_and_delivered_to_each(start_node):
    a, b = await start_node(), await start_node()
    of_a, of_b = Scraped(a.manager), Scraped(b.manager)
    async with b.client() as one, b.client() as other:
        appended, applied = of_a("events_appended_total"), of_b("records_applied_total")
        for _ in range(3):
            await a.sio.emit("e")
        await a.sio.emit("only one", room=one.sid)
        await a.sio.emit("not the other", skip_sid=other.sid)
        await a.sio.emit("end")
        assert await other.events_until("end") == [["e"]] * 3
        assert len(await one.events_until("end")) == 5
        assert of_a("events_appended_total") == appended + 6
        assert of_b("events_appended_total") == 0
        assert of_b("records_applied_total") == applied + 6
        assert of_b("events_delivered_total", kind="stored") == 6 + 4
        assert of_a("events_delivered_total", kind="stored") == 0
        assert of_b("events_delivered_total", kind="unstored") == 0

        await a.sio.emit("v", volatile=True)
        assert json.loads((await one.recv())[1:])[0] == "v"
        assert json.loads((await other.recv())[1:])[0] == "v"
        await b.sio.emit("here", ignore_queue=True)
        assert of_b("events_delivered_total", kind="unstored") == 4
        asked = asyncio.create_task(a.sio.call("question", to=one.sid))
        while not (frame := await one.recv()).startswith("2") or "question" not in frame:
            pass
        one.send(f"3{frame[1 : frame.index('[')]}[]")
        await asked
        assert of_b("events_delivered_total", kind="unstored") == 5
        assert of_a("events_appended_total") == appended + 6


async def test_batches_are_counted_by_their_entries(start_node):
    node = await start_node()
    scraped = Scraped(node.manager)
    await asyncio.gather(*(node.sio.emit("e") for _ in range(30)))
    assert scraped("events_appended_total") == 30
    assert scraped("batch_entries_sum") == 30
    batches = scraped("batch_entries_count")
    assert 0 < batches < 30
    assert scraped("batch_entries_bucket", le="+Inf") == batches
    buckets = [
        scraped("batch_entries_bucket", le=le) for le in ("1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "500.0")
    ]
    assert buckets == sorted(buckets) and buckets[-1] == batches and buckets[-3] < batches


async def test_what_is_waiting_shows_while_the_database_is_slow(start_node, db):
    node = await start_node()
    scraped = Scraped(node.manager)
    emits = []
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        emits.append(asyncio.create_task(node.sio.emit("first")))
        await until(lambda: node.manager.node.writer._waiting)
        await until(lambda: not node.manager.node.writer._waiting)  # it is being committed
        assert scraped("queue_length", queue="log") == 0
        emits += [asyncio.create_task(node.sio.emit("e")) for _ in range(7)]
        await until(lambda: len(node.manager.node.writer._waiting) == 7)
        assert scraped("queue_length", queue="log") == 7
        assert scraped("events_appended_total") == 0
    await asyncio.gather(*emits)
    assert scraped("queue_length", queue="log") == 0
    assert scraped("events_appended_total") == 8


async def test_emits_over_the_backlog_wait_too(start_node, db, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.store.writer.BACKLOG", 3)
    node = await start_node()
    scraped = Scraped(node.manager)
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        emits = [asyncio.create_task(node.sio.emit("e")) for _ in range(10)]
        await until(lambda: node.manager.node.writer._backlog.waiting == 7)
        await until(lambda: not node.manager.node.writer._waiting)  # three are being committed
        assert scraped("queue_length", queue="log") == 7
    await asyncio.gather(*emits)
    assert scraped("queue_length", queue="log") == 0


async def test_messages_to_other_nodes_wait_in_a_queue(start_node):
    node = await start_node()
    scraped = Scraped(node.manager)
    emits = [asyncio.create_task(node.sio.emit("v", volatile=True)) for _ in range(3)]
    await until(lambda: node.manager.node.messages.waiting == 3)
    assert scraped("queue_length", queue="messages") == 3
    await asyncio.gather(*emits)
    assert scraped("queue_length", queue="messages") == 0


async def test_what_was_missed_is_replayed_and_not_delivered(start_node):
    a, b = await start_node(), await start_node()
    of_b = Scraped(b.manager)
    async with a.client() as wire:
        await wire.drop()
        for i in range(5):
            await a.sio.emit("e", i)
        async with b.client(pid=wire.pid) as again:
            assert [await again.event() for _ in range(5)] == [["e", i] for i in range(5)]
            assert of_b("events_replayed_total") == 5
            assert of_b("events_delivered_total", kind="stored") == 0
            assert of_b.verdicts() == {"recovered": 1}
            assert of_b("takeovers_total") == 0
            await a.sio.emit("live")
            assert await again.event() == ["live"]
            assert of_b("events_delivered_total", kind="stored") == 1
            assert of_b("events_replayed_total") == 5
    assert Scraped(a.manager).verdicts() == {}


async def test_what_came_while_a_first_connect_was_decided_is_delivered_not_replayed(start_node):
    node = await start_node()
    scraped = Scraped(node.manager)

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.emit("e")

    async with node.client() as wire:
        assert await wire.event() == ["e"]
        assert scraped("events_delivered_total", kind="stored") == 1
        assert scraped("events_replayed_total") == 0


@pytest.mark.parametrize("reason", Reason)
async def test_each_reason_of_a_fresh_session_is_counted(start_node, db, pg_dsn, reason):
    node = await start_node(recovery={"max_missed_packets": 5})
    scraped = Scraped(node.manager)
    async with node.client() as wire:
        await node.sio.emit("seen")
        await wire.event()
        await wire.drop()
        auth = {"pid": wire.pid, "offset": wire.offset} | {
            Reason.MALFORMED_PID: {"pid": "x" * 1_000},
            Reason.FOREIGN_OFFSET: {"offset": "A" * 22},
            Reason.UNKNOWN_SESSION: {"pid": "n" * 32},
        }.get(reason, {})
        if reason is Reason.FUTURE_OFFSET:
            auth["offset"] = node.manager.node.epochs.codec.encode(node.manager.node.cursor.offset + 1_000, "/")
        elif reason is Reason.STALE_OFFSET:
            await db.execute('UPDATE sio_sessions SET stale_offset = (SELECT min("offset") FROM sio_packets)')
        elif reason is Reason.DELETED_EVENTS:
            await node.sio.emit("missed")
            await age(db)
            await prune_once(pg_dsn)
        elif reason is Reason.TOO_MANY_MISSED:
            for _ in range(6):
                await node.sio.emit("missed")
        elif reason is Reason.STUCK:
            await node.sio.emit("missed")
            for _ in range(MOST_RETURNS):
                async with node.client(**auth) as again:
                    assert again.sid == wire.sid
        before = {"recovered": MOST_RETURNS} if reason is Reason.STUCK else {}
        assert scraped.verdicts() == before
        async with node.client(**auth) as again:
            assert again.sid != wire.sid
            assert scraped.verdicts() == {**before, reason.name.lower(): 1}


async def test_who_presents_nothing_is_not_judged(start_node):
    node = await start_node()
    async with node.client():
        assert Scraped(node.manager).verdicts() == {}


async def test_a_session_that_a_connection_still_held_is_a_takeover_where_it_came_back(start_node):
    a, b = await start_node(), await start_node()
    of_a, of_b = Scraped(a.manager), Scraped(b.manager)
    async with a.client() as wire, b.client(pid=wire.pid) as again:
        assert again.sid == wire.sid
        assert await wire.rest() == []
        assert of_b("takeovers_total") == 1 and of_a("takeovers_total") == 0
        assert of_b.verdicts() == {"recovered": 1}


async def test_a_connect_that_the_database_breaks_is_counted(start_node, db):
    node = await start_node()
    scraped = Scraped(node.manager)
    async with node.client():
        await db.execute("ALTER TABLE sio_sessions RENAME TO gone")
        async with AsgiClient(node.sio) as wire:
            wire.send("0")
            assert await wire.rest() == []
        assert scraped("connects_broken_total") == 1
        await db.execute("ALTER TABLE gone RENAME TO sio_sessions")


async def test_a_replay_that_breaks_is_counted(start_node, monkeypatch):
    async def away(*args):
        raise StoreUnavailable("reading what a client missed")

    monkeypatch.setattr("sio_pg_adapter.server.replay.PAGE", 7)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 3)
    node = await start_node()
    scraped = Scraped(node.manager)
    async with node.client() as wire:
        await wire.drop()
        for i in range(50):
            await node.sio.emit("e", i)
        async with AsgiClient(node.sio) as again:
            again.stall()
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await again.held.wait()
            monkeypatch.setattr(node.manager.node.sessions, "page", away)
            again.flow()
            connected, *events = await again.rest()
            assert connected.startswith("0") and 0 < len(events) < 50
        assert scraped("connects_broken_total") == 1
        assert scraped("events_replayed_total") == len(events)


async def test_a_handler_that_raises_breaks_its_connect(start_node, expected_errors):
    expected_errors.append("and its client comes back")
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        raise RuntimeError

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert await wire.rest() == []
    assert Scraped(node.manager)("connects_broken_total") == 1


async def test_a_replay_that_retention_overtook_is_broken(start_node, db, pg_dsn, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.server.replay.PAGE", 7)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 3)
    node = await start_node()
    async with node.client() as wire:
        await wire.drop()
        for _ in range(50):
            await node.sio.emit("e")
        async with AsgiClient(node.sio) as again:
            again.stall()
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await again.held.wait()
            await age(db)
            await prune_once(pg_dsn)
            again.flow()
            assert 0 < len(await again.rest()) < 51
        scraped = Scraped(node.manager)
        assert scraped("connects_broken_total") == 1
        assert scraped.verdicts() == {"recovered": 1}


async def test_the_listener_reconnects(start_node, superuser):
    node = await start_node()
    scraped = Scraped(node.manager)
    assert scraped("listening") == 1 and scraped("listener_reconnects_total") == 0
    assert await terminate(superuser, LISTENING) == 1
    await until(lambda: not node.manager.node.listener.connected)
    assert scraped("listening") == scraped("healthy") == 0
    await until(lambda: node.manager.node.listener.reconnects)
    assert scraped("listening") == 1 and scraped("listener_reconnects_total") == 1


async def test_the_lag_is_what_the_cursor_has_yet_to_pass(start_node, monkeypatch):
    node = await start_node()
    scraped = Scraped(node.manager)
    assert scraped("cursor_lag") == 0
    async with node.client() as wire:
        read, go_on = node.manager.node.reader.range, asyncio.Event()

        async def slow(*args):
            await go_on.wait()
            return await read(*args)

        monkeypatch.setattr(node.manager.node.reader, "range", slow)
        node.manager.node.cursor.ring()
        await until(lambda: node.manager.node.cursor._reading)
        emits = [asyncio.create_task(node.sio.emit("e")) for _ in range(4)]
        await until(lambda: node.manager.node.cursor.lag == 4)  # of the log's first epoch, which begins with them
        assert scraped("cursor_lag") == 4 == (await node.manager.health()).lag
        go_on.set()
        await asyncio.gather(*emits)
        assert scraped("cursor_lag") == 0
        assert [await wire.event() for _ in range(4)] == [["e"]] * 4


async def test_a_slow_client_is_cut(start_node):
    node = await start_node(manager={"max_queued_packets": 20})
    scraped = Scraped(node.manager)
    async with node.client() as slow, node.client() as quick:
        slow.stall()
        for i in range(10):
            await node.sio.emit("e", i)
            await quick.event()
        waiting = scraped("longest_client_queue")
        assert 8 <= waiting <= 10 and waiting == scraped("queue_length", queue="clients")
        assert scraped("slow_clients_cut_total") == 0
        for i in range(30):
            await node.sio.emit("e", i)
            await quick.event()
        await until(lambda: node.manager.clients.current(slow.sid, "/") is None)
        assert scraped("slow_clients_cut_total") == 1
        assert scraped("longest_client_queue") == 0
        slow.flow()
        await slow.drop()


async def test_clients_by_state_and_the_sessions_that_they_hold(start_node):
    node = await start_node()
    scraped = Scraped(node.manager)
    go_on = asyncio.Event()

    @node.sio.event
    async def connect(sid, environ, auth):
        if auth:
            await go_on.wait()

    assert [scraped("clients", state=state) for state in ("connecting", "replaying", "live")] == [0, 0, 0]
    async with node.client(), node.client() as other, AsgiClient(node.sio) as waiting:
        waiting.send('0{"wait":1}')
        await until(lambda: scraped("clients", state="connecting"))
        assert scraped("clients", state="live") == 2 and scraped("sessions_held") == 2
        await other.drop()
        assert scraped("clients", state="live") == 1 and scraped("sessions_held") == 1
        go_on.set()
        assert (await waiting.recv()).startswith("0")
        assert scraped("clients", state="live") == 2 and scraped("sessions_held") == 2


async def test_sessions_held_are_none_without_recovery(start_node):
    node = await start_node(recovery=None)
    scraped = Scraped(node.manager)
    async with node.client():
        assert scraped("clients", state="live") == 1 and scraped("sessions_held") == 0


# -- the collector -----------------------------------------------------------------------------------------------
async def test_many_scrapes_of_many_managers_in_both_formats(start_node, pg_dsn):
    """One that was not started, one that only writes, one that was closed; the same series in all scrapes."""
    node, closed = await start_node(), await start_node()
    registry = CollectorRegistry(auto_describe=True)
    written = AsyncPostgresManager(pg_dsn, write_only=True)
    registry.register(
        collector(node.manager, new=AsyncPostgresManager(pg_dsn), writer=written, closed=closed.manager)
    )
    names = series(registry)
    await closed.sio.shutdown()
    async with written, node.client() as wire:
        for i in range(20):
            await node.sio.enter_room(wire.sid, f"room {i}")
            await written.emit("e", i, room=f"room {i}", namespace=f"/n{i}")
        assert registry.get_sample_value("sio_pg_events_appended_total", {"manager": "writer"}) == 20
        assert series(registry) == names
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(collector(node.manager))
    of = {name: {labels["manager"] for n, labels in map(undo, names) if n == name} for name in dict(map(undo, names))}
    assert of["sio_pg_events_appended_total"] == {"public", "new", "writer", "closed"}
    assert of["sio_pg_cursor_lag"] == {"public", "new", "closed"}  # a writer follows nothing
    parsed = {family.name for family in parse_openmetrics(openmetrics(registry).decode())}
    assert parsed == {family.name for family in registry.collect()}


def series(registry) -> set[str]:
    families = parse(generate_latest(registry).decode())
    return {json.dumps([s.name, s.labels], sort_keys=True) for family in families for s in family.samples}


def undo(text: str) -> tuple[str, dict[str, str]]:
    name, labels = json.loads(text)
    return name, labels


async def test_scrapes_in_a_thread_while_clients_come_and_go(start_node):
    """As by `prometheus_client.start_http_server`."""
    node = await start_node()
    scraped, stop = Scraped(node.manager), asyncio.Event()
    sizes = []

    def scrape() -> int:
        while not stop.is_set():
            sizes.append(len(generate_latest(scraped.registry)))
        return scraped("sessions_held")

    scraping = asyncio.create_task(asyncio.to_thread(scrape))
    await until(lambda: sizes)
    try:
        for i in range(15):
            async with node.client(), node.client():
                await node.sio.emit("e", i)
    finally:
        stop.set()
    assert await scraping == 0
    assert len(sizes) > 15


def test_names_that_clash_and_none_are_refused():
    a, b = AsyncPostgresManager("postgresql://a/x"), AsyncPostgresManager("postgresql://b/x")
    with pytest.raises(ConfigurationError, match=r"two managers are called 'public'. Name them: collector\(public="):
        collector(a, b)
    with pytest.raises(ConfigurationError, match="None is given"):
        collector()
    registry = CollectorRegistry()
    registry.register(collector(a, b=b))
    assert registry.get_sample_value("sio_pg_takeovers_total", {"manager": "b"}) == 0


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("metrics", "prometheus_client", "prometheus"), ("tracing", "opentelemetry", "opentelemetry")],
)
def test_an_extra_that_is_not_installed_is_named(module, missing, extra):
    code = f"""
import sys
import sio_pg_adapter
assert not any(name.partition(".")[0] == {missing!r} for name in sys.modules)  # the core knows nothing of it
sys.modules[{missing!r}] = None
import sio_pg_adapter.{module}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and last.endswith(f"pip install 'sio-pg-adapter[{extra}]'"), done.stderr


# -- the dashboard, and the page ---------------------------------------------------------------------------------
def exposed() -> dict[str, dict[str, set[str]]]:
    """The values of each label of each sample, by name."""
    registry = CollectorRegistry()
    registry.register(collector(AsyncPostgresManager("postgresql://a/x")))
    found: dict[str, dict[str, set[str]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    return found


def test_each_metric_in_the_dashboards_queries_exists():
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    known, asked = exposed(), set()
    for query in queries:
        for name, matchers in re.findall(r"(sio_pg_\w+)(?:\{([^}]*)\})?", query):
            assert name in known, query
            asked.add(name)
            for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                if value.startswith("$"):
                    assert label in (*known[name], "instance", "job"), query
                else:
                    assert value in known[name][label], query
        for labels in re.findall(r"\bby \(([^)]*)\)", query):
            of_metric = known[re.search(r"sio_pg_\w+", query)[0]]
            assert {label.strip() for label in labels.split(",")} <= {*of_metric, "instance", "job"}, query
    ignored = {name for name in known if name.endswith(("_count", "_sum"))}
    assert asked >= known.keys() - ignored


def test_the_page_has_each_metric_with_its_labels_and_no_other():
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(sio_pg_\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE)
    documented = {
        name: (kind, {label: set(re.findall(r"`(\w+)`", values)) for label, values in labels_of(labels)})
        for name, kind, labels in rows
    }
    registry = CollectorRegistry()
    registry.register(collector(AsyncPostgresManager("postgresql://a/x")))
    known = exposed()
    there = {}
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = known[name + ("_bucket" if family.type == "histogram" else "")]
        there[name] = (
            family.type,
            {label: values - {""} for label, values in labels.items() if label not in ("manager", "le")},
        )
    assert documented == there
    assert set(re.findall(r"\bsio_pg_(?!adapter)\w+", page)) == documented.keys()
    assert f"the number of series is fixed: {sum(len(one.samples) for one in registry.collect())} for" in page


def labels_of(cell: str) -> list[tuple[str, str]]:
    """As in "`verdict`: `recovered`, `fresh`; `reason`: ..."."""
    return re.findall(r"`(\w+)`: ([^;]+)", cell)
