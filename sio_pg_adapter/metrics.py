"""Prometheus metrics of managers, read at scrape time. They need the extra ``prometheus``::

    from prometheus_client import REGISTRY
    from sio_pg_adapter.metrics import collector

    REGISTRY.register(collector(manager))

No label has an unbounded number of values: there is none for a sid, a room, a user or a namespace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as e:
    raise ImportError(
        "sio_pg_adapter.metrics needs prometheus-client: pip install 'sio-pg-adapter[prometheus]'"
    ) from e

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.local.client import State

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager


def collector(*managers: AsyncPostgresManager, **named: AsyncPostgresManager) -> Collector:
    """Return a collector for a registry of ``prometheus_client``, for all managers of the process.

    Each metric has the label ``manager``: the given name, or else the schema. A manager need not be started.

    :param managers: managers of different schemas.
    :param named: further managers by name, such as two of the same schema on different databases.
    :raises ConfigurationError: if no manager is given, or two have the same name.
    """
    by_name = dict(named)
    for manager in managers:
        name = manager.database.schema
        if name in by_name:
            raise ConfigurationError(f"two managers are called {name!r}. Name them: collector({name}=..., b=...).")
        by_name[name] = manager
    if not by_name:
        raise ConfigurationError("collector() takes the managers whose metrics it collects. None is given.")
    return _Collector(by_name)


class _Collector(Collector):
    def __init__(self, managers: dict[str, AsyncPostgresManager]) -> None:
        self._managers = managers

    def collect(self) -> Iterator[Metric]:
        families = _Families()
        for name, manager in self._managers.items():
            families.read(name, manager)
        yield from vars(families).values()


class _Families:
    """All metrics of one scrape."""

    def __init__(self) -> None:
        manager = ["manager"]
        self.appended = CounterMetricFamily(
            "sio_pg_events_appended", "Events that this process appended to the log.", labels=manager
        )
        self.batches = HistogramMetricFamily(
            "sio_pg_batch_entries", "Entries of each batch that was committed.", labels=manager
        )
        self.relayed = CounterMetricFamily(
            "sio_pg_relay_moved", "Rows of the relay that this node moved to the log.", labels=manager
        )
        self.relay_waiting = GaugeMetricFamily(
            "sio_pg_relay_waiting", "Rows of the relay that waited when the node last looked.", labels=manager
        )
        self.applied = CounterMetricFamily(
            "sio_pg_records_applied", "Records of the log, of all nodes, that this node has applied.", labels=manager
        )
        self.delivered = CounterMetricFamily(
            "sio_pg_events_delivered", "Events times recipients, put on live connections.", labels=[*manager, "kind"]
        )
        self.replayed = CounterMetricFamily(
            "sio_pg_events_replayed", "Missed events times recipients, sent to recovered clients.", labels=manager
        )
        self.recoveries = CounterMetricFamily(
            "sio_pg_recoveries", "Connects that presented a pid, by verdict.", labels=[*manager, "verdict", "reason"]
        )
        self.takeovers = CounterMetricFamily(
            "sio_pg_takeovers", "Recovered sessions that another connection still held.", labels=manager
        )
        self.broken = CounterMetricFamily(
            "sio_pg_connects_broken",
            "Connects and replays that failed on this node. Their clients try again.",
            labels=manager,
        )
        self.cut = CounterMetricFamily(
            "sio_pg_slow_clients_cut", "Clients that were disconnected because they were too slow.", labels=manager
        )
        self.reconnects = CounterMetricFamily(
            "sio_pg_listener_reconnects", "LISTEN connections that replaced a lost one.", labels=manager
        )
        self.healthy = GaugeMetricFamily(
            "sio_pg_healthy",
            "1 while events can get from here to all clients, and from all nodes here.",
            labels=manager,
        )
        self.listening = GaugeMetricFamily("sio_pg_listening", "1 while the node listens.", labels=manager)
        self.lag = GaugeMetricFamily(
            "sio_pg_cursor_lag", "Offsets between the cursor and the last one that the node knows of.", labels=manager
        )
        self.queues = GaugeMetricFamily(
            "sio_pg_queue_length",
            "Waiting entries for the log, messages to other nodes, and frames for all clients.",
            labels=[*manager, "queue"],
        )
        self.longest = GaugeMetricFamily(
            "sio_pg_longest_client_queue", "Waiting frames of the client with the most.", labels=manager
        )
        self.clients = GaugeMetricFamily("sio_pg_clients", "Clients of this node.", labels=[*manager, "state"])
        self.held = GaugeMetricFamily(
            "sio_pg_sessions_held", "Sessions that clients of this node hold.", labels=manager
        )

    def read(self, name: str, manager: AsyncPostgresManager) -> None:
        self._read_counters(name, manager)
        node = manager.node
        self.queues.add_metric([name, "log"], 0 if node is None else node.writer.waiting)
        self.queues.add_metric([name, "messages"], 0 if node is None else node.messages.waiting)
        if manager.write_only:
            return
        self.relay_waiting.add_metric([name], 0 if node is None else node.relay.waiting)
        self.reconnects.add_metric([name], 0 if node is None else node.diagnosis.reconnects)
        self.healthy.add_metric([name], int(node is not None and node.diagnosis.health().ok))
        self.listening.add_metric([name], int(node is not None and node.diagnosis.listening))
        self.lag.add_metric([name], 0 if node is None else node.cursor.lag)
        self._read_clients(name, manager)

    def _read_counters(self, name: str, manager: AsyncPostgresManager) -> None:
        counters = manager.counters
        self.appended.add_metric([name], counters.appended)
        histogram = counters.batches
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        self.batches.add_metric([name], buckets, histogram.sum)
        self.relayed.add_metric([name], counters.relayed)
        self.applied.add_metric([name], counters.applied)
        self.delivered.add_metric([name, "stored"], counters.stored)
        self.delivered.add_metric([name, "unstored"], counters.unstored)
        self.replayed.add_metric([name], counters.replayed)
        self.recoveries.add_metric([name, "recovered", ""], counters.recovered)
        for reason, count in counters.fresh.items():
            self.recoveries.add_metric([name, "fresh", reason.name.lower()], count)
        self.takeovers.add_metric([name], counters.takeovers)
        self.broken.add_metric([name], counters.broken)
        self.cut.add_metric([name], counters.cut)

    def _read_clients(self, name: str, manager: AsyncPostgresManager) -> None:
        clients = list(manager.clients)
        states = Counter(client.state for client in clients)
        for state in (State.CONNECTING, State.REPLAYING, State.LIVE):
            self.clients.add_metric([name, state.name.lower()], states[state])
        # By connection: the clients of several namespaces share one.
        waiting = {client.eio_sid: client.connection.socket.queue.qsize() for client in clients}.values()
        self.queues.add_metric([name, "clients"], sum(waiting))
        self.longest.add_metric([name], max(waiting, default=0))
        self.held.add_metric([name], sum(client.held is not None for client in clients))
