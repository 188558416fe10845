"""``ControlledNode``: the handlers of a node, the notes they take, and the operations of /control.

An operation is {"op": name, ...}. A script is a list of operations that a handler runs:
`{"op": "script", "hook": "disconnect", "user": "u1", "steps": [...]}`. In its text values, "$sid"
stands for the client. The event "run" runs the steps that the client sent.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import select
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from socketio.exceptions import ConnectionRefusedError as Refused

from sio_pg_adapter import AsyncNamespace, AsyncServer, NoAnswer
from sio_pg_adapter.server.host import hang_up
from support.json_values import unpack

if TYPE_CHECKING:
    from support.node_program import Config

Json = dict[str, Any]


class ControlledNode:
    def __init__(self, sio: AsyncServer, config: Config) -> None:
        self.sio = sio
        self._config = config
        self.connect_delay = config.connect_delay
        self.log: list[Json] = []
        self.errors: list[str] = []
        self._logged = asyncio.Condition()
        self._users: dict[tuple[str, str], str] = {}  # (namespace, sid) -> auth's "user"
        self._scripts: dict[tuple[str, str], list[Json]] = {}  # (hook, user) -> steps
        self._emitters: dict[str, tuple[asyncio.Event, asyncio.Task[int]]] = {}
        for namespace in config.namespaces:
            self._register(namespace, config)
            for event in ("echo", "never", "shout"):
                handler = functools.partial(self._on_server_event, namespace)
                sio.on_server_event(event, handler, namespace=namespace)
            if config.listens:
                self._register_listeners(namespace)
        self._sockets: dict[str, Any] = {}  # those of the last fetch_sockets
        self._class_based = AsyncNamespace("/")
        self._class_based._set_server(sio)

    async def _on_server_event(self, namespace: str, event: str, *args: Any) -> list[Any]:
        """Answer a server event: `echo` with its arguments, `never` not at all, `shout` to clients of this node."""
        await self._note(hook="server event", namespace=namespace, event=event, args=list(args))
        if event == "never":
            await asyncio.get_running_loop().create_future()
        if event == "shout":
            await self.sio.emit("shouted", args[1:], room=args[0], namespace=namespace, ignore_queue=True)
        return list(args)

    # -- handlers -------------------------------------------------------------------------------
    def _register(self, namespace: str, config: Config) -> None:
        sio = self.sio

        async def connect(sid: str, environ: Json, auth: Any) -> None:
            await self._on_connect(sid, namespace, environ, auth)

        async def connect2(sid: str, environ: Json) -> None:
            await self._on_connect(sid, namespace, environ, "not asked for")

        async def disconnect(sid: str, reason: str) -> None:
            await self._on_disconnect(sid, namespace, reason)

        async def echo(sid: str, *args: Any) -> Any:
            return args

        async def join(sid: str, room: str) -> str:
            await sio.enter_room(sid, room, namespace=namespace)
            return "joined"

        async def leave(sid: str, room: str) -> str:
            await sio.leave_room(sid, room, namespace=namespace)
            return "left"

        async def run(sid: str, steps: list[Json]) -> Any:
            return await self._script(steps, sid, namespace)

        sio.on("connect", connect2 if config.two_argument_connect else connect, namespace=namespace)
        for handler in (disconnect, echo, join, leave, run):
            sio.on(handler.__name__, handler, namespace=namespace)
        self._register_say(namespace)
        self._register_disconnecting(namespace)
        if config.middleware:
            self._register_middleware(namespace)

    def _register_say(self, namespace: str) -> None:
        async def say(sid: str, number: int, room: str, pause: float = 0) -> bool | None:
            key = f"{self._users[namespace, sid]}:{number}"
            stored = await self.sio.emit("said", number, room=room, namespace=namespace, key=key)
            await self._note(hook="say", number=number, stored=stored)
            await asyncio.sleep(pause)  # so that a test can lose the acknowledgement
            return stored

        self.sio.on("say", say, namespace=namespace)

    def _register_listeners(self, namespace: str) -> None:
        """Note all events, and have scripts of the hook `use_event NAME` drop events, or replace their arguments."""

        async def listen(hook: str, event: str, sid: str, *args: Any) -> None:
            await self._note(hook=hook, namespace=namespace, event=event, sid=sid, args=list(args))

        async def use_event(sid: str, event: str, args: list[Any]) -> Any:
            user = self._users.get((namespace, sid), "")
            result = await self._script(self._scripts.get((f"use_event {event}", user), []), sid, namespace)
            if isinstance(result, list):
                args[:] = result
            await self._note(hook="use_event", namespace=namespace, event=event, sid=sid, result=result)
            return result

        self.sio.use_event(use_event, namespace=namespace)
        self.sio.on_any(functools.partial(listen, "on_any"), namespace=namespace)
        self.sio.on_any_outgoing(functools.partial(listen, "on_any_outgoing"), namespace=namespace)

    def _register_disconnecting(self, namespace: str) -> None:
        async def disconnecting(sid: str, reason: str) -> None:
            rooms = self._rooms(sid, namespace)
            await self._note(hook="disconnecting", namespace=namespace, sid=sid, reason=reason, rooms=rooms)

        self.sio.on("disconnecting", disconnecting, namespace=namespace)

    def _register_middleware(self, namespace: str) -> None:
        async def middleware(sid: str, environ: Json, auth: Any) -> None:
            user = auth.get("user", "") if isinstance(auth, dict) else ""
            await self._note(hook="middleware", namespace=namespace, sid=sid, auth=auth)
            await self._script(self._scripts.get(("middleware", user), []), sid, namespace)

        self.sio.use(middleware, namespace=namespace)

    async def _on_connect(self, sid: str, namespace: str, environ: Json, auth: Any) -> None:
        given = auth if isinstance(auth, dict) else {}
        user = self._users[namespace, sid] = str(given.get("user", ""))
        recovered = self.sio.recovered(sid, namespace=namespace)
        await self._note(
            hook="connect",
            namespace=namespace,
            sid=sid,
            auth=auth,
            user=user,
            recovered=recovered,
            flag=environ.get("sio_pg.recovered"),
            rooms=self._rooms(sid, namespace),
            session=await self.sio.get_session(sid, namespace=namespace),
        )
        for room in given.get("rooms", []):
            await self.sio.enter_room(sid, room, namespace=namespace)
        for room, position in given.get("since", {}).items():
            since = self.sio.last_position(sid, namespace=namespace) or position
            await self.sio.enter_room(sid, room, namespace=namespace, since=since)
        if self.connect_delay:
            await asyncio.sleep(self.connect_delay)
        await self._script(self._scripts.get(("connect", user), []), sid, namespace)

    async def _on_disconnect(self, sid: str, namespace: str, reason: str) -> None:
        user = self._users.pop((namespace, sid), "")
        note = {
            "hook": "disconnect",
            "namespace": namespace,
            "sid": sid,
            "reason": reason,
            "user": user,
            "rooms": self._rooms(sid, namespace),
        }
        try:
            note["session"] = await self.sio.get_session(sid, namespace=namespace)
            await self._script(self._scripts.get(("disconnect", user), []), sid, namespace)
        finally:
            await self._note(**note)

    def _rooms(self, sid: str, namespace: str) -> list[str]:
        return sorted(self.sio.rooms(sid, namespace=namespace))

    async def on_store(self, error: Exception | None) -> None:
        """The manager reports that the database is away, or that it is back."""
        await self._note(hook="store", error=None if error is None else type(error).__name__)

    async def _note(self, **entry: Any) -> None:
        async with self._logged:
            self.log.append({**entry, "at": time.monotonic()})
            self._logged.notify_all()

    async def _script(self, steps: list[Json], sid: str, namespace: str) -> Any:
        def fill(value: Any) -> Any:
            match value:
                case "$sid":
                    return sid
                case list():
                    return [fill(item) for item in value]
                case dict():
                    return {key: fill(item) for key, item in value.items()}
            return value

        result = None
        for step in steps:
            result = await self.run({"namespace": namespace, **fill(step)})
        return result

    # -- operations -----------------------------------------------------------------------------
    async def run(self, request: Json) -> Any:
        options = unpack(request)
        operation = getattr(self, f"op_{options.pop('op')}")
        return await operation(**options)

    async def op_emit(self, event: str, data: Any = None, by: str = "server", **options: Any) -> None:
        """Options of `sio.emit`: room, to, skip_sid, skip_room, namespace, volatile, ignore_queue.

        `by` is what emits: the server, its manager, or a class-based namespace.
        """
        emitters = {"server": self.sio, "manager": self.sio.manager, "namespace": self._class_based}
        await emitters[by].emit(event, data, **options)

    async def op_send(self, data: Any = None, **options: Any) -> None:
        await self.sio.send(data, **options)

    async def op_emit_many(self, event: str, items: list[Any], gather: bool = False, **options: Any) -> None:
        if gather:
            await asyncio.gather(*(self.sio.emit(event, item, **options) for item in items))
        else:
            for item in items:
                await self.sio.emit(event, item, **options)

    async def op_call(self, event: str, data: Any = None, **options: Any) -> Any:
        return await self.sio.call(event, data, **options)

    async def op_emit_callback(self, event: str, data: Any = None, **options: Any) -> None:
        """Emit with a callback, which notes its arguments."""

        async def callback(*args: Any) -> None:
            await self._note(hook="callback", event=event, args=list(args))

        await self.sio.emit(event, data, callback=callback, **options)

    async def op_enter_room(self, sid: str, room: str, namespace: str = "/") -> None:
        await self.sio.enter_room(sid, room, namespace=namespace)

    async def op_position(self, namespace: str = "/") -> str:
        return await self.sio.position(namespace=namespace)

    async def op_leave_room(self, sid: str, room: str, namespace: str = "/") -> None:
        await self.sio.leave_room(sid, room, namespace=namespace)

    async def op_close_room(self, room: str, namespace: str = "/") -> None:
        await self.sio.close_room(room, namespace=namespace)

    async def op_disconnect(self, sid: str, namespace: str = "/") -> None:
        await self.sio.disconnect(sid, namespace=namespace)

    async def op_hang_up(self, sid: str, namespace: str = "/") -> None:
        """Close a connection as the server does if the client is to come back."""
        await self._inside(lambda sio: hang_up(sio, sio.manager.eio_sid_from_sid(sid, namespace)))

    async def op_save_session(self, sid: str, session: Any, namespace: str = "/") -> None:
        await self.sio.save_session(sid, session, namespace=namespace)

    async def op_get_session(self, sid: str, namespace: str = "/") -> Any:
        return await self.sio.get_session(sid, namespace=namespace)

    async def op_rooms(self, sid: str, namespace: str = "/") -> list[str]:
        return self._rooms(sid, namespace)

    async def op_fetch_rooms(self, sid: str, namespace: str = "/") -> list[str]:
        return sorted(await self.sio.fetch_rooms(sid, namespace=namespace))

    async def op_participants(self, room: str | None = None, namespace: str = "/") -> list[str]:
        """Return the clients of this node that a broadcast reaches."""
        found = await self._inside(lambda sio: list(sio.manager.get_participants(namespace, room)))
        return sorted(sid for sid, _ in found)

    async def op_server_count(self) -> int:
        return await self.sio.server_count()

    async def op_fetch_sockets(self, room: Any = None, namespace: str = "/", local: bool = False) -> list[Json]:
        fetched = await self.sio.fetch_sockets(room, namespace, local=local)
        self._sockets = {socket.sid: socket for socket in fetched}
        sockets = [asdict(socket) for socket in fetched]
        for socket in sockets:
            socket["handshake"]["time"] = socket["handshake"]["time"].isoformat()
        return sockets

    async def op_socket(self, sid: str, method: str, args: list[Any]) -> None:
        """Call a method of a socket of the last `fetch_sockets`, wherever its client is by now."""
        await self._awaitable(getattr(self._sockets[sid], method))(*args)

    async def op_node_id(self) -> str:
        return str(await self._inside(lambda sio: sio.manager.node.id))

    async def op_server_side_emit(self, event: str, args: list[Any], **options: Any) -> None:
        await self.sio.server_side_emit(event, event, *args, **options)

    async def op_server_side_call(self, event: str, args: list[Any], timeout: float = 60) -> Json:
        return await _or_who_is_missing(self.sio.server_side_call(event, event, *args, timeout=timeout))

    async def op_broadcast_call(self, event: str, data: Any = None, **options: Any) -> Json:
        return await _or_who_is_missing(self.sio.broadcast_call(event, data, **options))

    async def op_sockets_join(self, room: Any, rooms: Any, **options: Any) -> None:
        await self.sio.sockets_join(room, rooms, **options)

    async def op_sockets_leave(self, room: Any, rooms: Any, **options: Any) -> None:
        await self.sio.sockets_leave(room, rooms, **options)

    async def op_disconnect_sockets(self, room: Any, **options: Any) -> None:
        await self.sio.disconnect_sockets(room, **options)

    async def op_connection(self, sid: str, header: str, namespace: str = "/") -> list[str]:
        """Return the transport of a client of this node, and a header of its connection."""
        environ = self.sio.get_environ(sid, namespace)
        return [self.sio.transport(sid, namespace), environ[f"HTTP_{header.upper().replace('-', '_')}"]]

    async def op_drains(self, sid: str, namespace: str = "/") -> bool:
        """Return whether the network takes what is written to a client of this node, now or in the next turn."""
        wire = await self._inside(lambda sio: sio.manager.clients.current(sid, namespace).connection.wire)
        network = select.poll()
        network.register(wire._transport.get_extra_info("socket"), select.POLLOUT)
        return bool(wire.drains or network.poll(0))

    async def op_kept(self, namespace: str) -> list[str]:
        """Return what this node keeps in memory for a namespace."""
        manager = await self._inside(lambda sio: sio.manager)
        kept = {
            "clients": manager.clients.by_sid,
            "rooms": manager.rooms,
            "callbacks": manager.callbacks,
            "pending disconnects": manager.pending_disconnect,
            "sockets": {name: 1 for of in manager.clients.by_socket.values() for name in of},
            "unsettled": {client.namespace: 1 for client in manager.clients.unsettled(namespace)},
        }
        return sorted(name for name, by_namespace in kept.items() if namespace in by_namespace)

    async def op_health(self) -> Json:
        health = await self.sio.manager.health()
        return {name: str(getattr(health, name)) for name in dir(health) if name[0] != "_"}

    async def op_return(self, value: Any = None, namespace: str = "/") -> Any:
        return value

    async def op_refuse(self, message: str = "no", namespace: str = "/") -> None:
        raise Refused(message)

    async def op_sleep(self, seconds: float, namespace: str = "/") -> None:
        await asyncio.sleep(seconds)

    async def op_start_emitter(
        self,
        name: str,
        room: str,
        interval_ms: float = 0,
        event: str = "n",
        padding: int = 0,
        namespace: str = "/",
    ) -> None:
        """Emit (event, name, 1), (event, name, 2), ... until stopped; 0 ms is a tight loop."""
        stopped = asyncio.Event()

        async def emitting() -> int:
            sent = 0
            while not stopped.is_set():
                # now and then over what a notification holds
                more = ("x" * padding,) if padding and sent % 7 == 0 else ()
                await self.sio.emit(event, (name, sent + 1, *more), room=room, namespace=namespace)
                sent += 1
                await asyncio.sleep(interval_ms / 1000)
            return sent

        self._emitters[name] = stopped, asyncio.create_task(emitting(), name=f"emitter {name}")

    async def op_stop_emitter(self, name: str) -> int:
        """Returns how many were sent, once the last emit has returned."""
        stopped, task = self._emitters.pop(name)
        stopped.set()
        return await task

    async def op_stop_all(self) -> None:
        """Restore the state of a node that has just started, for the next test."""
        for name in list(self._emitters):
            await self.op_stop_emitter(name)
        self._scripts.clear()
        self.connect_delay = self._config.connect_delay

    async def op_script(self, hook: str, steps: list[Json], user: str = "") -> None:
        """Have the hook (middleware, connect, disconnect) run steps for clients of that user."""
        self._scripts[hook, user] = steps

    async def op_configure(self, connect_delay: float) -> None:
        self.connect_delay = connect_delay

    async def op_log(self, after: int = 0) -> list[Json]:
        return self.log[after:]

    async def op_wait_log(self, like: Json, count: int = 1, after: int = 0) -> list[Json]:
        """Wait until so many entries have all the given values; return them."""
        async with self._logged:
            while True:
                found = [e for e in self.log[after:] if like.items() <= e.items()]
                if len(found) >= count:
                    return found
                await self._logged.wait()

    async def op_errors(self) -> list[str]:
        """Return the errors that were logged since the last call."""
        found, self.errors[:] = list(self.errors), []
        return found

    def _awaitable(self, method: Any) -> Any:
        return method

    async def _inside(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with the server in its event loop."""
        result = function(self.sio)
        return await result if inspect.isawaitable(result) else result


async def _or_who_is_missing(call: Awaitable[Json]) -> Json:
    try:
        return {"answers": await call, "missing": []}
    except NoAnswer as error:
        return {"answers": error.answers, "missing": error.missing}
