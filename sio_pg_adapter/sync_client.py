"""The synchronous Python clients with connection state recovery: ``AsyncClient`` behind methods that block.

The connections of all clients of a process run on one event loop, in a thread of its own. So every rule of recovery,
and of Engine.IO, is that of :mod:`sio_pg_adapter.client`. Only two things are decided here:

- A method called in any thread runs its counterpart on the loop and waits for it.
- Handlers run in threads, because they may block. Each client has at most one thread at a time, which calls its
  handlers one by one: ``connect``, the events in the order of the log, ``disconnect``, the next ``connect``. The loop
  does not wait for them, so that pings are answered while a handler works, and ``call()`` in a handler gets its
  answer.

The client remembers the offset of an event when the event enters the queue of its handlers. Whatever is in the queue
is handled, even after the connection is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import socketio

from sio_pg_adapter.client import AsyncClient
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.green_threads import refuse_green_threads
from sio_pg_adapter.handler_types import Event, On

T = TypeVar("T")

_LIFECYCLE = frozenset(["connect", "disconnect", "connect_error", "__disconnect_final"])
"""Events of the connection itself, whose handlers give no answer."""


class _LoopThread:
    """The event loop of all clients of this process. Its thread lives as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return its result."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            return future.result()
        finally:
            future.cancel()  # a KeyboardInterrupt must not leave it running

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="sio_pg clients", daemon=True).start()
            return self._loop


_loop = _LoopThread()
os.register_at_fork(after_in_child=_loop.__init__)  # type: ignore[misc] # a child process has no thread of its parent


class _HandlerQueue:
    """Calls functions one by one, in the order of :meth:`submit`.

    Its thread ends when nothing is left, and the next call starts another one. So a client has nothing to close.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Queue a call, and return the future of its result."""
        future: Future[Any] = Future()
        with self._lock:
            self._calls.append((future, function, args))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="sio_pg client handlers", daemon=True)
                with contextlib.suppress(RuntimeError):  # at the end of the process, where settle() makes the calls
                    thread.start()
                    self._thread = thread
        return future

    def settle(self) -> None:
        """Wait until all calls that are queued have returned. Does nothing inside of one of them."""
        if threading.current_thread() is self._thread:
            return
        settled = self.submit(lambda: None)
        with self._lock:
            has_no_thread = self._thread is None and bool(self._calls)
            if has_no_thread:  # Python 3.12 starts none at the end of the process
                self._thread = threading.current_thread()
        if has_no_thread:
            self._run()
        settled.result()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._thread = None
                    return
                future, function, args = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*args))
            except BaseException as e:  # noqa: BLE001 - a handler's SystemExit must not stop the later ones
                future.set_exception(e)


class _Connection(AsyncClient):
    """The client on the loop. Its handlers are those of a synchronous client."""

    client: Client

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "handle_sigint": False})  # Client.wait() does that
        self.queue = _HandlerQueue()
        self.seen: dict[str, bool] = {}  # `recovered` of the latest connection whose `connect` handler was called

    def is_asyncio_based(self) -> bool:
        return False  # class-based handlers are a ClientNamespace

    async def _get_real_value(self, value: Any) -> Any:
        return await asyncio.to_thread(value) if callable(value) else value  # it may ask another server for a token

    async def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        recovered = self.recovered(namespace) if event == "connect" else None
        future = self.queue.submit(self._call_handler, event, namespace, recovered, args)
        # disconnect() in a handler triggers `disconnect`, which can only be called after that handler.
        return None if event in _LIFECYCLE else await asyncio.wrap_future(future)

    async def _handle_event(self, namespace: str | None, id: int | None, data: list[Any]) -> None:
        try:
            await super()._handle_event(namespace, id, data)
        except Exception:  # python-engineio logs it in a thread of socketio.Client, and not in a task
            self.logger.exception("%s handler error", data[0])

    def _call_handler(self, event: str, namespace: str, recovered: bool | None, args: tuple[Any, ...]) -> Any:
        if recovered is not None:
            self.seen[namespace] = recovered
        try:
            return socketio.Client._trigger_event(self.client, event, namespace, *args)  # noqa: SLF001 - as its threads do
        except Exception:
            if event not in _LIFECYCLE:
                raise
            self.logger.exception("%s handler error", event)
            return None


