"""One question to many clients, of all nodes, and all their answers.

Each node says whom it asked, then what they answer, and who of them went away. So the asker knows whom it waits for,
and waits for nobody who cannot answer any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sio_pg_adapter.errors import NoAnswer
from sio_pg_adapter.local.clients import Ack, Client

from .messages import Message
from .requests import Gathering

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

Target = tuple[str, tuple[str, ...], tuple[str, ...], str, tuple[bytes, ...]]
"""Namespace, rooms, skipped sids, body and its binary parts."""


class Tally(Gathering):
    """Who was asked at each node, and who has answered.

    :ivar asked: sids by node, where the node has told.
    :ivar open: those of them who may still answer.
    :ivar values: the answers by sid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, list[str]] = {}
        self.open: dict[str, set[str]] = {}
        self.values: dict[str, Any] = {}
        self._early: dict[str, set[str]] = {}  # who is settled at nodes that have not told whom they asked

    def take(self, node: str, value: Any) -> None:
        told = [sid for sid, _ in value.get("answers", ())] + list(value.get("gone", ()))
        for sid, args in value.get("answers", ()):
            self.values.setdefault(sid, args[0] if len(args) == 1 else tuple(args) if args else None)
        if "asked" in value:
            self.asked[node] = value["asked"]
            self.open[node] = set(value["asked"]) - self._early.pop(node, set())
        # A long list of who was asked goes through a table: what is short may come before it.
        if node in self.asked:
            self.open[node].difference_update(told)
        else:
            self._early.setdefault(node, set()).update(told)
        self.changed.set()

    def owing(self) -> set[str]:
        return {node for node in self.nodes - self.failed.keys() if node not in self.asked or self.open[node]}

    def missing(self) -> list[str]:
        """The sids that were asked and have not answered."""
        return sorted({sid for sids in self.asked.values() for sid in sids} - self.values.keys())


class Asking:
    """One poll at one node: the clients that it asked here.

    :param tell: takes what the asker has to know: at once who was asked, then what came in one tick, together.
    """

    def __init__(self, manager: AsyncPostgresManager, target: Target, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._news: dict[str, list[Any]] = {}
        self._asked = manager.delivery.question(*target, self._ack)
        self._open = {client.sid for client, _ in self._asked}
        self._end: asyncio.TimerHandle | None = None
        tell({"asked": sorted(self._open)})

    def close_in(self, seconds: float) -> None:
        """Wait no longer than that: nobody does then."""
        if self._open:
            self._end = asyncio.get_running_loop().call_later(seconds, self.close)

    def close(self) -> None:
        """Wait no longer for answers. Safe to call twice."""
        if self._end is not None:
            self._end.cancel()
        for client, ack_id in self._asked:
            client.acks.pop(ack_id, None)
        self._asked.clear()

    def _ack(self, client: Client) -> Ack:
        sid = client.sid
        return Ack(lambda *args: self._note(sid, "answers", [sid, list(args)]), lambda: self._note(sid, "gone", sid))

    def _note(self, sid: str, what: str, value: Any) -> None:
        self._open.discard(sid)
        if not self._news:
            asyncio.get_running_loop().call_soon(self._flush)
        self._news.setdefault(what, []).append(value)
        if not self._open:
            self.close()

    def _flush(self) -> None:
        news, self._news = self._news, {}
        self._tell(news)


class Polls:
    """Asks the clients of all nodes.

    :param manager: whose delivery asks the clients here, and whose peers ask the others.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        manager.peers.serve("poll", self._requested)

    async def poll(self, target: Target, event: str, timeout: float) -> dict[str, Any]:
        """The clients' answers, by sid.

        :raises NoAnswer: if not all of them answered; at once where those that have not are gone.
        """
        namespace, rooms, skip_sids, body, parts = target
        manager, tally, here = self._manager, Tally(), []
        tally.nodes.add(manager.node)

        def begin() -> None:
            here.append(Asking(manager, target, lambda value: tally.take(manager.node, value)))

        fields = {"namespace": namespace, "rooms": rooms, "skip": skip_sids, "body": body, "timeout": timeout}
        try:
            await manager.peers.gather("poll", fields, parts, tally, timeout=timeout, begin=begin)
        finally:
            for asking in here:
                asking.close()
        silent, missing = tally.nodes - tally.asked.keys(), tally.missing()
        if silent:
            raise NoAnswer(f"event {event!r}", "node", silent, tally.values, also=missing)
        if missing:
            raise NoAnswer(f"event {event!r}", "client", missing, tally.values)
        return tally.values

    def _requested(self, message: Message, parts: tuple[bytes, ...]) -> None:
        rooms, skip_sids = tuple(message["rooms"]), tuple(message["skip"])
        target = (message["namespace"], rooms, skip_sids, message["body"], parts)
        asking = Asking(self._manager, target, lambda value: self._manager.peers.reply(message, value))
        asking.close_in(message["timeout"])
