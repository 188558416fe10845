"""Messages of a websocket: the shortcut past its reader overtakes nothing, and uvicorn reads on or pauses rightly."""

from __future__ import annotations

import asyncio

from sio_pg_adapter.wire.inbox import Inbox


class Protocol:
    """The part of uvicorn's protocol that puts a message into its queue, and takes it out."""

    def __init__(self):
        self.read_paused = False
        self.reads = True
        self.queue = Inbox(self)

    def received(self, message):
        self.queue.put_nowait(message)
        if not self.read_paused:
            self.read_paused = True
            self.reads = False

    async def receive(self):
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.reads = True
        return message


async def waiting(protocol):
    """Return a reader that waits for a message."""
    reading = asyncio.create_task(protocol.receive())
    await asyncio.sleep(0)
    return reading


async def test_a_message_is_taken_while_the_reader_waits_and_reading_goes_on():
    protocol, taken = Protocol(), []
    protocol.queue.take = lambda message: not taken.append(message)
    reading = await waiting(protocol)
    for n in range(3):
        protocol.received({"n": n})
    assert taken == [{"n": 0}, {"n": 1}, {"n": 2}] and protocol.reads
    await asyncio.sleep(0)
    assert not reading.done()
    reading.cancel()


async def test_what_is_not_taken_goes_to_the_reader_and_pauses_reading_until_it_is():
    protocol = Protocol()
    protocol.queue.take = lambda message: message["n"] != 1
    reading = await waiting(protocol)
    protocol.received({"n": 0})
    protocol.received({"n": 1})
    assert not protocol.reads
    assert await reading == {"n": 1}
    assert protocol.reads and not protocol.read_paused


async def test_nothing_is_taken_behind_a_message_that_the_reader_still_has_to_handle():
    protocol, taken = Protocol(), []
    protocol.queue.take = lambda message: message["n"] != 0 and not taken.append(message)
    reading = await waiting(protocol)
    protocol.received({"n": 0})
    protocol.received({"n": 1})  # of the same read
    assert await reading == {"n": 0}
    assert taken == [] and not protocol.reads  # one still waits
    protocol.received({"n": 2})  # the reader handles 0, and does not wait
    assert await protocol.receive() == {"n": 1}
    assert await protocol.receive() == {"n": 2}
    assert taken == [] and protocol.reads


async def test_a_message_is_kept_when_the_reader_is_cancelled():
    protocol = Protocol()
    reading = await waiting(protocol)
    protocol.received({"n": 0})
    reading.cancel()
    await asyncio.wait((reading,))
    assert await protocol.receive() == {"n": 0}
    assert protocol.queue.empty()
