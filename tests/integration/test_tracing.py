"""Spans around append, deliver and recovery, as the SDK exports them; none where tracing is off."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sio_pg_adapter.tracing import trace
from support.asgi_client import AsgiClient
from support.waiting import until


class Traces:
    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def of(self, name):
        return [span for span in self._exporter.get_finished_spans() if span.name == f"sio_pg.{name}"]

    def text(self) -> str:
        return " ".join(span.to_json() for span in self._exporter.get_finished_spans())

    def clear(self):
        self._exporter.clear()


@pytest.fixture
def traces():
    return Traces()


async def test_an_emit_is_appended_here_and_delivered_on_each_node(start_node, traces):
    a, b = await start_node(), await start_node()
    both = Traces()
    trace(a.manager, traces.provider)
    trace(b.manager, both.provider)
    async with b.client() as wire, b.client() as other:
        traces.clear()
        await a.sio.emit("e", "secret", room=wire.sid)
        await a.sio.emit("e", "secret", skip_sid=None)
        assert [await wire.event(), await wire.event()] == [["e", "secret"]] * 2
        first, _ = traces.of("append")
        assert dict(first.attributes) == {"sio_pg.entries": 1, "sio_pg.bytes": len('["e","secret"]')}
        assert first.kind is SpanKind.PRODUCER
        assert [span.attributes["sio_pg.recipients"] for span in traces.of("deliver")] == [0, 0]
        one, all_ = both.of("deliver")
        assert one.kind is SpanKind.CONSUMER
        assert one.attributes["sio_pg.recipients"] == 1 and all_.attributes["sio_pg.recipients"] == 2
        assert one.attributes["sio_pg.namespace"] == "/"
        assert all_.attributes["sio_pg.offset"] == b.manager.node.cursor.offset
        exported = traces.text() + both.text()
        assert not any(word in exported for word in ("secret", wire.sid, wire.pid, other.sid))


async def test_emits_in_one_batch_are_one_span_and_moves_are_not_delivered(start_node, traces):
    node = await start_node()
    trace(node.manager, traces.provider)
    async with node.client() as wire:
        traces.clear()
        await node.sio.enter_room(wire.sid, "x")
        assert len(traces.of("append")) == 1 and traces.of("deliver") == []
        await asyncio.gather(*(node.sio.emit("e") for _ in range(20)))
        assert len(traces.of("append")) < 21 and len(traces.of("deliver")) == 20
        assert sum(span.attributes["sio_pg.entries"] for span in traces.of("append")) == 21


async def test_append_and_deliver_are_roots_even_where_a_span_started_the_manager(start_node, pg_dsn, traces):
    """The writer's task has the context of the first caller. The trace of that caller would never end."""
    node = await start_node()
    trace(node.manager, traces.provider)
    await node.manager.aclose()
    with traces.provider.get_tracer("test").start_as_current_span("request"):
        await node.manager.start()
        await node.sio.emit("e")
    for name in ("append", "deliver"):
        [span] = traces.of(name)
        assert span.parent is None


async def test_a_recovery_is_a_span_with_its_verdict_within_the_requests_trace(start_node, traces):
    node = await start_node()
    tracer = traces.provider.get_tracer("test")

    @node.sio.event
    async def connect(sid, environ, auth):
        with tracer.start_as_current_span("sio_pg.handler"):
            pass

    trace(node.manager, traces.provider)
    async with node.client() as wire:
        await wire.drop()
        assert traces.of("recovery") == []
        traces.clear()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
        [span], [handler] = traces.of("recovery"), traces.of("handler")
        assert dict(span.attributes) == {"sio_pg.namespace": "/", "sio_pg.verdict": "recovered"}
        assert span.kind is SpanKind.SERVER and span.status.status_code is StatusCode.UNSET
        assert handler.parent.span_id == span.context.span_id
        traces.clear()
        async with node.client(pid="n" * 32):
            pass
        [span], [handler] = traces.of("recovery"), traces.of("handler")
        assert dict(span.attributes) == {
            "sio_pg.namespace": "/",
            "sio_pg.verdict": "fresh",
            "sio_pg.reason": "unknown_session",
        }
        assert handler.parent is None  # it is a first connect
        assert wire.pid not in traces.text()


async def test_a_recovery_whose_session_ends_meanwhile_is_no_error(start_node, traces):
    node = await start_node()
    entered, go_on = asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def connect(sid, environ, auth):
        if node.sio.recovered(sid):
            entered.set()
            await go_on.wait()

    trace(node.manager, traces.provider)
    async with node.client() as wire:
        await wire.drop()
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await entered.wait()
            await node.sio.disconnect(wire.sid)
            go_on.set()
            await until(lambda: traces.of("recovery"))
    [span] = traces.of("recovery")
    assert span.attributes["sio_pg.lost"] is True
    assert span.status.status_code is StatusCode.UNSET and span.events == ()


async def test_an_append_that_fails_is_an_error_by_its_name_alone(start_node, traces, monkeypatch):
    node = await start_node()
    trace(node.manager, traces.provider)

    async def refuse(*args):
        raise asyncpg.DataError("secret")

    monkeypatch.setattr(node.manager.node.writer._commits, "_send", refuse)
    with pytest.raises(Exception, match="secret"):
        await node.sio.emit("e")
    [span] = traces.of("append")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "DataError")
    assert "secret" not in traces.text()


async def test_a_record_that_cannot_be_applied_is_an_error_by_its_name_alone(
    start_node, traces, monkeypatch, expected_errors
):
    expected_errors.append("could not be applied")
    node = await start_node()
    trace(node.manager, traces.provider)

    def fail(record):
        raise RuntimeError("secret")

    monkeypatch.setattr(node.manager.node.delivery, "_apply", fail)
    await node.sio.emit("e")
    [span] = traces.of("deliver")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "RuntimeError")
    assert "secret" not in traces.text()


async def test_a_recovery_that_breaks_is_an_error(start_node, traces, monkeypatch):
    node = await start_node()
    trace(node.manager, traces.provider)

    async def behind(*args):
        return False

    async with node.client() as wire:
        await wire.drop()
        monkeypatch.setattr(node.manager.node.cursor, "passed", behind)
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            assert await again.rest() == []  # closed, so that it tries again
    [span] = traces.of("recovery")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "StoreUnavailable")


async def test_without_trace_there_are_none(start_node, traces):
    traced, node = await start_node(), await start_node()
    trace(traced.manager, traces.provider)
    async with node.client() as wire:
        traces.clear()
        await node.sio.emit("e")
        await wire.event()
        await wire.drop()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
    assert traces.of("append") == traces.of("recovery") == []
