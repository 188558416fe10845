"""The ASGI lifespan that starts and stops the manager together with the application."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from sio_pg_adapter.errors import ConfigurationError, SioPgError
from sio_pg_adapter.manager import AsyncPostgresManager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals at which web servers shut down gracefully."""


class lifespan:  # noqa: N801 - used as a function
    """Start the manager with the application, and stop the server and the manager with it.

    Use ``FastAPI(lifespan=lifespan(sio))``, or the same with Starlette. In a lifespan of the application's own, use
    ``async with lifespan(sio):``. Frameworks that register functions get its methods ``startup`` and ``shutdown``.

    SIGTERM and SIGINT send the clients away at once. A web server shuts its application down only after all requests
    have ended, and a long-polling client has one open for up to 25 s.

    :param sio: an ``AsyncServer`` with an ``AsyncPostgresManager``.
    :raises StoreUnavailable: at startup. The application does not start.
    :raises SchemaMismatch: at startup. The application does not start.
    """

    def __init__(self, sio: Any) -> None:
        if not isinstance(getattr(sio, "manager", None), AsyncPostgresManager):
            raise ConfigurationError("lifespan() takes a server with client_manager=AsyncPostgresManager(...)")
        self._sio = sio
        self._goodbye: Goodbye | None = None

    @contextlib.asynccontextmanager
    async def __call__(self, _app: Any = None) -> AsyncIterator[None]:
        async with self:
            yield

    async def __aenter__(self) -> None:
        await self.startup()

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    async def startup(self, _app: Any = None) -> None:
        """Start the manager. Pass it to ``socketio.ASGIApp(on_startup=)`` or to aiohttp's ``on_startup``."""
        try:
            await self._sio.manager.start()
        except SioPgError as e:
            # An ASGI server prints the whole traceback. The message says what to do, so it should not stand below
            # the frames of asyncpg and of the event loop.
            raise e.with_traceback(None) from None
        self._goodbye = Goodbye(self._sio.manager)
        self._goodbye.chain()

    async def shutdown(self, _app: Any = None) -> None:
        """Stop server and manager. Pass it to ``socketio.ASGIApp(on_shutdown=)`` or to aiohttp's ``on_shutdown``."""
        if self._goodbye is not None:
            self._goodbye.unchain()
            await self._goodbye.said()
        await self._sio.shutdown()


class Goodbye:
    """Sends the clients away when a signal arrives, before the web server's own handler of it runs.

    It is made in the event loop of the manager. The main thread puts it in front of the signal handlers.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        self._loop = asyncio.get_running_loop()
        self._saying: asyncio.Task[None] | None = None
        self._handler = self._on_signal
        self._chained: dict[int, Callable[..., Any]] = {}

    def chain(self, signals: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
        """Put this in front of the signal handlers that the web server has installed.

        A signal without a handler keeps its effect: it ends the process, or is ignored. Web servers that use the
        event loop's handlers have one, too, which does nothing: the loop hears of signals by its own means.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may install signal handlers
        for number in signals:
            handler = signal.getsignal(number)
            if callable(handler):
                self._chained[number] = handler
                signal.signal(number, self._handler)

    def _on_signal(self, number: int, frame: Any) -> Any:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._begin)
        return self._chained[number](number, frame)

    def _begin(self) -> None:
        if self._saying is None:
            self._saying = self._loop.create_task(self._manager.say_goodbye(), name="sio_pg goodbye")

    def unchain(self) -> None:
        """Take this out of the signal handlers, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return  # after the end of the event loop it does nothing
        for number, handler in self._chained.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, handler)

    async def said(self) -> None:
        """Wait until a goodbye that has begun is said."""
        if self._saying is not None:
            await self._saying
