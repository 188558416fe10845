"""OpenTelemetry spans of managers. They need the extra ``opentelemetry``::

    from sio_pg_adapter.tracing import trace

    trace(manager)

There are three:

- ``sio_pg.append``: the commit of a batch. A batch holds many emits, so it is a root span.
- ``sio_pg.deliver``: the delivery of a stored event to the clients of this node. Any node may have appended it, so it
  is a root span.
- ``sio_pg.recovery``: from the claim of a session to the first page of what was missed, or to the verdict that the
  client gets a new session. It belongs to the trace in which the CONNECT is handled.

No span shows a payload, a room, a sid or a pid.
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
from sio_pg_adapter.server.checks import ConnectAborted

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager


def trace(manager: AsyncPostgresManager, provider: api.TracerProvider | None = None) -> None:
    """Record spans of a manager from now on.

    :param provider: the tracer provider. Without one, the global one is used.
    """
    manager.counters.spans = _Traced(api.get_tracer("sio_pg_adapter", tracer_provider=provider), manager)


class _Traced(Spans):
    def __init__(self, tracer: api.Tracer, manager: AsyncPostgresManager) -> None:
        self._tracer = tracer
        self._counters = manager.counters

    @contextmanager
    def append(self, entries: Sequence[Entry]) -> Iterator[None]:
        # Not in the trace of the task that happened to start the writer.
        with self._current("sio_pg.append", api.SpanKind.PRODUCER, context.Context()) as span:
            span.set_attribute("sio_pg.entries", len(entries))
            span.set_attribute("sio_pg.bytes", sum(entry.size for entry in entries))
            yield

    def deliver(self, record: Record, apply: Callable[[Record], None]) -> None:
        if record.kind is not Kind.EVENT:
            apply(record)
            return
        before = self._counters.stored
        options = {"kind": api.SpanKind.CONSUMER, **_NO_EXCEPTIONS}
        # Never current: nothing inside it records spans.
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
        options = {"kind": kind, **_NO_EXCEPTIONS}
        with self._tracer.start_as_current_span(name, where, **options) as span, _errors(span):
            yield span


_NO_EXCEPTIONS: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}


@contextmanager
def _errors(span: api.Span) -> Iterator[None]:
    """Record an error by its name only. Its text may show the data that was to be stored."""
    try:
        yield
    except ConnectAborted:  # the connection or the session ended meanwhile, which is not an error
        span.set_attribute("sio_pg.lost", True)
        raise
    except Exception as e:
        span.set_status(api.Status(api.StatusCode.ERROR, type(e).__name__))
        raise
