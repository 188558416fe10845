"""The classes of this package, as the test suites of python-socketio drive theirs.

Those suites replace Engine.IO by a mock. They call the private methods that Engine.IO calls, and look at what is sent
through the mock. The servers here keep a real Engine.IO below. What they put into the queue of a connection is taken
out again, and sent through the mock. The secret pid of a session is left out, because no test can foresee it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from typing import Any
from unittest import mock

import engineio
from engineio.async_socket import AsyncSocket
from engineio.packet import MESSAGE

import sio_pg_adapter
from sio_pg_adapter.sync import loop_server
from sio_pg_adapter.sync.background import Background
from sio_pg_adapter.wire.frames import Frame

RealEngine = engineio.AsyncServer
USED: list[Any] = []
"""What was made in a test, and is closed after it."""


class Environ(dict[str, Any]):
    """An environ that equals the word by which the tests call it."""

    def __init__(self, word: Any) -> None:
        super().__init__(word if isinstance(word, dict) else {})
        self._word = word

    def __eq__(self, other: object) -> bool:
        return bool(self._word == other)

    __hash__ = None  # type: ignore[assignment]


class Sockets(dict[str, Any]):
    """The connections of an Engine.IO server. Each exists as soon as it is asked for."""

    def __init__(self, eio: Any) -> None:
        super().__init__()
        self._eio = eio

    def get(self, eio_sid: str, default: Any = None) -> Any:
        if eio_sid not in self:
            self[eio_sid] = AsyncSocket(self._eio, eio_sid)
            self[eio_sid].connected = True
        return self[eio_sid]


async def sent(eio: Any) -> list[tuple[str, Any]]:
    """Take the packets of all connections out of their queues."""
    packets = []
    for eio_sid, socket in list(eio.sockets.items()):
        while not socket.queue.empty():
            pkt = socket.queue.get_nowait()
            socket.queue.task_done()
            if pkt is not None and pkt.packet_type == MESSAGE:
                packets.append((eio_sid, pkt))
    return packets


def without_pid(data: Any) -> Any:
    """Return a packet without the pid of a CONNECT."""
    if not isinstance(data, str) or '"pid"' not in data:
        return data
    head, brace, values = data.partition("{")
    return head + json.dumps(
        {k: v for k, v in json.loads(brace + values).items() if k != "pid"}, separators=(",", ":")
    )


def awaited(function: Any) -> Any:
    """Return a function of a test as one that can be awaited."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    return call


HOOKS = ("emit", "enter_room", "leave_room", "close_room", "disconnect", "trigger_callback", "initialize")
"""Methods of a manager that tests replace by mocks, and look at."""


OURS = ("skip_room", "volatile", "connection", "key", "since")
"""Arguments that this package adds to them."""


