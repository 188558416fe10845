"""The walk of the Python client: a cut, a move to the other node and a killed node, each counted and printed."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from socketio.exceptions import SocketIOError

from sio_pg_adapter.client import AsyncClient

from .history import HistoryWriter, event_id, number
from .processes import EVENTS_PER_SECOND, Cluster

CLIENT = "walker"
"""The name of the client in a history."""

_STEP_TIMEOUT = 15.0
"""Seconds within which the client must be back. One or two are normal."""


@dataclass(frozen=True)
class Absence:
    """The events that were emitted between a drop and the return of the client."""

    missed: int
    replayed: int


class Tally:
    """A count of numbered events, which must arrive in order and once.

    A node sends its welcome after the replay. So the events before the welcome are the replay, and the number of the
    first event after it shows how many were missed.
    """

    def __init__(self) -> None:
        self.received = self.lost = self.doubled = 0
        self._highest: int | None = None
        self._away = True  # from a drop to the first live event
        self._away_since: int | None = None  # the highest number before the drop
        self._replayed = 0
        self._welcome = False

    def dropped(self) -> None:
        """Record that the connection is lost."""
        if not self._away or self._away_since is None:
            self._away, self._away_since, self._replayed = True, self._highest, 0
        self._welcome = False

    def welcomed(self) -> None:
        """Record the welcome to this connection."""
        self._welcome = True

    def tick(self, n: int) -> Absence | None:
        """Record event ``n``, and return the absence that it ends.

        The first live event of a connection ends an absence. This includes the first connection.
        """
        self.received += 1
        if self._highest is not None and n <= self._highest:
            self.doubled += 1
            return None
        if self._highest is not None:
            self.lost += n - self._highest - 1
        self._highest = n
        if not self._away:
            return None
        if not self._welcome:
            self._replayed += 1
            return None
        self._away = False
        if self._away_since is None:
            return Absence(0, 0)
        return Absence(missed=n - 1 - self._away_since, replayed=self._replayed)


class _Client(AsyncClient):
    """A client that writes the stored events that it receives to a history."""

    history: HistoryWriter | None = None

    async def _handle_event(self, namespace: str | None, id: int | None, data: list[Any]) -> None:
        if self.history is not None and isinstance(data[-1], str):
            name, *args, offset = data
            self.history.write("received", client=CLIENT, event=event_id(name, args), offset=number(offset))
        await super()._handle_event(namespace, id, data)


class Walker:
    """A client of the cluster, and its count."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.history = cluster.history
        self.tally = Tally()
        self.at = "A"  # the node to connect to next
        self.node = ""  # the node of its connection
        self._visit = 0
        self._live: asyncio.Future[Absence] = asyncio.get_running_loop().create_future()
        self.client = _Client(
            reconnection_delay=0.8,  # long enough to miss events
            reconnection_delay_max=1,
            randomization_factor=0,
            handle_sigint=False,  # Ctrl-C ends the demo, which ends its clients
        )
        self.client.history = cluster.history
        for name in ("connect", "connect_error", "disconnect", "welcome", "tick"):
            self.client.on(name, getattr(self, f"_on_{name}"))

    async def start(self) -> None:
        """Connect, and wait for the first event."""
        await self.client.connect(lambda: self.cluster.nodes[self.at].url, auth=self._auth, transports=["websocket"])
        async with asyncio.timeout(_STEP_TIMEOUT):
            await self._live

    async def absence(self, break_off: Callable[[], None]) -> Absence:
        """Break the connection, and wait until the client is back and receives live events."""
        self._live = asyncio.get_running_loop().create_future()
        break_off()
        async with asyncio.timeout(_STEP_TIMEOUT):
            return await self._live

    def cut(self) -> None:
        """Cut the TCP connection without a message of the protocols above it."""
        self.client.eio.ws.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def move(self) -> None:
        """Cut the connection, and connect to the other node next."""
        self.at = self.cluster.other(self.at)
        self.cut()

    def kill(self) -> None:
        """Kill the node of the client's connection."""
        self.cluster.nodes[self.node].kill()

    def _auth(self) -> dict[str, int]:
        self._visit += 1
        return {"visit": self._visit}

    def _on_connect(self) -> None:
        client = self.client
        reply = {"sid": client.get_sid(), "pid": client._sessions["/"].pid, "recovered": client.recovered()}  # noqa: SLF001 - of this package
        self._write("connected", **reply)

    def _write(self, kind: str, **fields: Any) -> None:
        if self.history is not None:
            self.history.write(kind, client=CLIENT, **fields)

    def _on_connect_error(self, _: Any) -> None:
        self.at = self.cluster.other(self.at)  # as a load balancer would

    def _on_disconnect(self, reason: str) -> None:
        self.tally.dropped()
        self._write("disconnected", reason=reason)

    def _on_welcome(self, data: dict[str, Any]) -> None:
        if data["visit"] == self._visit:
            self.node = data["node"]
            self.tally.welcomed()

    def _on_tick(self, data: dict[str, int]) -> None:
        absence = self.tally.tick(data["n"])
        if absence is not None and not self._live.done():
            self._live.set_result(absence)


