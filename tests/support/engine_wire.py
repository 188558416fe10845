"""``Wire``: Engine.IO's client without a transport, for tests of Socket.IO's client."""

from __future__ import annotations

import asyncio
from typing import Any

import engineio
from engineio import packet as eio_packet


class Wire(engineio.AsyncClient):
    """Engine.IO's client without a transport. `sent` has the outgoing messages; `receive` takes incoming ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent: list[str | bytes] = []
        self.opened = asyncio.Event()

    async def connect(self, url, headers=None, transports=None, engineio_path="engine.io"):
        self.url = url
        self.sid, self.state, self.current_transport = "eio", "connected", "polling"
        self.read_loop_task = asyncio.get_running_loop().create_future()
        self.read_loop_task.set_result(None)
        await self._trigger_event("connect", run_async=False)
        self.opened.set()

    async def _send_packet(self, pkt):
        if self.state == "connected" and pkt.packet_type == eio_packet.MESSAGE:
            self.sent.append(pkt.data)

    async def receive(self, *frames: str | bytes) -> None:
        for frame in frames:  # as the read loops do, with no await between two messages of one batch
            await self._receive_packet(eio_packet.Packet(eio_packet.MESSAGE, data=frame))
        await settle()

    async def drop(self) -> None:
        """End as the read loops do when the connection breaks."""
        await self._trigger_event("disconnect", self.reason.TRANSPORT_ERROR, run_async=False)
        await self._reset()

    async def reopened(self) -> None:
        self.opened.clear()
        self.sent.clear()
        await asyncio.wait_for(self.opened.wait(), 5)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