class Hook(mock.MagicMock):
    """A hook that looks as if it was called without the arguments that this package adds, if they are not given."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{k: v for k, v in kwargs.items() if v or k not in OURS})


class AsyncHook(Hook, mock.AsyncMock):
    """A hook that is awaited."""


def take_hooks(manager: Any, hook: type[mock.Mock]) -> None:
    """Replace the hooks of a manager by mocks."""
    for name in HOOKS:
        setattr(manager, name, mock.MagicMock() if name == "initialize" else hook())
    manager.get_rooms = mock.MagicMock()


async def send_frame(eio: Any, eio_sid: str, pkt: Any) -> None:
    """Queue a packet of this package, and leave one of a test to the mock."""
    if isinstance(pkt, Frame):
        await RealEngine.send_packet(eio, eio_sid, pkt)


def start_task(eio: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
    """Start a task, and leave what a test gives to the mock."""
    return RealEngine.start_background_task(eio, target, *args, **kwargs) if callable(target) else mock.DEFAULT


async def connect(manager: Any, eio_sid: str, namespace: str) -> Any:
    """Connect a client without a CONNECT packet, as the managers of python-socketio do it."""
    return await type(manager).connect(manager, await manager.pre_connect(eio_sid, namespace), namespace)


# -- the asynchronous server -----------------------------------------------------------------------------
class AsyncServer(sio_pg_adapter.AsyncServer):
    """``AsyncServer`` on a real Engine.IO behind the mocked one."""

    def __init__(self, client_manager: Any = None, *args: Any, **options: Any) -> None:
        USED.append(self)
        manager = sio_pg_adapter.AsyncPostgresManager()
        if isinstance(client_manager, mock.Mock):
            take_hooks(manager, AsyncHook)
        super().__init__(manager, *args, connection_state_recovery=True, **options)
        manager.connect = functools.partial(connect, manager)

    def _engineio_server_class(self) -> Any:
        return self._engine if isinstance(engineio.AsyncServer, mock.Mock) else RealEngine

    def _engine(self, **options: Any) -> Any:
        mocked, real = engineio.AsyncServer(**options), RealEngine(async_mode="asgi")
        real.sockets = Sockets(real)
        real.generate_id = mocked.generate_id
        for name in ("on", "attach", "transport", "get_session", "save_session", "sleep"):
            setattr(real, name, getattr(mocked, name))
        for name in ("send", "handle_request", "shutdown"):
            function = getattr(mocked, name)
            setattr(real, name, function if isinstance(function, mock.AsyncMock) else mock.AsyncMock())
        real.send_packet = mock.AsyncMock(side_effect=functools.partial(send_frame, real))
        real.start_background_task = mock.MagicMock(side_effect=functools.partial(start_task, real))
        return real

    async def _handle_eio_connect(self, eio_sid: str, environ: Any) -> Any:
        if not isinstance(self.eio.sockets, Sockets):
            return await super()._handle_eio_connect(eio_sid, environ)
        self.eio.sockets.get(eio_sid)
        return await super()._handle_eio_connect(eio_sid, Environ(environ))

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        await super()._handle_eio_message(eio_sid, data)
        await self._drain()

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        await super().disconnect(*args, **kwargs)
        await self._drain()

    async def _drain(self) -> None:
        if isinstance(self.eio.sockets, Sockets):
            for eio_sid, pkt in await sent(self.eio):
                await self.eio.send(eio_sid, without_pid(pkt.data))


# -- the synchronous server ------------------------------------------------------------------------------
class PostgresManager(sio_pg_adapter.PostgresManager):
    """``PostgresManager`` with the hooks of python-socketio's managers."""

    def __init__(self) -> None:
        super().__init__()
        USED.append(self)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, mock.Mock):  # the server calls it in its event loop
            setattr(self._manager, name, value if name in {"initialize", "get_rooms"} else awaited(value))

    def connect(self, eio_sid: str, namespace: str) -> Any:
        return self._ready()[0].call(connect, self._manager, eio_sid, namespace)

    def __getattr__(self, name: str) -> Any:
        if name in {"_manager", "_background"} or not hasattr(self._manager, name):
            raise AttributeError(name)
        if not callable(getattr(self._manager, name)):
            return getattr(self._manager, name)
        return lambda *args, **kwargs: self._ready()[0].call(getattr(self._manager, name), *args, **kwargs)


class Server(sio_pg_adapter.Server):
    """``Server`` whose real Engine.IO is that of its event loop."""

    def __init__(self, client_manager: Any = None, *args: Any, **options: Any) -> None:
        manager = PostgresManager()
        super().__init__(manager, *args, connection_state_recovery=True, **options)
        if isinstance(self.eio, mock.Mock):
            eio = self._server.eio
            eio.sockets = Sockets(eio)
            eio.generate_id = self.eio.generate_id
            self._share()
        if isinstance(client_manager, mock.Mock):
            take_hooks(manager, Hook)

    def _in_loop(self, name: str, *args: Any) -> Any:
        background, server = self._ready()
        try:
            return background.call(getattr(server, name), *args)
        finally:
            self._drain()

    def _handle_eio_connect(self, eio_sid: str, environ: Any) -> Any:
        self._server.eio.sockets.get(eio_sid)
        return self._in_loop("_handle_eio_connect", eio_sid, Environ(environ))

    def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        self._in_loop("_handle_eio_message", eio_sid, data)

    def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        self._in_loop("_handle_eio_disconnect", eio_sid, reason)

    def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        return self._in_loop("_trigger_event", event, namespace, *args)

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        super().disconnect(*args, **kwargs)
        self._drain()

    def _drain(self) -> None:
        if isinstance(self.eio, mock.Mock):
            for eio_sid, pkt in self._ready()[0].call(sent, self._server.eio):
                self.eio.send(eio_sid, without_pid(pkt.data))


