"""What a node has done, counted in plain numbers, and where its spans begin.

The node only adds; :mod:`sio_pg_adapter.metrics` reads, at the time of a scrape, maybe in another thread. An addition
costs some 20 ns, and there is one for a batch, a record or a connect, none for each recipient.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from sio_pg_adapter.log.entries import Entry
from sio_pg_adapter.log.records import Kind, Record
from sio_pg_adapter.log.verdict import Fresh, Reason, Recovered

BATCH_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)

NO_SPAN: AbstractContextManager[None] = nullcontext()


class Histogram:
    """How often a value fell into which bucket.

    :param bounds: the highest value of each bucket, ascending; one more takes what is above all of them.
    """

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    def observe(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Spans:
    """Where spans begin and end. These are none: :func:`sio_pg_adapter.tracing.trace` puts others in their place."""

    def append(self, entries: Sequence[Entry]) -> AbstractContextManager[None]:
        """Around the commit of a batch."""
        return NO_SPAN

    def deliver(self, record: Record, apply: Callable[[Record], None]) -> None:
        """Around what a record of the log means for the clients of this node. Called for each record: a context
        manager that does nothing would cost more than all counters."""
        apply(record)

    def recovery(self, namespace: str) -> AbstractContextManager[None]:
        """From the claim of a session until the first page of what was missed is on its way, or it is refused."""
        return NO_SPAN

    def decided(self, decision: Recovered | Fresh) -> None:
        """The verdict, in the span of a recovery."""


@dataclass(slots=True)
class Counters:
    """What a node has done since its manager was made.

    :ivar appended: events that it wrote to the log.
    :ivar batches: entries of each batch.
    :ivar applied: records of the log, of all kinds and nodes, that its cursor has passed.
    :ivar stored: stored events times recipients, as they were put on live connections; ``unstored``: volatile ones,
                  questions, and emits to this node's clients only.
    :ivar replayed: the same, of what recovered clients had missed.
    :ivar recovered: claims of a session that were granted; ``fresh``: those that were not, by reason.
    :ivar takeovers: recovered sessions that another connection still held.
    :ivar broken: connects and replays that failed here, so that the client tries again.
    :ivar cut: clients that took too little.
    """

    appended: int = 0
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
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

    def wrote(self, entries: Sequence[Entry]) -> None:
        """A batch is in the log."""
        self.batches.observe(len(entries))
        self.appended += [entry.kind for entry in entries].count(Kind.EVENT)

    def sent_from_log(self, *, recovered: bool) -> None:
        """A client was sent a record behind its CONNECT: it had missed it, or it came while a first connect ran."""
        if recovered:
            self.replayed += 1
        else:
            self.stored += 1

    def decided(self, decision: Recovered | Fresh) -> None:
        """A claim was judged."""
        if isinstance(decision, Recovered):
            self.recovered += 1
        else:
            self.fresh[decision.reason] += 1
        self.spans.decided(decision)
