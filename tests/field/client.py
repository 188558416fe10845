"""``FieldClient``: a client that behaves as socket.io-client does, and records the events that it gets.

It comes back by itself after each loss of its connection, to any node, with the pid and the last offset that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable

from sio_pg_adapter.demo.history import HistoryWriter, event_id, number
from support.asgi_client import AsgiClient, Closed
from support.nodes import Node


class FieldClient:
    """A client.

    :param name: its name in reports.
    :param rooms: the rooms that the nodes' ``connect`` handlers enter for it.
    :ivar choose: returns the node to connect to next.
    :param history: where it writes what it gets.
    :ivar sids: the sids of its sessions. The last session goes on.
    :ivar recoveries: how often it recovered its session.
    :ivar got: the numbers of all events that it got.
    """

    def __init__(
        self,
        name: str,
        choose: Callable[[], Node],
        rooms: list[str],
        dice: random.Random,
        history: HistoryWriter,
    ) -> None:
        self.name = name
        self.sids: list[str] = []
        self.recoveries = 0
        self.got: set[int] = set()
        self.connected = asyncio.Event()
        self.refused = False
        self.history = history
        self.choose = choose
        self._rooms = rooms
        self._dice = dice
        self._pid: str | None = None
        self._offset: str | None = None
        self._wire: AsgiClient | None = None
        self._vanished: list[AsgiClient] = []
        self._away = asyncio.Event()
        self._back = asyncio.Event()
        self._back.set()
        self._task = asyncio.create_task(self._run(), name=f"field {name}")

    @property
    def sid(self) -> str | None:
        return self.sids[-1] if self.sids else None

    # -- what a walk does to it -----------------------------------------------------------------------------
    def drop(self) -> None:
        """Lose the connection. The server notices at once."""
        if self._wire is not None:
            self._wire.cut()
            self._away.set()

    def vanish(self) -> None:
        """Lose the connection. The server notices when the client comes back."""
        self._away.set()

    def stay_away(self) -> None:
        """Lose the connection, until :meth:`come_back`."""
        self._back.clear()
        self.drop()

    def come_back(self) -> None:
        self._back.set()

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for wire in self._vanished:
            wire.cut()
        await asyncio.gather(*(wire.ended() for wire in self._vanished))

    # -- a client ---------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        while not self.refused:
            self._away.clear()
            wire = self._wire = AsgiClient(self.choose().sio)
            wire.patience = None
            self._vanished.append(wire)
            reading = asyncio.create_task(self._read(wire), name=f"{self.name} reads")
            leaving = asyncio.create_task(self._away.wait(), name=f"{self.name} leaves")
            try:
                await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.connected.clear()
                self._write("disconnected")
                for task in (reading, leaving):
                    task.cancel()
                for result in await asyncio.gather(reading, leaving, return_exceptions=True):
                    if isinstance(result, Exception):
                        self._refuse(f"{type(result).__name__}: {result}")
            await self._back.wait()
            await asyncio.sleep(self._dice.uniform(0.01, 0.15))  # its reconnection delay

    async def _read(self, wire: AsgiClient) -> None:
        with contextlib.suppress(Closed):
            await wire.__aenter__()
            auth = {"rooms": self._rooms, "pid": self._pid, "offset": self._offset}
            wire.send("0" + json.dumps({key: value for key, value in auth.items() if value is not None}))
            while True:
                self._take(str(await wire.recv()))

    def _take(self, packet: str) -> None:
        match packet[0]:
            case "0":
                reply = json.loads(packet[1:])
                recovered = reply["pid"] == self._pid
                self._write("connected", sid=reply["sid"], pid=reply["pid"], recovered=recovered)
                if recovered:
                    self.recoveries += 1
                else:
                    self.sids.append(reply["sid"])
                    self._pid = reply["pid"]
                self.connected.set()
            case "1":
                self.history.write("ended", sid=self.sid, by="a DISCONNECT packet")
                raise Closed
            case "2":
                name, n, *_, self._offset = json.loads(packet[1:])
                self._write("received", offset=number(self._offset), event=event_id(name, [n]))
                self.got.add(n)
            case _:
                self._refuse(f"it got {packet}")

    def _refuse(self, reason: str) -> None:
        self.refused = True
        self._write("refused", reason=reason)

    def _write(self, kind: str, **fields: object) -> None:
        self.history.write(kind, client=self.name, **fields)