# -- managers --------------------------------------------------------------------------------------------
def give_engine(server: Any) -> None:
    """Give a mocked server a real Engine.IO."""
    eio = RealEngine(async_mode="asgi")
    eio.sockets, eio.generate_id = Sockets(eio), server.eio.generate_id
    server.eio = eio


class AsyncManager(sio_pg_adapter.AsyncPostgresManager):
    """``AsyncPostgresManager`` under a mocked server."""

    def __init__(self) -> None:
        super().__init__()
        USED.append(self)

    def set_server(self, server: Any) -> None:
        give_engine(server)
        server.disconnect = super().disconnect  # as the server ends clients that were kicked
        super().set_server(server)

    async def disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        await super().disconnect(sid, namespace, **kwargs)
        while self.clients.current(sid, namespace) is not None:
            await asyncio.sleep(0)

    def initialize(self) -> None:
        """Start at the first use, which is in the event loop."""

    async def connect(self, sid: str, namespace: str) -> Any:
        if not self.is_pre_connected(sid, namespace):  # it is an Engine.IO sid
            sid = await self.pre_connect(sid, namespace)
        return await super().connect(sid, namespace)

    async def emit(self, *args: Any, **kwargs: Any) -> Any:
        await super().emit(*args, **kwargs)
        for eio_sid, pkt in await sent(self.server.eio):
            call = self.server._send_eio_packet(eio_sid, pkt)
            if inspect.isawaitable(call):
                await call


class Manager:
    """An ``AsyncManager`` whose methods block."""

    def __init__(self) -> None:
        self.__dict__["_background"] = Background()
        self.__dict__["_manager"] = AsyncManager()
        USED[-1] = self

    def close(self) -> None:
        self._background.call(self._manager.aclose)
        self._background.stop()

    def set_server(self, server: Any) -> None:
        self._background.call(self._manager.set_server, server)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._manager, name)
        if not callable(value) or isinstance(value, mock.Mock):
            return value
        return lambda *args, **kwargs: self._background.call(value, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._manager, name, value)


# -- the synchronous client ------------------------------------------------------------------------------
class Engine:
    """The Engine.IO client of an event loop, as a test sees it that replaces its methods by mocks."""

    def __init__(self, eio: Any) -> None:
        self.__dict__["_eio"] = eio

    def __getattr__(self, name: str) -> Any:
        return getattr(self._eio, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, mock.Mock):
            self.__dict__[name] = value
            value = awaited(value)
        setattr(self._eio, name, value)


class MockedEngine:
    """A mock of an Engine.IO client, as the event loop sees it."""

    def __init__(self, mocked: mock.Mock) -> None:
        self._mocked = mocked

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._mocked, name)
        return awaited(value) if isinstance(value, mock.Mock) else value


class Client(sio_pg_adapter.Client):
    """``Client`` whose private methods are those of its connection in the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "eio", Engine(self._connection.eio))

    def __setattr__(self, name: str, value: Any) -> None:
        former = getattr(self._connection, name, None)
        if isinstance(value, mock.Mock) and name == "eio":
            object.__setattr__(self, name, value)
            self._connection.eio = MockedEngine(value)
        elif isinstance(value, mock.Mock) and callable(former):
            object.__setattr__(self, name, value)
            setattr(self._connection, name, awaited(value) if inspect.iscoroutinefunction(former) else value)
        else:
            super().__setattr__(name, value)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_handle") and name not in {"_send_packet", "_trigger_event", "_generate_ack_id"}:
            return super().__getattribute__(name)
        if name in object.__getattribute__(self, "__dict__"):
            return super().__getattribute__(name)
        connection = self._connection
        return lambda *args: self._in_loop(getattr(connection, name), *args)

    def _in_loop(self, function: Any, *args: Any) -> Any:
        from sio_pg_adapter import sync_client  # noqa: PLC0415 - a private name

        result = sync_client._loop.run(awaited(function)(*args))
        self._connection.queue.settle()
        return result


assert loop_server._Engine.__mro__[1] is RealEngine  # this module is imported before anything is mocked
