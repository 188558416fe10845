"""Writing to connections: the shortcut below a websocket never overtakes or overruns its queue."""

from __future__ import annotations

import gc
import weakref

import pytest

from sio_pg_adapter.wire.frames import frame
from sio_pg_adapter.wire.outbox import Outbox
from sio_pg_adapter.wire.transport import COMPRESS_FROM, UNSENT_BYTES, Connections, Cork, TrafficCounter, Wire
from support.local import Socket


class Transport:
    """A stand-in for the transport of a websocket."""

    def __init__(self):
        self.written = []
        self.unsent = 0
        self.closing = self.aborted = False
        self.error = None

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return self.unsent

    def write(self, data):
        if self.error is not None:
            raise self.error
        self.written.append(data)

    def abort(self):
        self.aborted = True


class Below:
    """A wire, and what it stands on."""

    def __init__(self, *, compresses=False, cork=None):
        self.queue, self.transport, self.traffic = Outbox(), Transport(), TrafficCounter()
        self.cork = cork or Cork()
        self.open = True
        self.wire = Wire(
            self.queue, self.transport, lambda: self.open, self.cork, compresses=compresses, traffic=self.traffic
        )

    def idle(self):
        """Have nothing on its way from the queue to the transport, as between two runs of a websocket's writer."""
        self.wire.idle = True
        return self


@pytest.fixture
def below():
    return Below().idle()


ONE, TWO = frame('2["e",1]'), frame('2["e",2]')


# -- one connection for all namespaces -------------------------------------------------------------------
async def test_all_namespaces_of_a_socket_share_a_connection():
    connections, socket = Connections(), Socket("eio")
    connection = connections.of(socket)
    assert connections.of(socket) is connection and connection.wire is None
    assert connections.of(Socket("other")) is not connection


async def test_a_connection_is_forgotten_when_nobody_refers_to_it():
    connections, socket = Connections(), Socket("eio")
    connection = weakref.ref(connections.of(socket))
    gc.collect()
    assert connection() is None and len(connections._by_sid) == 0
    held = connections.of(socket)
    gc.collect()
    assert connections.of(socket) is held


async def test_another_socket_with_the_same_sid_has_its_own_connection():
    connections = Connections()
    former = connections.of(Socket("eio"))
    socket = Socket("eio")
    assert connections.of(socket) is not former and connections.of(socket).socket is socket


async def test_a_connection_is_open_until_its_socket_closes():
    connections, socket = Connections(), Socket("eio")
    connection = connections.of(socket)
    assert connection.is_open
    socket.closing = True
    assert not connection.is_open
    socket.closing, socket.closed = False, True
    assert not connection.is_open


# -- the shortcut ------------------------------------------------------------------------------------------
async def test_an_event_is_one_write_with_its_binary_parts(below):
    part = frame(b"part")
    assert below.wire.write([ONE]) and below.wire.write([TWO, part])
    assert below.transport.written == [ONE.wire, TWO.wire + part.wire]


async def test_an_event_without_frames_is_written_already(below):
    assert below.wire.write([])
    assert below.transport.written == []


async def test_nothing_is_written_before_the_websocket_has_begun_and_while_packets_wait():
    below = Below()
    assert not below.wire.write([ONE])
    below.idle().queue.put_nowait(TWO)
    assert not below.wire.write([ONE])  # it would overtake what is queued
    assert below.queue.get_nowait() is TWO
    below.wire.idle = False  # the writer is sending it
    assert not below.wire.write([ONE])
    assert below.transport.written == []


async def test_nothing_is_written_to_a_transport_that_closes(below):
    below.transport.closing = True
    assert not below.wire.write([ONE])
    below.transport.closing, below.open = False, False
    assert not below.wire.write([ONE])
    assert below.transport.written == []


async def test_a_client_that_reads_slowly_is_written_to_through_the_queue(below):
    below.transport.unsent = UNSENT_BYTES
    assert below.wire.write([ONE])
    below.transport.unsent = UNSENT_BYTES + 1
    assert not below.wire.write([ONE])


@pytest.mark.parametrize(("compresses", "written"), [(True, False), (False, True)])
async def test_a_large_frame_is_left_to_a_server_that_may_compress_it(compresses, written):
    below = Below(compresses=compresses).idle()
    assert below.wire.write([frame("2" + "x" * COMPRESS_FROM)]) is written
    assert below.wire.write([ONE])


async def test_writes_are_counted_while_somebody_counts(below):
    counts = []
    below.wire.write([ONE])
    below.traffic.on_write = lambda packets, size: counts.append((packets, size))
    below.wire.write([ONE, TWO])
    below.queue.put_nowait(ONE)
    below.wire.write([ONE])  # not written
    assert counts == [(2, len(ONE.wire) + len(TWO.wire))]


# -- several records in one tick -----------------------------------------------------------------------------
async def test_a_cork_writes_all_that_it_held_back_at_once(below):
    with below.cork:
        assert below.wire.write([ONE]) and below.wire.write([TWO])
        assert below.transport.written == []
    assert below.transport.written == [ONE.wire + TWO.wire]
    below.wire.write([ONE])
    with below.cork:
        pass
    assert below.transport.written == [ONE.wire + TWO.wire, ONE.wire]


async def test_what_a_cork_holds_back_counts_toward_what_is_unsent(below):
    large = frame("2" + "x" * UNSENT_BYTES)
    with below.cork:
        assert below.wire.write([large])
        assert below.wire.write([ONE])
        assert below.transport.written == [large.wire]  # written early, and taken at once
        below.transport.unsent = UNSENT_BYTES + 1
        assert not below.wire.write([TWO])
    assert below.transport.written == [large.wire, ONE.wire]


async def test_a_connection_that_breaks_keeps_no_event_from_the_others(caplog):
    broken = Below().idle()
    other = Below(cork=broken.cork).idle()
    broken.transport.error = OSError("broken pipe")
    with broken.cork:
        broken.wire.write([ONE])
        other.wire.write([ONE])
    assert broken.transport.aborted and "broken pipe" in caplog.text
    assert other.transport.written == [ONE.wire]
