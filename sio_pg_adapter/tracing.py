"""OpenTelemetry spans of managers; the extra ``opentelemetry``::

    from sio_pg_adapter.tracing import trace

    trace(manager)

There are three:

- ``sio_pg.append``: the commit of a batch. It and the next are roots: a batch is of many emits, a record of any node.
- ``sio_pg.deliver``: one stored event, put on the connections of this node.
- ``sio_pg.recovery``: from the claim of a session to the first page of what was missed, or the verdict that there is
  none. In the trace that is current where the CONNECT is handled.

None has a payload, a room, a sid or a pid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry import context
    from opentelemetry import trace as api
except ImportError as e:
    raise ImportError(
        "sio_pg_adapter.tracing needs opentelemetry-api: pip install 'sio-pg-adapter[opentelemetry]'"
    ) from e

from sio_pg_adapter.counters import Spans
from sio_pg_adapter.log.records import Entry, Kind, Record
from sio_pg_adapter.log.verdict import Fresh, Recovered
from sio_pg_adapter.server.connect import Lost

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager


def trace(manager: AsyncPostgresManager, provider: api.TracerProvider | None = None) -> None:
    """Begin spans in what this manager does, from now on.

    :param provider: whose tracer to use; without one, the global one.
    """
    manager.counters.spans = _Traced(api.get_tracer("sio_pg_adapter", tracer_provider=provider), manager)


class _Traced(Spans):
    def __init__(self, tracer: api.Tracer, manager: AsyncPostgresManager) -> None:
        self._tracer = tracer
        self._counters = manager.counters

    @contextmanager
    def append(self, entries: Sequence[Entry]) -> Iterator[None]:
        # Not in the trace of whoever happened to start the writer's task.
        with self._current("sio_pg.append", api.SpanKind.PRODUCER, context.Context()) as span:
            span.set_attribute("sio_pg.entries", len(entries))
            span.set_attribute("sio_pg.bytes", sum(entry.size for entry in entries))
            yield

    def deliver(self, record: Record, apply: Callable[[Record], None]) -> None:
        if record.kind is not Kind.EVENT:
            apply(record)
            return
        before = self._counters.stored
        options = {"kind": api.SpanKind.CONSUMER, **_ERRORS_ARE_TOLD_HERE}
        # Never current: nothing in it could have spans of its own.
        with self._tracer.start_span("sio_pg.deliver", context.Context(), **options) as span, _errors(span):
            span.set_attribute("sio_pg.namespace", record.namespace)
            span.set_attribute("sio_pg.offset", record.offset)
            apply(record)
            span.set_attribute("sio_pg.recipients", self._counters.stored - before)

    @contextmanager
    def recovery(self, namespace: str) -> Iterator[None]:
        with self._current("sio_pg.recovery", api.SpanKind.SERVER) as span:
            span.set_attribute("sio_pg.namespace", namespace)
            yield

    def decided(self, decision: Recovered | Fresh) -> None:
        span = api.get_current_span()
        span.set_attribute("sio_pg.verdict", "recovered" if isinstance(decision, Recovered) else "fresh")
        if isinstance(decision, Fresh):
            span.set_attribute("sio_pg.reason", decision.reason.name.lower())

    @contextmanager
    def _current(self, name: str, kind: api.SpanKind, where: context.Context | None = None) -> Iterator[api.Span]:
        options = {"kind": kind, **_ERRORS_ARE_TOLD_HERE}
        with self._tracer.start_as_current_span(name, where, **options) as span, _errors(span):
            yield span


_ERRORS_ARE_TOLD_HERE: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}


@contextmanager
def _errors(span: api.Span) -> Iterator[None]:
    """An error by its name alone: its text may show what was to be stored."""
    try:
        yield
    except Lost:  # connection or session ended meanwhile: no error
        span.set_attribute("sio_pg.lost", True)
        raise
    except Exception as e:
        span.set_status(api.Status(api.StatusCode.ERROR, type(e).__name__))
        raise
