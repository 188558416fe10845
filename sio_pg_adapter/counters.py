"""What a node has done, counted in plain numbers, and where its spans begin.

The node only adds. :mod:`sio_pg_adapter.metrics` reads at the time of a scrape, which may run in another thread. An
addition costs some 20 ns, and there is one for each batch, record or connect, and none for each recipient.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from sio_pg_adapter.log.records import Entry, Kind, Record
from sio_pg_adapter.log.verdict import Fresh, Reason, Recovered

BATCH_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""The buckets of the histogram of batches, in entries."""

NO_SPAN: AbstractContextManager[None] = nullcontext()


class Histogram:
    """How often a value fell into which bucket.

    :param bounds: the highest value of each bucket, ascending. One more bucket takes the values above them.
    """

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    def observe(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Spans:
    """Where spans begin and end. This class makes none. :func:`sio_pg_adapter.tracing.trace` replaces it."""

    def append(self, entries: Sequence[Entry]) -> AbstractContextManager[None]:
        """Surround the commit of a batch."""
        return NO_SPAN

    def deliver(self, record: Record, apply: Callable[[Record], None]) -> None:
        """Surround the delivery of a record to the clients of this node.

        It is called for each record: a context manager that does nothing would cost more than all counters.
        """
        apply(record)

    def recovery(self, namespace: str) -> AbstractContextManager[None]:
        """Surround a recovery, from the claim to the first page of missed events, or to the refusal."""
        return NO_SPAN

    def decided(self, decision: Recovered | Fresh) -> None:
        """Note the verdict in the span of a recovery."""


@dataclass(slots=True)
class Counters:
    """What a node has done since its manager was made.

    :ivar appended: events that it appended to the log.
    :ivar batches: entries of each batch.
    :ivar relayed: events, room changes and kicks that it moved from the relay to the log.
    :ivar applied: records of the log, of all kinds and nodes, that its cursor has passed.
    :ivar stored: stored events times recipients, as they were sent to live clients.
    :ivar unstored: the same of volatile events, questions, and emits to this node's clients only.
    :ivar replayed: the same of events that recovered clients had missed.
    :ivar recovered: claims of a session that were granted.
    :ivar fresh: claims that were not granted, by reason.
    :ivar takeovers: recovered sessions that another connection still held.
    :ivar broken: connects and replays that failed here, so that the client tries again.
    :ivar cut: clients that were disconnected because they were too slow.
    """

    appended: int = 0
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    relayed: int = 0
    applied: int = 0
    stored: int = 0
    unstored: int = 0
    replayed: int = 0
    recovered: int = 0
    fresh: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    takeovers: int = 0
    broken: int = 0
    cut: int = 0
    spans: Spans = field(default_factory=Spans)

    def wrote(self, entries: Sequence[Entry], *, duplicates: int = 0) -> None:
        """Count a batch that is in the log.

        :param duplicates: how many of its events were in the log already, and were not stored again.
        """
        self.batches.observe(len(entries))
        self.appended += [entry.kind for entry in entries].count(Kind.EVENT) - duplicates

    def sent_from_log(self, *, recovered: bool) -> None:
        """Count an event that was sent behind a CONNECT: missed, or emitted while a first connect was decided."""
        if recovered:
            self.replayed += 1
        else:
            self.stored += 1

    def decided(self, decision: Recovered | Fresh) -> None:
        """Count the verdict on a claim."""
        if isinstance(decision, Recovered):
            self.recovered += 1
        else:
            self.fresh[decision.reason] += 1
        self.spans.decided(decision)