async def walk(cluster: Cluster) -> bool:
    """Run all steps, print the results, and return whether all recovered without a lost or doubled event.

    The history of the cluster, if it has one, ends with the walk.
    """
    print(f"Two server nodes, one PostgreSQL, {EVENTS_PER_SECOND} numbered events a second to a Python client.\n")
    for node in cluster.nodes.values():
        print(f"  node {node.name}: {node.url}")
    print(f"\n  {'':<29}{'node':>8}{'back after':>12}{'missed':>8}{'replayed':>10}{'lost':>6}{'doubled':>9}")
    began = time.monotonic()
    walker = Walker(cluster)
    tally = walker.tally
    steps: list[tuple[str, Callable[[], None]]] = [
        ("the connection is cut", walker.cut),
        ("it moves to the other node", walker.move),
        ("its node is killed (kill -9)", walker.kill),
    ]
    recovered = 0
    try:
        await walker.start()
        for step in steps:
            recovered += await _step(walker, *step)
    except TimeoutError:
        print(f"\nno event arrived within {_STEP_TIMEOUT:.0f} s")
    except SocketIOError as e:
        print(f"\nthe client cannot connect: {e}")
    finally:
        if walker.history is not None and walker.client.get_sid():
            walker.history.write("ended", sid=walker.client.get_sid(), by="its client")
        await walker.client.shutdown()
        await cluster.end_history()
    ok = recovered == len(steps) and tally.lost == tally.doubled == 0
    print(
        f"\n{_verdict(ok, 'ok', 'FAILED')}: recovered {recovered} of {len(steps)}, received {tally.received}, "
        f"lost {tally.lost}, doubled {tally.doubled}, in {time.monotonic() - began:.1f} s",
        flush=True,
    )
    if not ok:
        for node in cluster.nodes.values():
            print(f"\nnode {node.name} printed:\n{''.join(node.output) or 'nothing'}")
    return ok


async def _step(walker: Walker, title: str, break_off: Callable[[], None]) -> bool:
    if walker.history is not None:
        walker.history.write("fault", what=title)
    sid, node, tally = walker.client.get_sid(), walker.node, walker.tally
    lost, doubled, began = tally.lost, tally.doubled, time.monotonic()
    print(f"  {title:<29}", end="", flush=True)  # the rest of the line follows at the end of the step
    absence = await walker.absence(break_off)
    seconds = time.monotonic() - began
    same_session = walker.client.recovered() and walker.client.get_sid() == sid
    recovered = same_session and absence.missed == absence.replayed
    print(
        f"{f'{node} -> {walker.node}':>8}{f'{seconds:.1f} s':>12}{absence.missed:>8}{absence.replayed:>10}"
        f"{tally.lost - lost:>6}{tally.doubled - doubled:>9}   {_verdict(recovered, 'recovered', 'NOT RECOVERED')}",
        flush=True,
    )
    return recovered


def _verdict(good: bool, yes: str, no: str) -> str:
    word = yes if good else no
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return word
    return f"\033[{32 if good else 31};1m{word}\033[0m"
