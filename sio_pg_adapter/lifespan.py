"""The ASGI lifespan that starts and stops the manager together with the application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sio_pg_adapter.errors import ConfigurationError, SioPgError
from sio_pg_adapter.manager import AsyncPostgresManager


class lifespan:  # noqa: N801 - used as a function
    """Start the manager with the application, and stop the server and the manager with it.

    Use ``FastAPI(lifespan=lifespan(sio))``, or the same with Starlette. In a lifespan of the application's own, use
    ``async with lifespan(sio):``.

    :param sio: an ``AsyncServer`` with an ``AsyncPostgresManager``.
    :raises StoreUnavailable: at startup. The application does not start.
    :raises SchemaMismatch: at startup. The application does not start.
    """

    def __init__(self, sio: Any) -> None:
        if not isinstance(getattr(sio, "manager", None), AsyncPostgresManager):
            raise ConfigurationError("lifespan() takes a server with client_manager=AsyncPostgresManager(...)")
        self._sio = sio

    @contextlib.asynccontextmanager
    async def __call__(self, _app: Any = None) -> AsyncIterator[None]:
        async with self:
            yield

    async def __aenter__(self) -> None:
        try:
            await self._sio.manager.start()
        except SioPgError as e:
            # An ASGI server prints the whole traceback. The message says what to do, so it should not stand below
            # the frames of asyncpg and of the event loop.
            raise e.with_traceback(None) from None

    async def __aexit__(self, *exc: object) -> None:
        await self._sio.shutdown()
