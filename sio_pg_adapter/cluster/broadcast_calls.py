"""One question to many clients of all nodes, and all their answers.

Each node says which clients it asked, then what they answer, and which of them went away. So the asker knows whom it
waits for, and waits for nobody who cannot answer any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sio_pg_adapter.errors import NoAnswer
from sio_pg_adapter.local.client import Ack, Client
from sio_pg_adapter.local.delivery import Delivery
from sio_pg_adapter.log.records import Outgoing

from .messages import Request, UnstoredEvent, fields_of
from .requests import Answers, Requests, Service


class ClientAnswers(Answers):
    """Which clients were asked at each node, and their answers.

    :ivar asked: the sids by node, as far as the node has said.
    :ivar open: those of them that may still answer.
    :ivar values: the answers by sid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, list[str]] = {}
        self.open: dict[str, set[str]] = {}
        self.values: dict[str, Any] = {}
        self._early: dict[str, set[str]] = {}  # settled sids of nodes that have not said which they asked

    def take(self, node: str, value: Any) -> None:
        settled = [sid for sid, _ in value.get("answers", ())] + list(value.get("gone", ()))
        for sid, args in value.get("answers", ()):
            self.values.setdefault(sid, args[0] if len(args) == 1 else tuple(args) if args else None)
        if "asked" in value:
            self.asked[node] = value["asked"]
            self.open[node] = set(value["asked"]) - self._early.pop(node, set())
        # A long list of asked clients goes through a table, and a short message may come before it.
        if node in self.asked:
            self.open[node].difference_update(settled)
        else:
            self._early.setdefault(node, set()).update(settled)
        self.changed.set()

    def owing(self) -> set[str]:
        return {node for node in self.nodes - self.failed.keys() if node not in self.asked or self.open[node]}

    def silent_clients(self) -> list[str]:
        """Return the sids that were asked and have not answered."""
        return sorted({sid for sids in self.asked.values() for sid in sids} - self.values.keys())


class LocalCall:
    """A broadcast call at one node: the clients that it asks here.

    :param report: takes the sids that were asked, at once, and then the answers of each tick together.
    """

    def __init__(self, delivery: Delivery, outgoing: Outgoing, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._news: dict[str, list[Any]] = {}
        self._asked = delivery.question(outgoing, self._ack)
        self._open = {client.sid for client, _ in self._asked}
        self._end: asyncio.TimerHandle | None = None
        report({"asked": sorted(self._open)})

    def close_in(self, seconds: float) -> None:
        """Wait no longer than that. Then the asker does not wait any more either."""
        if self._open:
            self._end = asyncio.get_running_loop().call_later(seconds, self.close)

    def close(self) -> None:
        """Wait no longer for answers. Safe to call twice."""
        if self._end is not None:
            self._end.cancel()
        for client, ack_id in self._asked:
            client.take_ack(ack_id)
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
        self._report(news)


class BroadcastCalls:
    """Asks the clients of all nodes.

    :param node: this node's id.
    """

    def __init__(self, delivery: Delivery, requests: Requests, node: str) -> None:
        self._delivery = delivery
        self._requests = requests
        self._node = node
        requests.serve(Service.BROADCAST_CALL, self._requested)

    async def call(self, outgoing: Outgoing, event: str, timeout: float) -> dict[str, Any]:
        """Return the clients' answers, by sid.

        :raises NoAnswer: if not all of them answered. At once if those that have not are gone.
        """
        answers, local = ClientAnswers(), list[LocalCall]()
        answers.nodes.add(self._node)

        def begin() -> None:
            local.append(LocalCall(self._delivery, outgoing, lambda value: answers.take(self._node, value)))

        fields = {"event": fields_of(UnstoredEvent.of(outgoing)), "timeout": timeout}
        try:
            await self._requests.gather(
                Service.BROADCAST_CALL, fields, outgoing.parts, answers, timeout=timeout, begin=begin
            )
        finally:
            for call in local:
                call.close()
        silent, missing = answers.nodes - answers.asked.keys(), answers.silent_clients()
        if silent:
            raise NoAnswer(f"event {event!r}", "node", silent, answers.values, also=missing)
        if missing:
            raise NoAnswer(f"event {event!r}", "client", missing, answers.values)
        return answers.values

    def _requested(self, request: Request, parts: tuple[bytes, ...]) -> None:
        outgoing = UnstoredEvent(**request.fields["event"]).outgoing(parts)
        call = LocalCall(self._delivery, outgoing, lambda value: self._requests.reply(request, value))
        call.close_in(request.fields["timeout"])