class Client(socketio.Client):
    """A ``socketio.Client`` whose sessions survive a dropped connection.

    The methods and decorators of ``socketio.Client`` work as they do there, from any thread. The differences are:

    - Handlers are called one by one, in the order of the events. python-socketio starts a thread for each event, and
      the threads overtake each other. A handler that waits for another event waits for ever. ``call()`` works in a
      handler, as do callbacks of ``emit()``, which have threads of their own.
    - The transport is aiohttp. ``http_session`` and ``websocket_extra_options`` are those of ``AsyncClient``.

    :class:`AsyncClient` documents how sessions begin and end.
    """

    event: Event
    on: On
    connected: bool
    namespaces: dict[str, str]  # the connected namespaces, each with its sid
    _connection: _Connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_green_threads("Use socketio.Client, which does not recover, or a process of its own.")
        # Not python-socketio's constructor: the state of the client is that of its connection, see __getattr__.
        session = kwargs.get("http_session")
        if session is not None and not hasattr(session, "ws_connect"):
            raise ConfigurationError(f"http_session takes an aiohttp.ClientSession, not a {type(session).__name__}")
        object.__setattr__(self, "_connection", _Connection(*args, **kwargs))
        self._connection.client = self
        object.__setattr__(self, "handle_sigint", kwargs.get("handle_sigint", True))

    def __getattr__(self, name: str) -> Any:
        if name == "_connection":
            raise AttributeError(name)  # before __init__
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(self._connection, name) and not hasattr(type(self), name):
            setattr(self._connection, name, value)
        else:
            object.__setattr__(self, name, value)

    def recovered(self, namespace: str = "/") -> bool:
        """Return whether the latest connection to ``namespace`` continues the previous session: same sid, no gap.

        It is about the connection whose ``connect`` handler was called last, so handlers see each connection's own
        value, even if they lag behind.
        """
        return self._connection.seen.get(namespace, False)

    def connect(
        self,
        url: str | Callable[[], Any],
        headers: Mapping[str, str] | Callable[[], Any] | None = None,
        auth: Any = None,
        transports: list[str] | str | None = None,
        namespaces: list[str] | str | None = None,
        socketio_path: str = "socket.io",
        wait: bool = True,
        wait_timeout: float | None = None,
        retry: bool = False,
    ) -> None:
        """Connect to a Socket.IO server, as :meth:`AsyncClient.connect` does."""
        _loop.run(
            self._connection.connect(
                url, headers, auth, transports, namespaces, socketio_path, wait, wait_timeout, retry
            )
        )
        self._connection.queue.settle()

    def wait(self) -> None:
        """Wait until the connection has ended and no reconnection is tried."""
        try:
            _loop.run(self._connection.wait())
        except KeyboardInterrupt:
            if self.handle_sigint:
                self.shutdown()
            raise

    def emit(
        self, event: str, data: Any = None, namespace: str | None = None, callback: Callable[..., Any] | None = None
    ) -> None:
        """Send an event to the server. ``socketio.Client.emit`` documents the parameters."""

        def in_a_thread(*args: Any) -> None:
            self.start_background_task(callback, *args)

        _loop.run(self._connection.emit(event, data, namespace, None if callback is None else in_a_thread))

    def call(self, event: str, data: Any = None, namespace: str | None = None, timeout: float | None = 60) -> Any:
        """Send an event to the server, and return its answer. ``socketio.Client.call`` documents the parameters."""
        return _loop.run(self._connection.call(event, data, namespace, timeout))

    def disconnect(self) -> None:
        """Disconnect from the server, and end the sessions."""
        _loop.run(self._connection.disconnect())
        self._connection.queue.settle()

    def shutdown(self) -> None:
        """Disconnect, or stop reconnecting."""
        _loop.run(self._connection.shutdown())
        self._connection.queue.settle()

    def start_background_task(self, target: Any, *args: Any, **kwargs: Any) -> threading.Thread:
        """Start a thread, and return it."""
        thread = threading.Thread(target=target, args=args, kwargs=kwargs, daemon=True)
        thread.start()
        return thread

    def sleep(self, seconds: float = 0) -> None:
        """Sleep."""
        time.sleep(seconds)


class SimpleClient(socketio.SimpleClient):
    """A ``socketio.SimpleClient`` whose session survives a dropped connection."""

    client: Client | None
    namespace: str
    client_class = Client

    def recovered(self) -> bool:
        """Return :meth:`Client.recovered` of the client's one namespace."""
        return self.client is not None and self.client.recovered(self.namespace)
