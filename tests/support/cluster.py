"""``Cluster``: nodes in processes of their own, on one database. ``in_room``: a client that enters a room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from support.js_driver import JSClient, JSDriver
from support.node_process import NodeProcess


@dataclass
class Cluster:
    """Nodes on one database. What a node logs as an error fails the test, unless it is expected."""

    dsn: str
    nodes: list[NodeProcess] = field(default_factory=list)
    errors_expected: bool = False

    @property
    def a(self) -> NodeProcess:
        return self.nodes[0]

    @property
    def b(self) -> NodeProcess:
        return self.nodes[1]

    def start(self, count: int = 2, kind: str = "async", **config: Any) -> Cluster:
        """:param kind: of the nodes: "async", "sync", or "mixed" for each in turn."""
        kinds = ("async", "sync") if kind == "mixed" else (kind,)
        started = [NodeProcess(self.dsn, kind=kinds[i % len(kinds)], **config).spawn() for i in range(count)]
        self.nodes += started
        for node in started:
            node.wait_ready()
        return self

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    async def control_all(self, op: str, **options: Any) -> list[Any]:
        return [await node.control(op, **options) for node in self.nodes if node.running]

    async def check(self) -> None:
        found = [error for errors in await self.control_all("errors") for error in errors]
        assert self.errors_expected or not found, "\n".join(found)

    async def mark(self, room: str, event: str = "end", namespace: str = "/") -> None:
        """Emit a stored event from node a: log order is delivery order, so when a client has it,
        it has had all that was emitted before."""
        await self.a.emit(event, room=room, namespace=namespace)


async def in_room(js: JSDriver, url: str, room: str, **options: Any) -> JSClient:
    """A connected client whose auth names a room that its `connect` handler enters."""
    auth = {**options.pop("auth", {}), "rooms": [room]}
    return await js.connect(url, auth=auth, **options)
